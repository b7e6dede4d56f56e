// One node: its room, and what runs there.

import { ask } from "../api.js";
import { useLive, usePath } from "../live.js";
import { attemptHref, Cli, Heading, html, Name, Pending, Room, serviceLink, State, Table } from "../parts.js";
import { amount, quote, time, visible } from "../text.js";
import { NodeEvents } from "./events.js";
import { labels, Scheduling } from "./nodes.js";

// The API has no list of a node's attempts. The page looks through this many jobs and services, and
// not more often than this.
const JOBS_MAX = 20;
const SERVICES_MAX = 50;
const TASKS_MAX = 1000;
const PAUSE_MS = 2000;

async function load(node, signal) {
  const get = (path) => ask(path, { signal });
  const [active, services] = await Promise.all([get("/jobs?active=true&limit=1000"), get("/services")]);
  const jobs = active.jobs.filter((job) => job.tasks.active > 0);
  // What is gone meanwhile runs nowhere.
  const gone = (problem) => {
    if (problem.status === 404) return null;
    throw problem;
  };
  const pages = await Promise.all(
    jobs.slice(0, JOBS_MAX).map((job) => get(`/jobs/${job.job}/tasks?state=active&limit=${TASKS_MAX}`).catch(gone)),
  );
  const details = await Promise.all(
    services.services.slice(0, SERVICES_MAX).map(({ service }) => get(`/services/${encodeURIComponent(service)}`).catch(gone)),
  );
  const rows = [];
  for (const [at, page] of pages.entries()) {
    for (const { task, last_attempt: last } of page?.tasks ?? []) {
      if (last?.node === node) rows.push({ attempt: last.attempt, state: last.state, what: `task ${task} of ${jobs[at].name}` });
    }
  }
  for (const detail of details) {
    for (const replica of detail?.replica_list ?? []) {
      if (replica.node === node && replica.attempt) {
        rows.push({ attempt: replica.attempt, state: replica.state, service: detail.service, what: `replica ${replica.number}` });
      }
    }
  }
  const whole = !active.more && jobs.length <= JOBS_MAX && services.services.length <= SERVICES_MAX && !pages.some((page) => page?.more);
  return { rows, whole };
}

const COLUMNS = [
  ["Attempt", ({ attempt }) => html`<a class="row-link" href=${attemptHref(attempt)}>${attempt}</a>`],
  ["What", ({ what, service }) => html`<${Name}>${what}<//>${service && html` of ${serviceLink(service)}`}`],
  ["State", ({ state }) => html`<${State} word=${state} />`],
];

function Runs({ name }) {
  const concerns = ({ event }) => /^(attempt|replica|node|service)/.test(event);
  const { value, problem } = useLive((signal) => load(name, signal), [name], { concerns, pauseMs: PAUSE_MS });
  return html`<section>
    <h2>What runs</h2>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="What runs" columns=${COLUMNS} rows=${value.rows} keyOf=${({ attempt }) => attempt} empty="Nothing runs here." />`}
    ${value && !value.whole && html`<p class="quiet">There may be more: the page looks through ${JOBS_MAX} jobs and ${SERVICES_MAX} services.</p>`}
  </section>`;
}

function Shown({ node, me }) {
  const why = (limits, text) => Object.entries(limits).map(([what, why]) => html`<li>${text(visible(what))}: ${visible(why)}</li>`);
  const notes = [
    ...why(node.withdrawn, (what) => `It cannot start ${what} at present`),
    ...Object.values(node.low_disks).map((why) => html`<li>A disk is nearly full: ${visible(why)}</li>`),
    ...why(node.unenforced, (what) => `It does not enforce the limit ${what} of commands`),
  ];
  const resources = Object.entries(node.resources).map(([name, of]) => {
    const held = of.used_millis - 1000 * of.gone.length;
    const gone = of.gone.length > 0 ? ` (in use and no longer offered: ${of.gone.map(visible).join(", ")})` : "";
    return `${amount(Math.max(0, 1000 * of.count - held))} of ${of.count} ${visible(name)} free${gone}`;
  });
  return html`
    <p><${State} word=${node.state} /> New work: <${State} word=${node.scheduling} /></p>
    ${notes.length > 0 && html`<ul class="attention">${notes}</ul>`}
    <p><${Scheduling} node=${node} me=${me} /></p>
    <${Room} node=${node} />
    <dl class="facts">
      <div><dt>Attempts</dt><dd>${node.attempts}</dd></div>
      ${resources.length > 0 && html`<div><dt>Named resources</dt><dd>${resources.join(", ")}</dd></div>`}
      <div><dt>Starts</dt><dd>${visible(node.runtimes.join(", "))}</dd></div>
      <div><dt>Labels</dt><dd>${labels(node)}</dd></div>
      ${node.maintenance && html`<div><dt>Maintenance</dt><dd>${time(node.maintenance.from)} until ${time(node.maintenance.until)}${node.maintenance.reason && `: ${visible(node.maintenance.reason)}`}</dd></div>`}
      <div><dt>Version</dt><dd>${visible(node.version)}</dd></div>
      ${node.address && html`<div><dt>Address for replicas</dt><dd>${visible(node.address)}</dd></div>`}
    </dl>
    <${Runs} name=${node.node} />
    <${NodeEvents} name=${node.node} />`;
}

export function Node({ parts: [, name], me }) {
  const { value, problem } = usePath("/nodes");
  const node = value?.nodes.find((node) => node.node === name);
  return html`
    <${Heading}>Node <${Name}>${name}<//><//>
    <${Pending} value=${value} problem=${problem} />
    ${node && html`<${Shown} node=${node} me=${me} />`}
    ${value && !node && html`<p>There is no such node. <a href="#/nodes">All nodes</a></p>`}
    <${Cli} lines=${["podmesh nodes", `podmesh nodes drain --wait ${quote(name)}`]} />`;
}
