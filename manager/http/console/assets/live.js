// One stream of events for the whole page, and values that are asked for again when something
// happens. Nothing is polled.

import { useEffect, useState } from "./vendor/hooks.mjs";
import { ask, pause, Problem, stream } from "./api.js";

// A value is asked for at most this often.
const PAUSE_MS = 400;
const RETRY_MS = 1000;

const readers = new Set();
const watchers = new Set();
let status = "connecting";

// Calls `read(event)` for each event, and `read(null)` when some may have been missed.
export function subscribe(read) {
  readers.add(read);
  return () => readers.delete(read);
}

const tell = (event) => readers.forEach((read) => read(event));

function become(next) {
  status = next;
  watchers.forEach((watch) => watch(next));
}

// `connecting`, `live` or `interrupted`.
export function useStatus() {
  const [value, set] = useState(status);
  useEffect(() => {
    set(status);
    watchers.add(set);
    return () => watchers.delete(set);
  }, []);
  return value;
}

// Follows the events until `signal` is aborted. After an interruption it resumes with the next event.
export async function follow(signal) {
  let lastId = null;
  become("connecting");
  while (!signal.aborted) {
    try {
      const onOpen = () => (become("live"), tell(null));
      const onEvent = ({ id, kind, data }) => {
        if (kind === "problem") throw new Problem(data);
        if (id !== undefined) lastId = id;
        if (data !== undefined) tell(data);
      };
      await stream("/events", { lastId, signal, onOpen, onEvent });
    } catch (problem) {
      if (signal.aborted || problem.status === 401) return;
      // These events are no longer kept: go on from now.
      if (problem.status === 410) lastId = null;
    }
    if (signal.aborted) return;
    become("interrupted");
    await pause(RETRY_MS, signal);
  }
}

// Returns `{ value, problem }`, and asks again when an event concerns it. `load(signal)` returns the
// value; `inputs` are what it depends on. The old value stays until the new one is there.
export function useLive(load, inputs, { concerns = () => true, pauseMs = PAUSE_MS } = {}) {
  const [state, set] = useState({ value: null, problem: null });
  useEffect(() => {
    const aborter = new AbortController();
    const { signal } = aborter;
    let [timer, busy, again, last] = [null, false, false, -Infinity];
    const run = async () => {
      timer = null;
      busy = true;
      again = false;
      try {
        const value = await load(signal);
        if (!signal.aborted) set({ value, problem: null });
      } catch (problem) {
        if (!signal.aborted) set((before) => ({ ...before, problem }));
      }
      busy = false;
      last = performance.now();
      if (again && !signal.aborted) plan();
    };
    const plan = () => {
      if (busy) again = true;
      else timer ??= setTimeout(run, Math.max(0, last + pauseMs - performance.now()));
    };
    plan();
    const stop = subscribe((event) => {
      if (event === null || concerns(event)) plan();
    });
    return () => {
      stop();
      clearTimeout(timer);
      aborter.abort();
    };
  }, inputs);
  return state;
}

// The same for one path of the API.
export function usePath(path, options) {
  return useLive((signal) => ask(path, { signal }), [path], options);
}
