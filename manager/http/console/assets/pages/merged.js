// Output of several tasks or replicas in one window, each line with where it comes from.

import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { pause, Problem, stream } from "../api.js";
import { Lines, LINES_MAX } from "../lines.js";
import { Choice, Cli, Heading, html, jobLink, Name, Notice, serviceLink } from "../parts.js";
import { withQuery } from "../route.js";
import { quote, visible } from "../text.js";

// Lines of each output before those that come now.
const LINES_BEFORE = 200;
const RETRY_MS = 1000;

// Ends the colour of the line before, which may be of another source.
const RESET = "\u001b[0m";

// Shows the output until `signal` is aborted. After an interruption it begins anew.
async function follow(path, lines, signal, say) {
  let ended = false;
  const onOpen = () => (lines.clear(), say("reading"));
  const onEvent = ({ kind, data }) => {
    if (kind === "problem") throw new Problem(data);
    if (kind === "end") ended = true;
    else if (data) lines.add(textOf(data), 0, 0);
  };
  while (!signal.aborted && !ended) {
    try {
      await stream(path, { signal, onOpen, onEvent });
    } catch (problem) {
      if (signal.aborted) return;
      say("interrupted", problem.status ? problem : null);
      if (problem.status >= 400 && problem.status < 500) return;
    }
    if (!ended) await pause(RETRY_MS, signal);
  }
  if (!signal.aborted) say("ended");
}

function textOf({ label, text, problem }) {
  const lines = problem ? [`[${problem}]`] : text.split("\n").slice(0, -1);
  return lines.map((line) => `${RESET}${label}: ${line}\n`).join("");
}

const WORDS = {
  reading: "New lines appear as they come.",
  interrupted: "The connection is interrupted; it is opened again.",
  ended: "This is all the output that there was.",
};

function Merged({ path }) {
  const [box, lines] = [useRef(), useRef()];
  const [count, setCount] = useState({ all: 0, found: 0 });
  const [{ state, problem }, set] = useState({ state: "reading", problem: null });
  const [wanted, setWanted] = useState("");
  useEffect(() => {
    const aborter = new AbortController();
    lines.current = new Lines(box.current, setCount);
    follow(path, lines.current, aborter.signal, (state, problem = null) => set({ state, problem }));
    return () => {
      aborter.abort();
      lines.current.end();
    };
  }, []);
  const find = (event) => {
    setWanted(event.target.value);
    lines.current.find(event.target.value);
  };
  const number = (value) => value.toLocaleString("en");
  return html`
    <label>Find in these lines <input type="search" data-find="true" value=${wanted} onInput=${find} autocomplete="off" spellcheck=${false} /></label>
    <${Notice} problem=${problem} />
    <p class="quiet">${wanted ? `${number(count.found)} of ` : ""}${number(count.all)} lines, at most ${number(LINES_MAX)} at a time. ${WORDS[state]}</p>
    <div class="log" ref=${box} tabindex="0" role="log" aria-live="off" aria-label="Output"></div>`;
}

function Page({ title, back, path, query, command }) {
  const stream = query.stream === "stderr" ? "stderr" : "stdout";
  return html`
    <${Heading}>${title}<//>
    <p>${back}</p>
    <div class="filters">
      <${Choice} label="Stream" name="stream" value=${stream} options=${[["stdout", "standard output"], ["stderr", "standard error"]]} />
    </div>
    <${Merged} key=${stream} path=${withQuery(path, { stream, follow: true, tail: LINES_BEFORE })} />
    <${Cli} lines=${[`${command} --stream ${stream}`]} />`;
}

export function JobOutput({ parts: [, job], query }) {
  return html`<${Page} title=${`Output of job ${visible(job)}`} back=${html`Job ${jobLink(job)}`} path=${`/jobs/${encodeURIComponent(job)}/log`} query=${query} command=${`podmesh logs -f ${quote(job)}`} />`;
}

export function ServiceOutput({ parts: [, name], query }) {
  return html`<${Page} title=${html`Output of service <${Name}>${name}<//>`} back=${serviceLink(name)} path=${`/services/${encodeURIComponent(name)}/log`} query=${query} command=${`podmesh logs -f ${quote(name)}`} />`;
}
