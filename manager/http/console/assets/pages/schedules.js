// Schedules.

import { usePath } from "../live.js";
import { Cli, Field, Heading, html, jobLink, matches, Name, Pending, rowLink, State, Table } from "../parts.js";
import { link } from "../route.js";
import { duration, time, visible } from "../text.js";

// Returns when a schedule runs, as text.
export const when = ({ cron, zone, every_ms: every }) => (cron === null ? `every ${duration(every)}` : `${visible(cron)} (${visible(zone)})`);

export const word = ({ paused, waiting, active }) => (paused ? "paused" : active > 0 ? "running" : waiting ? "waiting" : "idle");

const COLUMNS = [
  ["Schedule", ({ schedule }) => rowLink(link("schedules", schedule), schedule)],
  ["State", (row) => html`<${State} word=${word(row)} />`],
  ["When", (row) => html`<code>${when(row)}</code>`],
  ["Next", ({ next }) => time(next)],
  ["Last", ({ last }) => time(last)],
  ["Last job", ({ last_job: job }) => job && jobLink(job)],
  ["Ran", ({ ran }) => ran.toLocaleString("en")],
  ["Skipped", ({ skipped }) => skipped.toLocaleString("en")],
  ["Missed", ({ missed }) => missed.toLocaleString("en")],
  ["By", ({ by }) => html`<${Name}>${by}<//>`],
];

export const concerns = ({ event }) => /^(schedule|job)_/.test(event);

export function Schedules({ query: { q } }) {
  const { value, problem } = usePath("/schedules", { concerns });
  const rows = (value?.schedules ?? []).filter((row) => matches(q, row.schedule, row.cron, word(row), row.by));
  return html`
    <${Heading}>Schedules<//>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Find" name="q" value=${q} find />
    </form>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Schedules" columns=${COLUMNS} rows=${rows} keyOf=${({ schedule }) => schedule}
      empty=${q ? "No schedule contains the text." : "There are no schedules."} />`}
    <${Cli} lines=${["podmesh schedule list"]} />`;
}
