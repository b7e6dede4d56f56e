// Jobs: a page of the list, filtered by the address.

import { usePath } from "../live.js";
import { Check, Cli, Field, Heading, html, matches, Name, Pager, Pending, Progress, rowLink, State, Table } from "../parts.js";
import { link, withQuery } from "../route.js";
import { quote, time } from "../text.js";

const ROWS = 100;

const COLUMNS = [
  ["Job", ({ job }) => rowLink(link("jobs", job), job)],
  ["Name", ({ name }) => html`<${Name}>${name}<//>`],
  ["State", ({ state }) => html`<${State} word=${state} />`],
  ["Tasks that have ended", ({ tasks }) => html`<${Progress} tasks=${tasks} />`],
  ["Submitted", (job) => time(job.submitted_at)],
  ["By", (job) => html`<${Name}>${job.submitted_by}<//>`],
  ["Ended", (job) => time(job.ended_at)],
];

// The command that lists the same. It has no flag for the jobs of another user.
function command({ active, by, service, before }, me) {
  const words = ["podmesh jobs"];
  if (active) words.push("--active");
  if (service) words.push("--service", quote(service));
  if (by === me.name) words.push("--mine");
  words.push(before || (by && by !== me.name) ? "--all" : `--limit ${ROWS}`);
  if (by && by !== me.name) words.push(`--output json | jq '.jobs[] | select(.submitted_by == ${quote(JSON.stringify(by)).slice(1, -1)})'`);
  return words.join(" ");
}

const concerns = ({ event }) => /^(job|attempt|service|workflow)/.test(event);

export function Jobs({ query, me }) {
  const { active, by, service, before, q } = query;
  const path = withQuery("/jobs", { active: active === "true", by, service, before, limit: ROWS });
  const { value, problem } = usePath(path, { concerns });
  const rows = (value?.jobs ?? []).filter((job) => matches(q, job.job, job.name, job.state, job.submitted_by));
  const last = value?.more ? value.jobs.at(-1)?.job : null;
  return html`
    <${Heading}>Jobs<//>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Find on this page" name="q" value=${q} find />
      <${Field} label="Submitted by" name="by" value=${by} />
      <${Field} label="Replicas of service" name="service" value=${service} />
      <${Check} label="Only jobs that have not ended" name="active" value=${active === "true"} />
    </form>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Jobs" columns=${COLUMNS} rows=${rows} keyOf=${({ job }) => job}
      empty=${q ? "No job on this page contains the text." : "There are no such jobs."} />`}
    <${Pager} path="#/jobs" query=${query} cursor="before" next=${last && { before: last }} first="Newest jobs" />
    <${Cli} lines=${[command(query, me)]} />`;
}
