// One task: its attempts, and the output of one of them.

import { post } from "../api.js";
import { question } from "../dialog.js";
import { usePath } from "../live.js";
import { Action, Check, Choice, Cli, Heading, html, nodeLink, Pending, State, Table } from "../parts.js";
import { link, withQuery } from "../route.js";
import { duration, outcome, quote, time, visible } from "../text.js";
import { Log, LINES_MAX } from "./log.js";

const COLUMNS = [
  ["Attempt", ({ number }) => number],
  ["Node", ({ node }) => nodeLink(node)],
  ["State", ({ state }) => html`<${State} word=${state} />`],
  ["How it ended", ({ outcome: end }) => outcome(end)],
  ["Ran for", ({ outcome: end }) => end && duration(end.ran_ms)],
  ["Details", ({ outcome: end }) => visible(end?.message ?? "")],
  ["Assigned", (attempt) => time(attempt.assigned_at)],
  ["Started", (attempt) => time(attempt.started_at)],
  ["Ended", (attempt) => time(attempt.ended_at)],
];

const ENDED_BADLY = ["failed", "cancelled"];

export function Task({ parts: [, job, , index], query, me }) {
  const path = `/jobs/${encodeURIComponent(job)}/tasks/${encodeURIComponent(index)}`;
  const id = `${job}.${index}`;
  const { value: task, problem } = usePath(path, { concerns: (event) => event.task === id });
  const last = task?.attempts.at(-1)?.number;
  const number = query.attempt ? Number(query.attempt) : last;
  const stream = query.stream === "stderr" ? "stderr" : "stdout";
  const follow = query.follow !== "false";
  const command = `podmesh logs ${follow ? "-f " : ""}--tail ${LINES_MAX} --stream ${stream} ${quote(number ? `${id}#${number}` : id)}`;
  const requeue = () => question({
    title: `Requeue task ${id}?`,
    text: "It runs again, in the same job. Its retries count anew.",
    yes: "Requeue",
    cli: `podmesh requeue ${quote(job)} ${quote(index)}`,
    act: async () => {
      const { tasks } = await post(`/jobs/${encodeURIComponent(job)}/requeue`, { tasks: index });
      return tasks > 0 ? undefined : "The task has succeeded, or has not ended.";
    },
  });
  return html`
    <${Heading}>Task ${visible(id)}<//>
    <p><a href=${link("jobs", job)}>Job ${visible(job)}</a> ${task && html`<${State} word=${task.state} />`}</p>
    <${Pending} value=${task} problem=${problem} />
    ${ENDED_BADLY.includes(task?.state) && html`<p><${Action} me=${me} role="operator" onClick=${requeue}>Requeue the task …<//></p>`}
    ${task && html`<section>
      <h2>Attempts</h2>
      <${Table} label="Attempts" columns=${COLUMNS} rows=${task.attempts} keyOf=${(attempt) => attempt.number} empty="No node has had this task yet." />
    </section>`}
    ${number && html`<section>
      <h2>Output of attempt ${number}</h2>
      <div class="filters">
        <${Choice} label="Attempt" name="attempt" value=${String(number)} options=${task?.attempts.map((attempt) => [String(attempt.number), attempt.number]) ?? []} />
        <${Choice} label="Stream" name="stream" value=${stream} options=${[["stdout", "standard output"], ["stderr", "standard error"]]} />
        <${Check} label="Follow" name="follow" value=${follow} off="false" />
      </div>
      <${Log} key=${`${number} ${stream} ${follow}`} path=${`${path}/log`} query=${{ attempt: number, stream }} follow=${follow} />
    </section>`}
    <${Cli} lines=${[`podmesh job ${quote(job)}`, command]} />`;
}
