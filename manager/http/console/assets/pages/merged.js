// Output of several tasks or replicas in one window, each line with where it comes from.

import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { usePath } from "../live.js";
import { Lines, LINES_MAX } from "../lines.js";
import { followOutput } from "../output.js";
import { Choice, Cli, Heading, html, jobLink, Name, Pending, serviceLink } from "../parts.js";
import { quote, visible } from "../text.js";

// A browser has six connections to a server. The events need one, and other requests two.
const STREAMS_MAX = 3;
// Lines of each output before those that come now.
const LINES_BEFORE = 200;
// Sources that wait until another one has ended.
const SOURCES_MAX = 1000;

// Ends the colour of the line before, which may be of another source.
const RESET = "\u001b[0m";

class Merge {
  constructor(box, stream, counted, tell) {
    Object.assign(this, { stream, tell });
    this.lines = new Lines(box, counted);
    this.aborter = new AbortController();
    this.known = new Set();
    this.waiting = [];
    this.running = 0;
  }

  end() {
    this.aborter.abort();
    this.lines.end();
  }

  // Adds the sources `{ attempt, label }` that are not known yet.
  add(sources) {
    for (const source of sources.filter(({ attempt }) => !this.known.has(attempt))) {
      this.known.add(source.attempt);
      this.waiting.push(source);
    }
    this.start();
  }

  start() {
    while (this.running < STREAMS_MAX && this.waiting.length > 0) this.read(this.waiting.shift());
    this.tell({ running: this.running, waiting: this.waiting.length });
  }

  async read({ attempt, label }) {
    const [, job, index, number] = /^(\d+)\.(\d+)#(\d+)$/.exec(attempt);
    const path = `/jobs/${job}/tasks/${index}/log`;
    const query = { attempt: number, stream: this.stream, follow: true };
    let rest = "";
    const show = (lines) => lines.length > 0 && this.lines.add(lines.map((line) => `${RESET}${label}: ${line}\n`).join(""), 0, 0);
    const onText = (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop();
      show(lines);
    };
    this.running += 1;
    const { signal } = this.aborter;
    await followOutput({ path, query, lines: LINES_BEFORE, signal, onText, say: () => {} });
    if (signal.aborted) return;
    if (rest !== "") show([rest]);
    this.running -= 1;
    this.start();
  }
}

function Merged({ sources, stream }) {
  const [box, merge] = [useRef(), useRef()];
  const [count, setCount] = useState({ all: 0, found: 0 });
  const [{ running, waiting }, tell] = useState({ running: 0, waiting: 0 });
  const [wanted, setWanted] = useState("");
  useEffect(() => {
    merge.current = new Merge(box.current, stream, setCount, tell);
    return () => merge.current.end();
  }, []);
  useEffect(() => merge.current.add(sources), [sources]);
  const find = (event) => {
    setWanted(event.target.value);
    merge.current.lines.find(event.target.value);
  };
  const number = (value) => value.toLocaleString("en");
  return html`
    <label>Find in these lines <input type="search" data-find="true" value=${wanted} onInput=${find} autocomplete="off" spellcheck=${false} /></label>
    <p class="quiet">
      ${wanted ? `${number(count.found)} of ` : ""}${number(count.all)} lines, at most ${number(LINES_MAX)} at a time. Outputs that are read now: ${number(running)}, at most ${STREAMS_MAX}${waiting > 0 ? `; ${number(waiting)} more wait until one of them has ended` : ""}.
    </p>
    <div class="log" ref=${box} tabindex="0" role="log" aria-live="off" aria-label="Output"></div>`;
}

function Page({ title, back, sources, problem, query, command }) {
  const stream = query.stream === "stderr" ? "stderr" : "stdout";
  return html`
    <${Heading}>${title}<//>
    <p>${back}</p>
    <${Pending} value=${sources} problem=${problem} />
    ${sources && html`
      <div class="filters">
        <${Choice} label="Stream" name="stream" value=${stream} options=${[["stdout", "standard output"], ["stderr", "standard error"]]} />
      </div>
      <${Merged} key=${stream} sources=${sources} stream=${stream} />`}
    <${Cli} lines=${[`${command} --stream ${stream}`]} />`;
}

export function JobOutput({ parts: [, job], query }) {
  const concerns = (event) => String(event.job) === job;
  const { value, problem } = usePath(`/jobs/${encodeURIComponent(job)}/tasks?limit=${SOURCES_MAX}`, { concerns });
  const attempts = value?.tasks.map((task) => task.last_attempt).filter(Boolean);
  // Those that have ended do not wait for those that run.
  attempts?.sort((a, b) => (a.outcome === null) - (b.outcome === null));
  const sources = attempts?.map(({ attempt }) => ({ attempt, label: attempt.split("#")[0] }));
  return html`<${Page} title=${`Output of job ${visible(job)}`} back=${html`Job ${jobLink(job)}`} sources=${sources ?? null} problem=${problem} query=${query} command=${`podmesh logs -f ${quote(job)}`} />`;
}

export function ServiceOutput({ parts: [, name], query }) {
  const { value, problem } = usePath(`/services/${encodeURIComponent(name)}`);
  const replicas = value?.replica_list.filter(({ attempt }) => attempt);
  const sources = replicas?.map(({ number, revision, attempt }) => ({ attempt, label: `${number} (revision ${revision})` }));
  return html`<${Page} title=${html`Output of service <${Name}>${name}<//>`} back=${serviceLink(name)} sources=${sources ?? null} problem=${problem} query=${query} command=${`podmesh logs -f ${quote(name)}`} />`;
}
