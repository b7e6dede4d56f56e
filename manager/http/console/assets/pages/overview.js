// Overview: the room of the nodes, the queue, and what needs attention, in words.

import { ask } from "../api.js";
import { useLive } from "../live.js";
import { Cli, Heading, html, Name, nodeLink, Pending, Room, serviceLink, State } from "../parts.js";
import { Rates, standsStill, useRates } from "../rates.js";
import { link } from "../route.js";
import { plural, quote, time, visible } from "../text.js";

const ACTIVE_MAX = 1000;
const RECENT_MAX = 50;
// For how many waiting jobs the page says why.
const WAITING_MAX = 3;
// For how many schedules the page looks for missed runs, and among how many of the last decisions.
const SCHEDULES_MAX = 10;
const RUNS_MAX = 2;
// It asks for much, so not as often as other pages.
const PAUSE_MS = 1000;

async function load(signal) {
  const get = (path) => ask(path, { signal });
  const [nodes, services, volumes, queues, schedules, active, recent] = await Promise.all([
    get("/nodes"),
    get("/services"),
    get("/volumes"),
    get("/queues"),
    get("/schedules"),
    get(`/jobs?active=true&limit=${ACTIVE_MAX}`),
    get(`/jobs?limit=${RECENT_MAX}`),
  ]);
  // The oldest have waited longest. A job may be removed meanwhile.
  const unlessGone = (path) => get(path).catch(() => null);
  const ofOldest = async (jobs) => {
    const oldest = jobs.slice(-WAITING_MAX).reverse();
    const details = await Promise.all(oldest.map(({ job }) => unlessGone(`/jobs/${job}`)));
    return details.filter((job) => job?.waits_for.length > 0);
  };
  const queued = active.jobs.filter((job) => job.tasks.queued > 0);
  const blocked = queued.filter((job) => job.blocked > 0);
  const late = schedules.schedules.filter(({ missed }) => missed > 0).slice(0, SCHEDULES_MAX);
  const [waiting, stuck, ...histories] = await Promise.all([
    ofOldest(queued.filter((job) => job.blocked === 0)),
    ofOldest(blocked),
    ...late.map(({ schedule }) => unlessGone(`/schedules/${encodeURIComponent(schedule)}/history?limit=${RUNS_MAX}`)),
  ]);
  return {
    nodes: nodes.nodes,
    services: services.services,
    volumes: volumes.volumes,
    queues: queues.queues,
    missed: late.map(({ schedule }, at) => ({ schedule, run: histories[at]?.runs.find(({ result }) => result === "missed") })),
    active,
    recent: recent.jobs,
    waiting,
    stuck,
    blocked: blocked.length,
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
    for (const why of Object.values(node.low_disks)) yield html`${name} has a disk that is nearly full: ${visible(why)}`;
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

function* ofQueues(queues) {
  for (const { queue, queued } of queues.filter(({ paused, queued }) => paused && queued > 0)) {
    yield html`Queue <${Name}>${queue}<//> is <${State} word="paused" />: ${plural(queued, "task")} ${queued === 1 ? "waits" : "wait"} until <code>podmesh queue resume ${quote(queue)}</code>.`;
  }
}

function* ofSchedules(missed) {
  for (const { schedule, run } of missed.filter(({ run }) => run)) {
    yield html`Schedule <a href=${link("schedules", schedule)}><${Name}>${schedule}<//></a> <${State} word="missed" /> ${plural(run.count, "run")}, the last one for ${time(run.instant)}.`;
  }
}

// Jobs that can never run as things are, because a job that they wait for has ended otherwise.
function* ofBlocked(stuck, blocked) {
  for (const job of stuck) {
    const workflow = job.workflow_name && html` of the workflow <${Name}>${job.workflow_name}<//>`;
    yield html`${jobName(job)}${workflow} is <${State} word="blocked" />: ${visible(job.waits_for.join("; "))}`;
  }
  if (blocked > stuck.length) yield html`${plural(blocked - stuck.length, "more job")} ${blocked - stuck.length === 1 ? "is" : "are"} blocked: <code>podmesh jobs --active</code>`;
}

function* attention({ nodes, services, volumes, queues, missed, waiting, stuck, blocked, recent }, queued, still) {
  yield* ofNodes(nodes);
  yield* ofServices(services);
  yield* ofQueues(queues);
  yield* ofSchedules(missed);
  yield* ofBlocked(stuck, blocked);
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
      <p class="quiet">Failed jobs are those of the last ${RECENT_MAX}. Why jobs wait is shown for the ${WAITING_MAX} oldest. Missed runs are those of the last ${RUNS_MAX} decisions of a schedule.</p>
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
