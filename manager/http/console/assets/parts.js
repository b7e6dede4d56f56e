// What pages are made of.

import { h } from "./vendor/preact.mjs";
import { useState } from "./vendor/hooks.mjs";
import htm from "./vendor/htm.mjs";
import { filter, link, withQuery } from "./route.js";
import { bytes, cores, plural, visible } from "./text.js";

// Templates. Values become text nodes and attributes, never HTML.
export const html = htm.bind(h);

// A sign and a colour for each word. A word that only a later version knows has neither.
const KINDS = {
  good: ["✓", "succeeded healthy alive reached open usable live ran"],
  busy: ["▸", "running active assigned preparing starting updating begun connecting"],
  wait: ["◌", "queued waiting restarting draining stopping cancelling removing cordoned paused"],
  warn: ["!", "suspect degraded rolling_back unreachable interrupted skipped missed"],
  bad: ["✗", "failed lost unhealthy timed_out not_started blocked"],
  off: ["–", "cancelled stopped ended used_up expired revoked"],
};
const KIND_OF = new Map(
  Object.entries(KINDS).flatMap(([kind, [, words]]) => words.split(" ").map((word) => [word, kind])),
);

// Returns the colour and the sign of a state.
export function signOf(word) {
  const kind = KIND_OF.get(word) ?? "off";
  return [kind, KINDS[kind][0]];
}

// A state: the word, with a sign and a colour.
export function State({ word }) {
  const [kind, sign] = signOf(word);
  return html`<span class="state ${kind}"><span aria-hidden="true">${sign}</span> ${visible(word).replaceAll("_", " ")}</span>`;
}

export function Name({ children }) {
  return html`<bdi class="name">${visible(children ?? "")}</bdi>`;
}

// What went wrong.
export function Notice({ problem }) {
  if (!problem) return null;
  return html`<p class="notice" role="alert">${visible(problem.message)}</p>`;
}

// What a page shows of a value that is still on its way, or cannot be had.
export function Pending({ value, problem }) {
  if (problem) return html`<${Notice} problem=${problem} />`;
  return value === null ? html`<p class="quiet" role="status">Loading …</p>` : null;
}

export function Heading({ children }) {
  return html`<h1 tabindex="-1">${children}</h1>`;
}

// Commands that do the same, to copy.
export function Cli({ lines }) {
  return html`<section class="cli" aria-label="The same on the command line">
    ${lines.map((line) => html`<${CliLine} key=${line} line=${line} />`)}
  </section>`;
}

function CliLine({ line }) {
  const [copied, setCopied] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(line);
      setCopied("Copied");
    } catch {
      setCopied("Not permitted: select the text");
    }
    setTimeout(() => setCopied(""), 2000);
  };
  return html`<div>
    <code>${line}</code>
    <button onClick=${copy} aria-label=${`Copy: ${line}`}>Copy</button>
    <span role="status">${copied}</span>
  </div>`;
}

// A table that becomes a list of cards on a narrow screen. The roles keep it a table for screen
// readers there. `columns` are `[head, cell(row), class]`.
export function Table({ label, columns, rows, keyOf, empty }) {
  if (rows.length === 0) return html`<p class="quiet">${empty}</p>`;
  return html`<table role="table" aria-label=${label}>
    <thead role="rowgroup">
      <tr role="row">${columns.map(([head, , kind]) => html`<th role="columnheader" scope="col" class=${kind}>${head}</th>`)}</tr>
    </thead>
    <tbody role="rowgroup">
      ${rows.map((row) => html`<tr role="row" key=${keyOf(row)}>
        ${columns.map(([head, cell, kind]) => html`<td role="cell" class=${kind} data-label=${head}>${cell(row)}</td>`)}
      </tr>`)}
    </tbody>
  </table>`;
}

// A field that changes the filter in the address.
export function Field({ label, name, value, find = false, type = "search" }) {
  const change = (event) => filter({ [name]: event.target.value });
  return html`<label>${label}
    <input type=${type} value=${value ?? ""} data-find=${find || undefined} onInput=${change} autocomplete="off" spellcheck=${false} />
  </label>`;
}

export function Check({ label, name, value, off = "" }) {
  const change = (event) => filter({ [name]: event.target.checked ? "true" : off });
  return html`<label class="check"><input type="checkbox" checked=${value} onChange=${change} /> ${label}</label>`;
}

export function Choice({ label, name, value, options }) {
  return html`<label>${label}
    <select value=${value ?? ""} onChange=${(event) => filter({ [name]: event.target.value })}>
      ${options.map(([word, text]) => html`<option value=${word} selected=${word === (value ?? "")}>${text}</option>`)}
    </select>
  </label>`;
}

// Links to the first and the next page. `next` is the cursor, such as `{ before: 42 }`.
export function Pager({ path, query, cursor, next, first }) {
  const { [cursor]: at, ...rest } = query;
  return html`<nav class="pager" aria-label="Pages">
    ${at && html`<a href=${withQuery(path, rest)}>${first}</a>`}
    ${next && html`<a href=${withQuery(path, { ...rest, ...next })}>Next page</a>`}
  </nav>`;
}

// How far a job is.
export function Progress({ tasks }) {
  const ended = tasks.succeeded + tasks.failed + tasks.cancelled;
  const failed = tasks.failed > 0 ? `, ${tasks.failed.toLocaleString("en")} failed` : "";
  const text = `${ended.toLocaleString("en")} of ${tasks.total.toLocaleString("en")}${failed}`;
  return html`<span class="progress"><progress value=${ended} max=${tasks.total} aria-label="Tasks that have ended" /> ${text}</span>`;
}

// What a node has free of cores and of memory.
export function Room({ node }) {
  const bar = (what, free, all, text) => html`<div class="room">
    <meter min="0" max=${all || 1} value=${all - free} aria-label=${`${what} in use`} />
    <span>${text}</span>
  </div>`;
  const { capacity, free } = node;
  return html`<div>
    ${bar("cores", free.cpu_millis, capacity.cpu_millis, `${cores(free.cpu_millis)} of ${plural(capacity.cpu_millis / 1000, "core")} free`)}
    ${bar("memory", free.memory_bytes, capacity.memory_bytes, `${bytes(free.memory_bytes)} of ${bytes(capacity.memory_bytes)} free`)}
  </div>`;
}

// Links to other pages.
export const rowLink = (href, text) => html`<a class="row-link" href=${href}><${Name}>${text}<//></a>`;
export const jobLink = (job) => html`<a href=${link("jobs", job)}>${job}</a>`;
export const nodeLink = (node) => node && html`<a href=${link("nodes", node)}><${Name}>${node}<//></a>`;
export const serviceLink = (service) => html`<a href=${link("services", service)}><${Name}>${service}<//></a>`;

// The page of an attempt, such as `42.7#2`.
export function attemptHref(attempt) {
  const [, job, index, number] = /^(\d+)\.(\d+)#(\d+)$/.exec(attempt) ?? [];
  return job && withQuery(link("jobs", job, "tasks", index), { attempt: number });
}

const ROLES = ["viewer", "operator", "admin"];

// A button for those who may. Others see which role it needs.
export function Action({ me, role, onClick, children, disabled = false }) {
  const may = ROLES.indexOf(me.role) >= ROLES.indexOf(role);
  return html`<button disabled=${disabled || !may} title=${may ? undefined : `Needs the role ${role}`} onClick=${onClick}>
    ${children}${!may && html`<small> (needs ${role})</small>`}
  </button>`;
}

// Returns whether one of the texts contains what is looked for.
export function matches(wanted, ...texts) {
  const word = (wanted ?? "").toLowerCase();
  return word === "" || texts.some((text) => String(text ?? "").toLowerCase().includes(word));
}
