// Events, as they happen.

import { useEffect, useState } from "../vendor/hooks.mjs";
import { ask } from "../api.js";
import { subscribe } from "../live.js";
import { attemptHref, Cli, Field, Heading, html, jobLink, matches, Name, nodeLink, Pending, serviceLink, Table } from "../parts.js";
import { withQuery } from "../route.js";
import { outcome, quote, time, visible } from "../text.js";

// How many a page keeps.
const EVENTS_MAX = 500;
const PAUSE_MS = 300;

// Returns the wanted ones of the last `back` events that there are. `filter` is for the server.
async function load(back, filter, wanted, signal) {
  const { revision } = await ask("/info", { signal });
  let since = Math.max(0, revision - back);
  const all = [];
  while (since < revision) {
    const page = await ask(withQuery("/events", { since, ...filter }), { signal });
    if (page.next === since) break;
    all.push(...page.events.filter(wanted));
    since = page.next;
  }
  return all.slice(-EVENTS_MAX);
}

// Adds events, each once, in order.
function merge(known, more) {
  const last = known.at(-1)?.revision ?? 0;
  const added = more.filter(({ revision }) => revision > last);
  return added.length === 0 ? known : [...known, ...added].slice(-EVENTS_MAX);
}

// Returns the last wanted events, and follows them. It looks through the last `back` events. After
// `null` some may have been missed: then the list is read anew.
function useEvents(back, { filter = {}, wanted = () => true, inputs = [] } = {}) {
  const [events, setEvents] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const aborter = new AbortController();
    const { signal } = aborter;
    setEvents(null);
    let fresh = [];
    let timer = null;
    const draw = () => {
      timer = null;
      const more = fresh;
      fresh = [];
      // Until the list is there, they wait.
      setEvents((known) => (known === null ? ((fresh = [...more, ...fresh]), known) : merge(known, more)));
    };
    const read = async () => {
      try {
        const found = await load(back, filter, wanted, signal);
        if (signal.aborted) return;
        setProblem(null);
        setEvents((known) => merge(merge([], found), known ?? []));
        timer ??= setTimeout(draw, 0);
      } catch (failed) {
        if (!signal.aborted) setProblem(failed);
      }
    };
    read();
    const stop = subscribe((event) => {
      if (event === null) return read();
      if (!wanted(event)) return;
      fresh.push(event);
      if (fresh.length > 2 * EVENTS_MAX) fresh = fresh.slice(-EVENTS_MAX);
      timer ??= setTimeout(draw, PAUSE_MS);
    });
    return () => {
      stop();
      clearTimeout(timer);
      aborter.abort();
    };
  }, inputs);
  return { events, problem };
}

function About({ event }) {
  if (event.attempt) return html`<a class="row-link" href=${attemptHref(event.attempt)}>${event.attempt}</a>`;
  if (event.job != null) return html`job ${jobLink(event.job)}`;
  if (event.service) return html`service ${serviceLink(event.service)}`;
  if (event.node) return html`node ${nodeLink(event.node)}`;
  return null;
}

const KNOWN = new Set(["revision", "at", "event", "job", "task", "attempt", "service"]);

// The other fields, as text.
function details(event) {
  const text = (name, value) => {
    if (name === "outcome") return outcome(value);
    if (Array.isArray(value)) return value.join(" ");
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  };
  const fields = Object.entries(event).filter(([name, value]) => !KNOWN.has(name) && value != null);
  return fields.map(([name, value]) => visible(`${name.replaceAll("_", " ")}: ${text(name, value)}`)).join(", ");
}

const COLUMNS = [
  ["Revision", ({ revision }) => revision],
  ["Time", ({ at }) => time(at)],
  ["Event", ({ event }) => html`<${Name}>${event.replaceAll("_", " ")}<//>`],
  ["About", (event) => html`<${About} event=${event} />`],
  ["Details", details],
];

const revisionOf = ({ revision }) => revision;

// How far back a page looks for the events of a node.
const BACK = 5000;
const NODE_ROWS = 50;

// What has happened to a node, without the many attempts that it had.
export function NodeEvents({ name }) {
  const { events, problem } = useEvents(BACK, { filter: { node: name }, wanted: ({ node, attempt }) => node === name && !attempt });
  return html`<section>
    <h2>What happened</h2>
    <${Pending} value=${events} problem=${problem} />
    ${events && html`<${Table} label="What happened" columns=${COLUMNS} rows=${events.slice(-NODE_ROWS).reverse()} keyOf=${revisionOf} empty="No recent event is about this node." />`}
    <p class="quiet">The newest is first: at most ${NODE_ROWS}, of the last ${BACK.toLocaleString("en")} events of the mesh.</p>
  </section>`;
}

// How far back the page looks if only some events are wanted.
const FILTERED_BACK = 50_000;
const FILTERS = ["kind", "job", "node", "service", "user"];

// Returns whether an event fits a filter, as the server sees it.
function fits({ kind, job, node, service, user }, event) {
  const inRange = event.first <= Number(job) && Number(job) <= event.last;
  return (
    (!kind || event.event === kind) &&
    (!job || String(event.job) === job || inRange) &&
    (!node || event.node === node) &&
    (!service || (event.service ?? event.replica?.replace(/\.\d+$/, "")) === service) &&
    (!user || event.by === user)
  );
}

export function Events({ query: { q, ...query } }) {
  const given = FILTERS.map((name) => [name, query[name]?.trim()]).filter(([, value]) => value);
  const filter = Object.fromEntries(given);
  if (filter.kind) filter.kind = filter.kind.toLowerCase().replaceAll(" ", "_");
  const back = given.length > 0 ? FILTERED_BACK : EVENTS_MAX;
  const { events, problem } = useEvents(back, { filter, wanted: (event) => fits(filter, event), inputs: [withQuery("", filter)] });
  const found = (event) => matches(q, event.revision, event.event, event.event.replaceAll("_", " "), event.attempt, event.job && `job ${event.job}`, event.service, details(event));
  const rows = (events ?? []).filter(found).reverse();
  const flags = Object.entries(filter).map(([name, value]) => ` --${name} ${quote(value)}`);
  const about = given.length > 0 ? `of the last ${FILTERED_BACK.toLocaleString("en")}, those that fit: at most ${EVENTS_MAX}` : `the last ${EVENTS_MAX} events`;
  return html`
    <${Heading}>Events<//>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Contains" name="q" value=${q} find />
      <${Field} label="Kind" name="kind" value=${query.kind} />
      <${Field} label="Job" name="job" value=${query.job} />
      <${Field} label="Node" name="node" value=${query.node} />
      <${Field} label="Service" name="service" value=${query.service} />
      <${Field} label="User" name="user" value=${query.user} />
    </form>
    <p class="quiet">The newest is first. The page has ${about}. “Contains” looks through these; the other fields take a whole word, such as job_ended.</p>
    <${Pending} value=${problem ? null : events} problem=${problem} />
    ${events && !problem && html`<${Table} label="Events" columns=${COLUMNS} rows=${rows} keyOf=${revisionOf} empty=${q || given.length > 0 ? "No event fits." : "Nothing has happened yet."} />`}
    <${Cli} lines=${[`podmesh events -f${flags.join("")}`]} />`;
}
