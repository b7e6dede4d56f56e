// How many attempts are assigned and end, and how many tasks wait, over the last minutes. From the events,
// as they come.

import { useEffect, useRef, useState } from "./vendor/hooks.mjs";
import { ask } from "./api.js";
import { subscribe } from "./live.js";
import { html } from "./parts.js";

const STEP_MS = 5000;
const STEPS = 60;
// The figures are of this many steps: a minute.
const RECENT = 12;
// How far back the events are read when the page opens.
const BACK = 4000;
const HEIGHT = 30;

const COUNTED = { attempt_assigned: "assigned", attempt_ended: "ended" };
const stepOf = (ms) => Math.floor(ms / STEP_MS);

// Counts by steps of the manager's clock.
class Counts {
  constructor() {
    this.clear();
  }

  clear() {
    this.steps = new Map();
    this.revision = 0;
    // The first step of which every event is known.
    this.since = Infinity;
    this.skew = 0;
  }

  get now() {
    return stepOf(Date.now() + this.skew);
  }

  at(step) {
    if (!this.steps.has(step)) this.steps.set(step, { assigned: 0, ended: 0, queued: null });
    return this.steps.get(step);
  }

  add({ revision, at, event }) {
    if (revision <= this.revision) return;
    this.revision = revision;
    const what = COUNTED[event];
    if (what) this.at(stepOf(Date.parse(at)))[what] += 1;
  }

  forget() {
    for (const step of this.steps.keys()) if (step <= this.now - STEPS) this.steps.delete(step);
  }

  // Returns the values of the last steps; null where they are not known.
  line(what) {
    const { now } = this;
    let queued = null;
    return Array.from({ length: STEPS }, (_, n) => {
      const step = now - STEPS + 1 + n;
      const counts = this.steps.get(step);
      if (what === "queued") return (queued = counts?.queued ?? queued);
      return step < this.since ? null : (counts?.[what] ?? 0);
    });
  }
}

// Reads what has happened lately.
async function read(counts, signal) {
  const { revision, time } = await ask("/info", { signal });
  const since = Math.max(0, revision - BACK);
  const { events } = await ask(`/events?since=${since}`, { signal });
  counts.clear();
  counts.skew = Date.parse(time) - Date.now();
  // The step of the first one may have had others before.
  counts.since = since === 0 ? 0 : stepOf(Date.parse(events[0]?.at ?? time)) + 1;
  events.forEach((event) => counts.add(event));
}

// Returns the counts, drawn anew with every step. `queued` is how many tasks wait now; null if that
// is not known.
export function useRates(queued) {
  const counts = useRef(null);
  counts.current ??= new Counts();
  const [, redraw] = useState(0);
  useEffect(() => {
    const aborter = new AbortController();
    let fresh = [];
    let reading = false;
    const start = async () => {
      if (reading) return;
      reading = true;
      // Without them, only what comes from now on is counted.
      await read(counts.current, aborter.signal).catch(() => {});
      reading = false;
      fresh.forEach((event) => counts.current.add(event));
      fresh = [];
      redraw((n) => n + 1);
    };
    start();
    const stop = subscribe((event) => {
      if (event === null) start();
      else if (reading) fresh.push(event);
      else counts.current.add(event);
    });
    const timer = setInterval(() => {
      counts.current.forget();
      redraw((n) => n + 1);
    }, STEP_MS);
    return () => {
      aborter.abort();
      stop();
      clearInterval(timer);
    };
  }, []);
  useEffect(() => {
    if (queued !== null) counts.current.at(counts.current.now).queued = queued;
  }, [queued, counts.current.now]);
  return counts.current;
}

// Returns how many a second, over the last minute; null while nothing is known.
function rate(values) {
  const known = values.slice(-RECENT).filter((value) => value !== null);
  const sum = known.reduce((total, value) => total + value, 0);
  return known.length === 0 ? null : sum / ((known.length * STEP_MS) / 1000);
}

// Whether it is known that no attempt was assigned for a minute.
export function standsStill(counts) {
  return counts.line("assigned").slice(-RECENT).every((value) => value === 0);
}

const figure = (value) => (value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 }));

function Line({ values }) {
  const most = Math.max(1, ...values.filter((value) => value !== null));
  const y = (value) => (HEIGHT - 1 - (value / most) * (HEIGHT - 2)).toFixed(1);
  const points = values.flatMap((value, n) => (value === null ? [] : [`${n},${y(value)}`]));
  return html`<svg class="spark" viewBox=${`0 0 ${STEPS - 1} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
    <polyline points=${points.join(" ")} />
  </svg>`;
}

// The figures with a line each.
export function Rates({ counts, queued, least }) {
  const assigned = counts.line("assigned");
  const ended = counts.line("ended");
  return html`<dl class="figures rates">
    <div><dt>Assigned a second</dt><dd id="assigned">${figure(rate(assigned))}</dd><dd><${Line} values=${assigned} /></dd></div>
    <div><dt>Ended a second</dt><dd id="ends">${figure(rate(ended))}</dd><dd><${Line} values=${ended} /></dd></div>
    <div><dt>Tasks that wait</dt><dd id="queued">${least}${queued.toLocaleString("en")}</dd><dd><${Line} values=${counts.line("queued")} /></dd></div>
  </dl>
  <p class="quiet">The figures of attempts are of the last minute, the lines of the last ${(STEPS * STEP_MS) / 60_000} minutes. The line of what waits begins when the page is opened.</p>`;
}
