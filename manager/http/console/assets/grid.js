// The tasks of a job as a grid of signs, also for 100,000 of them. Only what is seen is drawn, on a
// canvas, and only its tasks are asked for, in pages. The table below has the same for those who
// cannot see a picture.

import { useEffect, useRef, useState } from "./vendor/hooks.mjs";
import { ask } from "./api.js";
import { subscribe } from "./live.js";
import { html, signOf } from "./parts.js";
import { link } from "./route.js";

// Width and height of a task, in pixels.
const CELL = 16;
// Tasks of one request: as many as the API gives.
const PAGE = 1000;
// Pages are read again at most this often.
const PAUSE_MS = 500;
// A browser has six connections to a server; others need them too.
const REQUESTS_MAX = 2;
const STATES = ["unknown", "queued", "active", "succeeded", "failed", "cancelled"];

// Where the task of an event is in the grid, or null.
function indexOf(event, job) {
  const [of, index] = (event.task ?? "").split(".");
  return of === job ? Number(index) : null;
}

class Grid {
  constructor({ box, canvas, room }, { job, first, last, tell }) {
    Object.assign(this, { box, canvas, room, job, first, tell });
    this.total = last - first + 1;
    this.states = new Uint8Array(this.total);
    // Pages by how they are: absent, "fresh" or "stale".
    this.pages = new Map();
    this.requests = 0;
    this.aborter = new AbortController();
    this.frame = null;
    this.timer = null;
    // The task that the keyboard or the pointer is at, counted from the first.
    this.at = null;
    this.resized = new ResizeObserver(() => this.measure());
    this.resized.observe(box);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.paint = () => (this.readColours(), this.plan());
    this.scheme.addEventListener("change", this.paint);
    this.readColours();
    this.measure();
  }

  end() {
    this.aborter.abort();
    this.resized.disconnect();
    this.scheme.removeEventListener("change", this.paint);
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.signs = STATES.map((word) => {
      const [kind, sign] = word === "unknown" ? ["line", "·"] : signOf(word);
      return [colour(kind), sign];
    });
    this.mark = colour("text");
  }

  measure() {
    const scale = devicePixelRatio;
    this.width = this.box.clientWidth;
    this.height = this.box.clientHeight;
    this.columns = Math.max(1, Math.floor(this.width / CELL));
    this.room.style.height = `${Math.ceil(this.total / this.columns) * CELL}px`;
    this.canvas.width = this.width * scale;
    this.canvas.height = this.height * scale;
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    this.plan();
  }

  plan() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  // The tasks that are seen, counted from the first.
  seen() {
    const from = Math.floor(this.box.scrollTop / CELL) * this.columns;
    const rows = Math.ceil(this.height / CELL) + 1;
    return [from, Math.min(from + rows * this.columns, this.total)];
  }

  draw() {
    this.frame = null;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    pen.font = `${CELL - 4}px ui-monospace, monospace`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const top = this.box.scrollTop;
    const [from, to] = this.seen();
    // State by state, so that the colour changes seldom.
    for (const [state, [colour, sign]] of this.signs.entries()) {
      pen.fillStyle = colour;
      for (let at = from; at < to; at += 1) {
        if (this.states[at] !== state) continue;
        const [x, y] = this.place(at, top);
        pen.fillText(sign, x + CELL / 2, y + CELL / 2);
      }
    }
    if (this.at !== null) {
      const [x, y] = this.place(this.at, top);
      pen.strokeStyle = this.mark;
      pen.lineWidth = 2;
      pen.strokeRect(x + 1, y + 1, CELL - 2, CELL - 2);
    }
    this.read();
  }

  place(at, top) {
    return [(at % this.columns) * CELL, Math.floor(at / this.columns) * CELL - top];
  }

  // Asks for pages that are seen and absent or stale.
  read() {
    const [from, to] = this.seen();
    for (let page = Math.floor(from / PAGE); page * PAGE < to; page += 1) {
      if (this.requests >= REQUESTS_MAX) return;
      const known = this.pages.get(page);
      if (known === undefined || (known === "stale" && this.timer === null)) this.load(page);
    }
  }

  async load(page) {
    this.requests += 1;
    this.pages.set(page, "fresh");
    try {
      const from = this.first + page * PAGE;
      const { tasks } = await ask(`/jobs/${this.job}/tasks?from=${from}&limit=${PAGE}`, { signal: this.aborter.signal });
      for (const { index, state } of tasks) this.states[index - this.first] = Math.max(0, STATES.indexOf(state));
    } catch {
      // The table says what is wrong. The page is asked for again after a while.
      this.pages.set(page, "stale");
    }
    this.requests -= 1;
    if (this.aborter.signal.aborted) return;
    this.timer ??= setTimeout(() => ((this.timer = null), this.plan()), PAUSE_MS);
    this.plan();
  }

  // An event, or null if some may have been missed.
  changed(event) {
    if (event === null || event.event === "job_ended" || event.event === "job_cancel_requested") {
      for (const page of this.pages.keys()) this.pages.set(page, "stale");
    } else {
      const page = Math.floor((indexOf(event, this.job) - this.first) / PAGE);
      if (this.pages.has(page)) this.pages.set(page, "stale");
    }
    this.plan();
  }

  choose(at) {
    this.at = at === null ? null : Math.min(Math.max(at, 0), this.total - 1);
    this.tell(this.at === null ? null : { index: this.first + this.at, state: STATES[this.states[this.at]] });
    this.plan();
  }

  // Chooses the task below the pointer.
  point(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - left) / CELL);
    const at = Math.floor((event.clientY - top + this.box.scrollTop) / CELL) * this.columns + column;
    this.choose(column < this.columns && at < this.total ? at : null);
  }

  key(event) {
    const rows = Math.max(1, Math.floor(this.height / CELL) - 1) * this.columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: rows, PageUp: -rows, Home: -this.total, End: this.total };
    if (event.key === "Enter" && this.at !== null) return this.open();
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.choose(this.at === null ? this.seen()[0] : this.at + step);
    const y = Math.floor(this.at / this.columns) * CELL;
    if (y < this.box.scrollTop) this.box.scrollTop = y;
    else if (y + CELL > this.box.scrollTop + this.height) this.box.scrollTop = y + CELL - this.height;
  }

  open() {
    if (this.at !== null) location.hash = link("jobs", this.job, "tasks", this.first + this.at);
  }
}

export function TaskGrid({ job, first, last }) {
  const [box, canvas, room, grid] = [useRef(), useRef(), useRef(), useRef()];
  const [chosen, tell] = useState(null);
  useEffect(() => {
    const parts = { box: box.current, canvas: canvas.current, room: room.current };
    const made = new Grid(parts, { job, first, last, tell });
    grid.current = made;
    const stop = subscribe((event) => {
      if (event === null || String(event.job) === job) made.changed(event);
    });
    return () => (stop(), made.end());
  }, [job, first, last]);
  const legend = STATES.slice(1).map((word) => `${signOf(word)[1]} ${word}`).join(", ");
  return html`<section>
    <h2>All tasks</h2>
    <div class="grid" ref=${box} tabindex="0" role="group" aria-label="A picture of all tasks. The arrow keys choose a task, Enter opens it."
      onScroll=${() => grid.current.plan()} onKeyDown=${(event) => grid.current.key(event)}>
      <div ref=${room}>
        <canvas ref=${canvas} aria-hidden="true" onPointerMove=${(event) => grid.current.point(event)} onClick=${(event) => (grid.current.point(event), grid.current.open())}></canvas>
      </div>
    </div>
    <p class="quiet" role="status">${chosen ? `Task ${job}.${chosen.index}: ${chosen.state}` : legend}</p>
  </section>`;
}
