// The address: `#/jobs?active=true` is the page `jobs` with a filter.

import { useEffect, useState } from "./vendor/hooks.mjs";

export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#?\/?/, "").split("?");
  const parts = path.split("/").filter((part) => part !== "");
  return { parts: parts.map(decode), query: Object.fromEntries(new URLSearchParams(query)) };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

// Returns the one-time code of `#code=…`, and removes it from the address and the history.
export function takeCode() {
  const code = /^#code=(\w+)$/.exec(location.hash)?.[1];
  if (code !== undefined) history.replaceState(null, "", location.pathname);
  return code;
}

// Returns `path?query`, without what is empty. For the address and for the API.
export function withQuery(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value != null && value !== "" && value !== false);
  const text = new URLSearchParams(kept).toString();
  return text ? `${path}?${text}` : path;
}

// Returns a link: `link("jobs", 42)`.
export const link = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`;

const listeners = new Set();
addEventListener("hashchange", () => listeners.forEach((listen) => listen()));

export function useRoute() {
  const [route, set] = useState(() => parse(location.hash));
  useEffect(() => {
    const listen = () => set(parse(location.hash));
    listeners.add(listen);
    return () => listeners.delete(listen);
  }, []);
  return route;
}

// Changes the filter in the address. Another filter begins at the first page, unless `changes` says.
export function filter(changes) {
  const { query } = parse(location.hash);
  const path = location.hash.split("?")[0] || "#/";
  const next = withQuery(path, { ...query, before: "", from: "", ...changes });
  history.replaceState(null, "", next);
  listeners.forEach((listen) => listen());
}
