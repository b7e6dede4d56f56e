// One schedule: when it runs next, and what became of its last times.

import { post } from "../api.js";
import { question } from "../dialog.js";
import { usePath } from "../live.js";
import { Action, Cli, Heading, html, jobLink, Name, Pager, Pending, State, Table } from "../parts.js";
import { link, withQuery } from "../route.js";
import { duration, quote, time, visible } from "../text.js";
import { concerns, when, word } from "./schedules.js";

const ROWS = 100;

const COLUMNS = [
  ["Time", ({ instant }) => time(instant)],
  ["What became of it", ({ result }) => html`<${State} word=${result} />`],
  ["Job", ({ job }) => job && jobLink(job)],
  ["Times", ({ count }) => count.toLocaleString("en")],
  ["Decided", ({ decided }) => time(decided)],
  ["Details", ({ message }) => visible(message ?? "")],
];

function Facts({ schedule }) {
  const { spec } = schedule;
  const runs = [spec.container?.image, ...spec.command].filter(Boolean).map(quote).join(" ");
  const facts = [
    ["When", html`<code>${when(schedule)}</code>`],
    ["Next times", schedule.paused ? "none while it is paused" : schedule.next_instants.map(time).join(", ")],
    ["Runs", html`<code>${runs}</code>`],
    ["If the last run goes on", visible(schedule.overlap)],
    ["A run may be late by", duration(schedule.catch_up_ms)],
    ["Last changed by", html`<${Name}>${schedule.by}<//>`],
  ];
  return html`<dl class="facts">${facts.map(([name, fact]) => html`<div><dt>${name}</dt><dd>${fact}</dd></div>`)}</dl>`;
}

function History({ path, name, query }) {
  const { value, problem } = usePath(withQuery(`${path}/history`, { before: query.before, limit: ROWS }), { concerns });
  const rows = value?.runs ?? [];
  const last = rows.length === ROWS ? rows.at(-1).number : null;
  return html`<section>
    <h2>History</h2>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="History" columns=${COLUMNS} rows=${rows} keyOf=${({ number }) => number} empty="No time has passed yet." />`}
    <${Pager} path=${link("schedules", name)} query=${query} cursor="before" next=${last && { before: last }} first="Newest" />
  </section>`;
}

export function Schedule({ parts: [, name], query, me }) {
  const path = `/schedules/${encodeURIComponent(name)}`;
  const { value: schedule, problem } = usePath(path, { concerns });
  const ask = (verb, title, text, yes, tell) => () => question({
    title,
    text,
    yes,
    cli: `podmesh schedule ${verb} ${quote(name)}`,
    act: async () => tell(await post(`${path}/${verb}`)),
  });
  const changed = ({ changed }) => (changed ? undefined : "Nothing has changed.");
  const pause = ask("pause", `Pause ${name}?`, "No run starts until you resume it. Times that pass meanwhile are not made up for.", "Pause", changed);
  const resume = ask("resume", `Resume ${name}?`, "Runs start again at its next times.", "Resume", changed);
  const started = ({ job }) => (job === null ? "It starts when the last run has ended." : `It is job ${job}.`);
  const run = ask("run", `Run ${name} now?`, "A run that goes on is treated as the schedule says. Its other times stay.", "Run now", started);
  return html`
    <${Heading}>Schedule <${Name}>${name}<//><//>
    <${Pending} value=${schedule} problem=${problem} />
    ${schedule && html`
      <p><${State} word=${word(schedule)} /></p>
      <p>
        <${Action} me=${me} role="operator" onClick=${run}>Run now …<//>
        <${Action} me=${me} role="operator" onClick=${schedule.paused ? resume : pause}>${schedule.paused ? "Resume …" : "Pause …"}<//>
      </p>
      <${Facts} schedule=${schedule} />
      <${History} path=${path} name=${name} query=${query} />`}
    <${Cli} lines=${[`podmesh schedule show ${quote(name)}`, `podmesh schedule history ${quote(name)}`]} />`;
}
