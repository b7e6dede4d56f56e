// One job: how far it is, why it waits, how its tasks ended.

import { post } from "../api.js";
import { question } from "../dialog.js";
import { usePath } from "../live.js";
import { Action, Choice, Cli, Heading, html, Name, nodeLink, Pager, Pending, Progress, rowLink, State, Table } from "../parts.js";
import { TaskGrid } from "../grid.js";
import { Timeline } from "../timeline.js";
import { link, withQuery } from "../route.js";
import { needs, outcome, quote, time, visible } from "../text.js";

const ROWS = 100;
const FAILED_MAX = 1000;
const STATES = ["queued", "active", "succeeded", "failed", "cancelled"];

const COLUMNS = [
  ["Task", ({ task, index }) => rowLink(link("jobs", task.split(".")[0], "tasks", index), task)],
  ["State", ({ state }) => html`<${State} word=${state} />`],
  ["Attempts", ({ attempts }) => attempts],
  ["Node", (task) => nodeLink(task.last_attempt?.node)],
  ["Last attempt", ({ last_attempt: last }) => last && (last.outcome ? outcome(last.outcome) : visible(last.state))],
  ["Started", (task) => time(task.last_attempt?.started_at)],
  ["Ended", (task) => time(task.last_attempt?.ended_at)],
];

// Returns how the failed tasks ended, the most frequent first.
function group(tasks) {
  const counts = new Map();
  for (const { last_attempt: last, index } of tasks) {
    const how = last?.outcome ? outcome(last.outcome) : "without an attempt";
    const known = counts.get(how) ?? { how, count: 0, first: index };
    known.count += 1;
    counts.set(how, known);
  }
  return [...counts.values()].sort((a, b) => b.count - a.count);
}

function Failures({ job, failed, concerns }) {
  const path = `/jobs/${job}/tasks?state=failed&limit=${FAILED_MAX}`;
  const { value, problem } = usePath(path, { concerns });
  const columns = [
    ["How the last attempt ended", ({ how }) => how],
    ["Tasks", ({ count }) => count.toLocaleString("en")],
    ["The first one", ({ first }) => html`<a href=${link("jobs", job, "tasks", first)}>${job}.${first}</a>`],
  ];
  return html`<section>
    <h2>Failures</h2>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Failures" columns=${columns} rows=${group(value.tasks)} keyOf=${({ how }) => how} empty="" />`}
    ${value?.more && html`<p class="quiet">These are the first ${value.tasks.length.toLocaleString("en")} of ${failed.toLocaleString("en")} failed tasks.</p>`}
  </section>`;
}

const AFTER_MAX = 20;
const HOW = { succeeded: "", failed: " (failed)", ended: " (any end)", each: " (index by index)" };

// Returns the jobs that a job waits for or has waited for.
function after(all) {
  const named = all.slice(0, AFTER_MAX).map(({ job, when }, at) =>
    html`${at > 0 && ", "}<a href=${link("jobs", job)}>${job}</a>${HOW[when] ?? ` (${visible(when)})`}`);
  const more = all.length - named.length;
  return all.length > 0 ? html`${named}${more > 0 && ` and ${more.toLocaleString("en")} more`}` : "";
}

function Facts({ job }) {
  const { spec } = job;
  const runs = [spec.container?.image, ...spec.command].filter(Boolean).map(quote).join(" ");
  const facts = [
    ["Runs", html`<code>${runs}</code>`],
    ["Each task gets", needs(spec)],
    ["Retries", spec.retries],
    ["Queue", visible(spec.queue ?? "default")],
    ["Priority", job.priority],
    ["Preemptible", spec.preemptible ? "makes room for jobs that are not" : ""],
    ["Run of the schedule", job.schedule ? html`<a href=${link("schedules", job.schedule)}><${Name}>${job.schedule}<//></a>, for ${time(job.schedule_instant)}` : ""],
    ["Dead-letter job of the task", job.dead_letter_of ? html`<a href=${link("jobs", job.dead_letter_of.split(".")[0], "tasks", job.dead_letter_of.split(".")[1])}>${job.dead_letter_of}</a>` : ""],
    ["Workflow", job.workflow ? html`${visible(job.workflow_name)}, from job <a href=${link("jobs", job.workflow)}>${job.workflow}</a> on` : ""],
    ["After", after(spec.after)],
    ["Not before", time(spec.not_before)],
    ["Submitted", html`${time(job.submitted_at)}${job.submitted_by && html` by <${Name}>${job.submitted_by}<//>`}`],
    ["Started", time(job.started_at)],
    ["Ended", time(job.ended_at)],
    ["Ended early", job.ended_early ? visible(job.ended_early) : ""],
  ];
  return html`<dl class="facts">${facts.map(([name, fact]) => fact !== "" && html`<div><dt>${name}</dt><dd>${fact}</dd></div>`)}</dl>`;
}

function Tasks({ job, query, concerns }) {
  const { state, from } = query;
  const path = withQuery(`/jobs/${job}/tasks`, { state, from, limit: ROWS });
  const { value, problem } = usePath(path, { concerns });
  const last = value?.more ? value.tasks.at(-1)?.index : null;
  return html`<section>
    <h2>Tasks</h2>
    <p><a href=${link("jobs", job, "output")}>Output of the tasks</a></p>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Choice} label="State" name="state" value=${state} options=${[["", "all"], ...STATES.map((word) => [word, word])]} />
    </form>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Tasks" columns=${COLUMNS} rows=${value.tasks} keyOf=${({ index }) => index} empty="There are no such tasks." />`}
    <${Pager} path=${link("jobs", job)} query=${query} cursor="from" next=${last != null && { from: last + 1 }} first="First tasks" />
  </section>`;
}

export function Job({ parts: [, number], query, me }) {
  const id = encodeURIComponent(number);
  const concerns = (event) => String(event.job) === number || /^node/.test(event.event);
  // Why a job waits changes with other jobs too.
  const { value: job, problem } = usePath(`/jobs/${id}`);
  const cancel = () => question({
    title: `Cancel job ${number}?`,
    text: "Tasks that wait never start. Tasks that run are stopped. This cannot be undone.",
    yes: "Cancel the job",
    cli: `podmesh cancel ${quote(number)}`,
    act: async () => {
      const { state } = await post(`/jobs/${id}/cancel`);
      return state === "cancelling" || state === "cancelled" ? undefined : `The job had already ended: ${state}.`;
    },
  });
  const requeue = () => question({
    title: `Requeue what failed in job ${number}?`,
    text: "All tasks that failed run again, in the same job. Their retries count anew.",
    yes: "Requeue",
    cli: `podmesh requeue ${quote(number)}`,
    act: async () => {
      const { tasks } = await post(`/jobs/${id}/requeue`);
      return tasks > 0 ? undefined : "No task of the job has failed.";
    },
  });
  return html`
    <${Heading}>Job ${visible(number)} ${job && html`<${Name}>${job.name}<//>`}<//>
    <${Pending} value=${job} problem=${problem} />
    ${job && html`
      <p><${State} word=${job.state} /> <${Progress} tasks=${job.tasks} /></p>
      ${job.waits_for.length > 0 && html`<section class="waits"><h2>Why it waits</h2><ul>${job.waits_for.map((why) => html`<li>${visible(why)}</li>`)}</ul></section>`}
      <dl class="figures">
        ${STATES.map((word) => html`<div><dt><a href=${withQuery(link("jobs", number), { state: word })}>${word}</a></dt><dd>${job.tasks[word].toLocaleString("en")}</dd></div>`)}
      </dl>
      ${!job.ended_at && html`<p><${Action} me=${me} role="operator" onClick=${cancel}>Cancel the job …<//></p>`}
      ${job.tasks.failed > 0 && html`<p><${Action} me=${me} role="operator" onClick=${requeue}>Requeue what failed …<//></p>`}
      <${Facts} job=${job} />
      ${job.tasks.failed > 0 && html`<${Failures} job=${number} failed=${job.tasks.failed} concerns=${concerns} />`}
      ${job.tasks.total > 1 && html`<${TaskGrid} job=${number} first=${job.spec.first_index} last=${job.spec.last_index} />`}
      <${Timeline} job=${number} concerns=${concerns} />
      <${Tasks} job=${number} query=${query} concerns=${concerns} />`}
    <${Cli} lines=${[`podmesh job ${quote(number)}`, `podmesh tasks ${quote(number)}${query.state ? ` --state ${quote(query.state)}` : ""}`]} />`;
}
