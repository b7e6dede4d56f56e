// Requests of the API. The token stays in this tab, until it is closed.

const KEY = "podmesh-token";
const PREFIX = "/api/v1";
// The server sends a comment every 15 s. A stream that is silent for longer is dead.
const SILENCE_MS = 40_000;

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

let refused = () => {};
// Calls this when the token is no longer valid.
export function onRefused(then) {
  refused = then;
}

// A problem that the server reports, or that it cannot be reached.
export class Problem extends Error {
  constructor({ status, code, detail }) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const bearer = token.get();
  if (bearer) headers = { ...headers, Authorization: `Bearer ${bearer}` };
  if (body !== undefined) {
    headers = { ...headers, "Content-Type": "application/json" };
    body = JSON.stringify(body);
  }
  let reply;
  try {
    reply = await fetch(PREFIX + path, { method, body, headers, signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({ status: 0, code: "unreachable", detail: "The manager cannot be reached." });
  }
  if (reply.ok) return reply;
  const problem = await reply.json().catch(() => ({}));
  const detail = problem.detail ?? `The server answered ${reply.status}.`;
  if (reply.status === 401) refused(detail);
  throw new Problem({ detail, code: problem.code, status: reply.status });
}

// Exchanges the one-time code of the address for a token.
export async function signIn(code) {
  const reply = await fetch("/sign-in", { method: "POST", headers: { "Podmesh-Code": code }, cache: "no-store" }).catch(() => null);
  const answer = (await reply?.json().catch(() => null)) ?? { detail: "The server cannot be reached." };
  if (!reply?.ok) throw new Error(answer.detail);
  token.set(answer.token);
}

// Returns the JSON of a reply.
export async function ask(path, options) {
  const reply = await send(path, options);
  return reply.status === 204 ? null : reply.json();
}

export const del = (path) => ask(path, { method: "DELETE" });
export const post = (path, body) => ask(path, { method: "POST", body });

// Returns the bytes `from` to `to` of an output, and where they begin; null if there is nothing there.
// There can be fewer, and they begin later if the oldest output was removed.
export async function bytesOf(path, from, to, signal) {
  try {
    const reply = await send(path, { headers: { Range: `bytes=${from}-${to}` }, signal });
    const offset = Number(/^bytes (\d+)-/.exec(reply.headers.get("Content-Range") ?? "")?.[1] ?? from);
    return { bytes: new Uint8Array(await reply.arrayBuffer()), offset };
  } catch (problem) {
    if (problem.status === 416) return null;
    throw problem;
  }
}

// Saves what the path has as a file.
export async function download(path, name) {
  const reply = await send(path);
  const address = URL.createObjectURL(await reply.blob());
  Object.assign(document.createElement("a"), { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// Waits until somebody can see the page, or `signal` is aborted.
function seen(signal) {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });
}

// Reads a stream of events until it ends. `EventSource` cannot send the token.
// A browser has six connections to a server, for all its tabs together, also for pages that one can
// go back to. So a page that nobody sees has no stream: it is interrupted, and begins when it is seen.
// Calls `onOpen` once, and `onEvent({ kind, id, data })` for each event.
export async function stream(path, { lastId, signal, onOpen = () => {}, onEvent }) {
  await seen(signal);
  signal.throwIfAborted();
  const aborter = new AbortController();
  const abort = () => aborter.abort();
  const hide = () => document.hidden && abort();
  signal.addEventListener("abort", abort);
  document.addEventListener("visibilitychange", hide);
  let watchdog = setTimeout(abort, SILENCE_MS);
  try {
    const headers = { Accept: "text/event-stream" };
    if (lastId != null) headers["Last-Event-ID"] = String(lastId);
    const reply = await send(path, { headers, signal: aborter.signal });
    onOpen();
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    const parse = parser(onEvent);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(watchdog);
      watchdog = setTimeout(abort, SILENCE_MS);
      parse(value);
    }
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", abort);
    document.removeEventListener("visibilitychange", hide);
  }
}

// Returns a function that takes text in pieces. The server writes `data` in one line.
export function parser(onEvent) {
  let rest = "";
  let event = {};
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
      else if (line.startsWith("id: ")) event.id = Number(line.slice(4));
      else if (line.startsWith("event: ")) event.kind = line.slice(7);
      else if (line === "") {
        if (event.data !== undefined || event.id !== undefined) onEvent(event);
        event = {};
      }
    }
  };
}

// Waits, or less if `signal` is aborted.
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
