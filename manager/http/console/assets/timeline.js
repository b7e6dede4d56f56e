// When the attempts of a job ran, node by node. All times are of the manager's clock.

import { ask } from "./api.js";
import { useLive } from "./live.js";
import { html, nodeLink, Pending, signOf } from "./parts.js";
import { duration, plural, time } from "./text.js";

// Tasks of which the attempts are shown.
const TASKS_MAX = 500;
// Tasks with several attempts of which the earlier ones are shown too.
const RETRIED_MAX = 20;
const PAUSE_MS = 1000;
// Units of the picture's width.
const WIDTH = 1000;
// Attempts at the same time on one node are below each other, in this many lanes of this height.
const LANES_MAX = 12;
const LANE = 8;

async function load(job, signal) {
  const [page, info] = await Promise.all([ask(`/jobs/${job}/tasks?limit=${TASKS_MAX}`, { signal }), ask("/info", { signal })]);
  const retried = page.tasks.filter(({ attempts }) => attempts > 1).slice(0, RETRIED_MAX);
  const earlier = await Promise.all(retried.map(({ index }) => ask(`/jobs/${job}/tasks/${index}`, { signal })));
  const last = page.tasks.map(({ last_attempt: attempt }) => attempt).filter(Boolean);
  const before = earlier.flatMap(({ attempts }) => attempts.slice(0, -1));
  return { attempts: [...before, ...last].map((attempt) => bar(attempt, info.time)), whole: !page.more && retried.length < RETRIED_MAX };
}

function bar({ attempt, node, outcome, state, started_at: started, assigned_at: assigned, ended_at: ended }, now) {
  return { attempt, node, word: outcome?.kind ?? state, from: Date.parse(started ?? assigned), to: Date.parse(ended ?? now) };
}

// Gives each attempt the first lane that is free at its start.
function lanes(bars) {
  const ends = [];
  return bars.toSorted((a, b) => a.from - b.from).map((one) => {
    let lane = ends.findIndex((end) => end <= one.from);
    if (lane < 0) lane = Math.min(ends.length, LANES_MAX - 1);
    ends[lane] = Math.max(ends[lane] ?? 0, one.to);
    return { ...one, lane };
  });
}

function Row({ node, bars, from, span }) {
  const placed = lanes(bars);
  const height = (Math.max(...placed.map(({ lane }) => lane)) + 1) * LANE;
  const failed = bars.filter(({ word }) => signOf(word)[0] === "bad").length;
  const text = `${plural(bars.length, "attempt")}${failed > 0 ? `, ${failed.toLocaleString("en")} of them failed` : ""}`;
  return html`<li>
    <div>${nodeLink(node)} <span class="quiet">${text}</span></div>
    <svg viewBox=${`0 0 ${WIDTH} ${height}`} height=${height} preserveAspectRatio="none" aria-hidden="true">
      ${placed.map(({ attempt, word, from: start, to, lane }) => html`<rect key=${attempt} class=${signOf(word)[0]}
        x=${((start - from) / span) * WIDTH} y=${lane * LANE + 1} width=${Math.max(((to - start) / span) * WIDTH, 2)} height=${LANE - 2}>
        <title>${`${attempt}: ${word.replaceAll("_", " ")}, ${duration(to - start)}`}</title>
      </rect>`)}
    </svg>
  </li>`;
}

function Shown({ attempts }) {
  const from = Math.min(...attempts.map((one) => one.from));
  const to = Math.max(...attempts.map((one) => one.to));
  const nodes = Map.groupBy(attempts, ({ node }) => node);
  const names = [...nodes.keys()].sort();
  return html`
    <ul class="timeline">${names.map((node) => html`<${Row} key=${node} node=${node} bars=${nodes.get(node)} from=${from} span=${Math.max(to - from, 1)} />`)}</ul>
    <p class="quiet ends"><span>${time(new Date(from).toISOString())}</span> <span>${duration(to - from)}</span> <span>${time(new Date(to).toISOString())}</span></p>
    <p class="quiet">A hollow bar is an attempt that failed. The table of tasks below says how each ended.</p>`;
}

export function Timeline({ job, concerns }) {
  const { value, problem } = useLive((signal) => load(job, signal), [job], { concerns, pauseMs: PAUSE_MS });
  if (value?.attempts.length === 0) return null;
  return html`<section>
    <h2>When it ran, and where</h2>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Shown} attempts=${value.attempts} />`}
    ${value && !value.whole && html`<p class="quiet">These are the last attempts of the first ${TASKS_MAX} tasks.</p>`}
  </section>`;
}
