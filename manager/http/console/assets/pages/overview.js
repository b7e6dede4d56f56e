// Overview: the room of the nodes, the queue, and what needs attention, in words.

import { ask } from "../api.js";
import { useLive } from "../live.js";
import { Cli, Heading, html, Name, nodeLink, Pending, Room, serviceLink, State } from "../parts.js";
import { Rates, standsStill, useRates } from "../rates.js";
import { link } from "../route.js";
import { plural, visible } from "../text.js";

const ACTIVE_MAX = 1000;
const RECENT_MAX = 50;
// For how many waiting jobs the page says why.
const WAITING_MAX = 3;
// It asks for much, so not as often as other pages.
const PAUSE_MS = 1000;

async function load(signal) {
  const get = (path) => ask(path, { signal });
  const [nodes, services, volumes, active, recent] = await Promise.all([
    get("/nodes"),
    get("/services"),
    get("/volumes"),
    get(`/jobs?active=true&limit=${ACTIVE_MAX}`),
    get(`/jobs?limit=${RECENT_MAX}`),
  ]);
  // The oldest have waited longest. A job may be removed meanwhile.
  const oldest = active.jobs.filter((job) => job.tasks.queued > 0).slice(-WAITING_MAX).reverse();
  const details = await Promise.all(oldest.map(({ job }) => get(`/jobs/${job}`).catch(() => null)));
  return {
    nodes: nodes.nodes,
    services: services.services,
    volumes: volumes.volumes,
    active,
    recent: recent.jobs,
    waiting: details.filter((job) => job?.waits_for.length > 0),
  };
}

const jobName = ({ job, name }) => html`<a href=${link("jobs", job)}>Job ${job} <${Name}>${name}<//></a>`;

function* ofNodes(nodes) {
  if (nodes.length === 0) yield html`No node has joined yet: create a token with <code>podmesh token create</code>, and start <code>podmesh agent</code> on a machine.`;
  for (const node of nodes) {
    const name = html`Node ${nodeLink(node.node)}`;
    if (node.state === "lost") yield html`${name} is <${State} word="lost" />: it has not answered for longer than its lease.`;
    else if (node.state === "suspect") yield html`${name} is <${State} word="suspect" />: its connection or heartbeat is missing. It gets no new work.`;
    if (node.scheduling === "cordoned") yield html`${name} is cordoned: it gets no new work.`;
    if (node.scheduling === "draining") yield html`${name} is draining: it gets no new work, and has ${plural(node.attempts, "attempt")} left.`;
    for (const [runtime, why] of Object.entries(node.withdrawn)) {
      yield html`${name} cannot start ${runtime} at present: ${visible(why)}`;
    }
  }
}

function* ofServices(services) {
  for (const service of services) {
    const name = html`Service ${serviceLink(service.service)}`;
    const healthy = `${service.healthy} of ${plural(service.replicas, "replica")} healthy`;
    if (service.state === "degraded") yield html`${name} is <${State} word="degraded" />: ${healthy}.`;
    if (service.state === "rolling_back") yield html`${name} is <${State} word="rolling_back" />: its last update failed.`;
    if (service.state === "updating") yield html`${name} is <${State} word="updating" /> to revision ${service.revision}: ${healthy}.`;
  }
}

function* attention({ nodes, services, volumes, waiting, recent }, queued, still) {
  yield* ofNodes(nodes);
  yield* ofServices(services);
  if (queued > 0 && still) yield html`The queue stands still: ${plural(queued, "task")} ${queued === 1 ? "waits" : "wait"}, and no node has been given one for a minute.`;
  for (const job of waiting) yield html`${jobName(job)} waits: ${visible(job.waits_for.join("; "))}`;
  for (const job of recent.filter((job) => job.state === "failed")) {
    yield html`${jobName(job)} <${State} word="failed" />: ${job.tasks.failed.toLocaleString("en")} of ${plural(job.tasks.total, "task")} failed.`;
  }
  for (const volume of volumes.filter((volume) => volume.failed)) {
    yield html`Volume <a href="#/volumes"><${Name}>${volume.volume}<//></a> could not be removed: ${visible(volume.failed)}`;
  }
}

const sum = (jobs, state) => jobs.reduce((total, { tasks }) => total + tasks[state], 0);

function Shown({ value, queued, counts }) {
  const { nodes, active } = value;
  const points = [...attention(value, queued, standsStill(counts))];
  const least = active.more ? "at least " : "";
  return html`
    <section>
      <h2>Needs attention</h2>
      ${points.length === 0
        ? html`<p><span class="state good"><span aria-hidden="true">✓</span> Nothing needs attention.</span></p>`
        : html`<ul class="attention">${points.map((point) => html`<li>${point}</li>`)}</ul>`}
      <p class="quiet">Failed jobs are those of the last ${RECENT_MAX}. Why jobs wait is shown for the ${WAITING_MAX} oldest.</p>
    </section>
    <section>
      <h2>Queue</h2>
      <${Rates} counts=${counts} queued=${queued} least=${least} />
      <dl class="figures">
        <div><dt>Tasks on nodes</dt><dd>${least}${sum(active.jobs, "active").toLocaleString("en")}</dd></div>
        <div><dt>Jobs that have not ended</dt><dd><a href="#/jobs?active=true">${least}${active.jobs.length.toLocaleString("en")}</a></dd></div>
        <div><dt>Services</dt><dd><a href="#/services">${value.services.length.toLocaleString("en")}</a></dd></div>
      </dl>
    </section>
    <section>
      <h2>Nodes</h2>
      <ul class="nodes">
        ${nodes.map((node) => html`<li key=${node.node}>
          <a class="row-link" href=${link("nodes", node.node)}><${Name}>${node.node}<//></a> <${State} word=${node.state} />
          ${node.scheduling !== "open" && html` <${State} word=${node.scheduling} />`}
          <${Room} node=${node} />
        </li>`)}
      </ul>
    </section>`;
}

export function Overview() {
  const { value, problem } = useLive(load, [], { pauseMs: PAUSE_MS });
  const queued = value && sum(value.active.jobs, "queued");
  const counts = useRates(queued);
  return html`
    <${Heading}>Overview<//>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Shown} value=${value} queued=${queued} counts=${counts} />`}
    <${Cli} lines=${["podmesh top", "podmesh jobs --active", "podmesh nodes"]} />`;
}
