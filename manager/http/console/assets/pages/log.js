// Output, as it comes. The page keeps the last lines only, so that a log of any length does not
// fill the browser. Lines are text, never HTML, and are added without a virtual DOM.

import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { pause, Problem, stream } from "../api.js";
import { html, matches, Notice } from "../parts.js";
import { visible } from "../text.js";

export const LINES_MAX = 5000;
// A longer line is shown in pieces.
const LINE_CHARS_MAX = 10_000;
const RETRY_MS = 1000;
// How near to its end the box must be to stay there, in pixels.
const NEAR = 40;

// The lines in the box. Text is added before the next frame, all at once.
class Lines {
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
    this.fresh = [];
    // The last line, which has not ended yet.
    this.rest = "";
    this.open = document.createElement("div");
    this.box.replaceChildren(this.open);
    this.removed = 0;
    this.wanted = "";
    this.frame = null;
  }

  add(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    for (const line of lines) this.fresh.push(...pieces(line.replace(/\r$/, "")));
    const [last, ...before] = pieces(this.rest).reverse();
    this.fresh.push(...before.reverse());
    this.rest = last;
    // A tab in the background has no frames.
    if (this.fresh.length > 2 * LINES_MAX) this.removed += this.fresh.splice(0, this.fresh.length - LINES_MAX).length;
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const { box } = this;
    const follows = box.scrollTop + box.clientHeight >= box.scrollHeight - NEAR;
    const over = this.fresh.length - LINES_MAX;
    if (over > 0) this.removed += this.fresh.splice(0, over).length;
    const fragment = document.createDocumentFragment();
    for (const line of this.fresh) fragment.append(this.element(line));
    this.fresh = [];
    box.insertBefore(fragment, this.open);
    while (box.childElementCount - 1 > LINES_MAX) {
      box.firstElementChild.remove();
      this.removed += 1;
    }
    this.open.textContent = visible(this.rest);
    this.open.hidden = !matches(this.wanted, this.open.textContent);
    if (follows) box.scrollTop = box.scrollHeight;
    this.count();
  }

  element(line) {
    const element = document.createElement("div");
    element.textContent = visible(line);
    element.hidden = !matches(this.wanted, element.textContent);
    return element;
  }

  find(wanted) {
    this.wanted = wanted;
    for (const line of this.box.children) line.hidden = !matches(wanted, line.textContent);
    this.count();
  }

  count() {
    let found = 0;
    let all = 0;
    for (const line of this.box.children) {
      if (line === this.open && this.rest === "") continue;
      all += 1;
      if (!line.hidden) found += 1;
    }
    this.changed({ all, found, removed: this.removed });
  }

  end() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
  }
}

function pieces(line) {
  const parts = [];
  for (; line.length > LINE_CHARS_MAX; line = line.slice(LINE_CHARS_MAX)) parts.push(line.slice(0, LINE_CHARS_MAX));
  return [...parts, line];
}

// Reads until the end of the output. After an interruption it goes on where it was.
async function read(path, lines, signal, say) {
  let lastId = null;
  let ended = false;
  const onEvent = ({ kind, id, data }) => {
    if (kind === "problem") throw new Problem(data);
    if (kind === "end") ended = true;
    else if (data) lines.add(data.text);
    if (id !== undefined) lastId = id;
  };
  while (!signal.aborted && !ended) {
    say({ state: "reading", problem: null });
    try {
      await stream(path, { lastId, signal, onEvent });
    } catch (problem) {
      if (signal.aborted) return;
      const passes = problem.status === undefined || problem.status === 0 || problem.status >= 500;
      say({ state: passes ? "interrupted" : "stopped", problem: problem.status ? problem : null });
      if (!passes) return;
    }
    if (!ended) await pause(RETRY_MS, signal);
  }
  if (!signal.aborted) say({ state: "ended", problem: null });
}

const SAID = {
  reading: "Shown as it comes.",
  interrupted: "The connection was interrupted; trying again.",
  stopped: "The output cannot be read.",
  ended: "This is all the output that there was.",
};

export function Log({ path }) {
  const box = useRef();
  const lines = useRef();
  const [count, setCount] = useState({ all: 0, found: 0, removed: 0 });
  const [{ state, problem }, say] = useState({ state: "reading", problem: null });
  const [wanted, setWanted] = useState("");
  useEffect(() => {
    const aborter = new AbortController();
    lines.current = new Lines(box.current, setCount);
    read(path, lines.current, aborter.signal, say);
    return () => {
      aborter.abort();
      lines.current.end();
    };
  }, [path]);
  const find = (event) => {
    setWanted(event.target.value);
    lines.current.find(event.target.value);
  };
  return html`
    <label>Find lines <input type="search" data-find="true" value=${wanted} onInput=${find} autocomplete="off" spellcheck="false" /></label>
    <p class="quiet">
      ${wanted ? `${count.found.toLocaleString("en")} of ` : ""}${count.all.toLocaleString("en")} lines. ${SAID[state]}
      ${` Only the last ${LINES_MAX.toLocaleString("en")} lines are kept here`}${count.removed > 0 ? `; ${count.removed.toLocaleString("en")} older ones were removed.` : "."}
    </p>
    <${Notice} problem=${problem} />
    <div class="log" ref=${box} tabindex="0" role="log" aria-live="off" aria-label="Output"></div>`;
}
