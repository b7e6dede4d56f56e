// Output of an attempt as it comes.

import { pause, Problem, stream } from "./api.js";
import { withQuery } from "./route.js";

const RETRY_MS = 1000;

// Reads the last lines and what follows them, or what follows the offset `lastId`. After an
// interruption it goes on where it was. Calls `onText(text, from, to)` with the offsets of the text,
// and `say({ state, problem })`. Returns at the end of the output, or when `signal` is aborted.
export async function followOutput({ path, query, lines, lastId = null, signal, onText, say }) {
  let ended = false;
  let at = lastId;
  const onEvent = ({ kind, id, data }) => {
    if (kind === "problem") throw new Problem(data);
    if (kind === "end") ended = true;
    else if (data) onText(data.text, data.offset, id);
    if (id !== undefined) at = id;
  };
  const address = withQuery(path, { ...query, tail: lastId === null ? lines : null });
  while (!signal.aborted && !ended) {
    say({ state: "reading", problem: null });
    try {
      await stream(address, { lastId: at, signal, onEvent });
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
