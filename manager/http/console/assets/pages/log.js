// Output of one attempt, as it comes, and any other part of it. The page keeps a window of lines, so
// that an output of any length does not fill the browser.

import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { ask, bytesOf, download } from "../api.js";
import { Lines, LINES_MAX, split } from "../lines.js";
import { followOutput } from "../output.js";
import { html, Notice } from "../parts.js";
import { withQuery } from "../route.js";
import { bytes } from "../text.js";

export { LINES_MAX };
// Bytes of one step towards the beginning or the end.
const STEP_BYTES = 256 * 1024;
// How near to an edge of the box the next part is read, in pixels.
const NEAR = 40;

const SAID = {
  reading: "Shown as it comes.",
  held: "There is more after this.",
  interrupted: "The connection was interrupted; trying again.",
  stopped: "The output cannot be read.",
  ended: "This is all the output that there was.",
};

// Reads one output into a box.
class Reader {
  constructor(box, { path, query, follow, count, say }) {
    Object.assign(this, { path, query, follow, say });
    // Where the output begins that is still kept, as far as is known.
    this.begins = 0;
    this.looked = false;
    this.lines = new Lines(box, (counted) => {
      if (counted.first > 0 && !this.looked) this.look();
      count({ ...counted, begins: this.begins });
    });
    this.aborter = new AbortController();
    this.searcher = new AbortController();
    this.stepping = false;
    this.last();
  }

  end() {
    this.aborter.abort();
    this.searcher.abort();
    this.lines.end();
  }

  // Ends what is being read. Returns the signal for what is read instead.
  stop() {
    this.aborter.abort();
    this.aborter = new AbortController();
    return this.aborter.signal;
  }

  // Shows the last lines, and what comes after them.
  last() {
    this.lines.clear();
    this.run(this.stop(), null);
  }

  // Reads from an offset on until the end of the output.
  run(signal, lastId) {
    const { path, lines, say } = this;
    const onText = (text, from, to) => lines.add(text, from, to);
    followOutput({ path, query: { ...this.query, follow: this.follow }, lines: LINES_MAX, lastId, signal, onText, say });
  }

  // Does one step at a time, with its problem shown.
  async step(act) {
    if (this.stepping) return;
    this.stepping = true;
    try {
      await act();
    } catch (problem) {
      // Something else may be read by now.
      if (problem.name !== "AbortError") this.say({ state: "stopped", problem });
    }
    this.stepping = false;
  }

  // Returns the bytes of a range. If rotation has removed its beginning, they begin later.
  async range(from, to, signal) {
    const part = await bytesOf(withQuery(this.path, this.query), from, to, signal);
    if (part !== null && part.offset > from) this.begins = part.offset;
    return part;
  }

  // Asks where the output begins that is still kept.
  look() {
    this.looked = true;
    // What cannot be read is told by what reads the lines.
    this.range(0, 0, this.aborter.signal).then(() => this.lines.count(), () => {});
  }

  begin = () => this.step(async () => {
    const signal = this.stop();
    this.lines.clear();
    await this.append(0, signal);
    this.lines.box.scrollTop = 0;
  });

  earlier = () => this.step(() => this.prepend());

  // Adds the part before the first line.
  async prepend() {
    const { first } = this.lines;
    if (first <= this.begins) return;
    const from = Math.max(0, first - STEP_BYTES);
    const part = await this.range(from, first - 1, this.aborter.signal);
    // It may have been removed since.
    if (part === null || part.offset >= first) return this.lines.count();
    const { lines } = split(part.bytes, part.offset);
    // The first line of a part is usually the end of one.
    const whole = part.offset === 0 || lines.length < 2 ? lines : lines.slice(1);
    if (this.lines.before(whole)) {
      this.stop();
      this.say({ state: "held", problem: null });
    }
  }

  // Looks for a text in the whole output, and shows the line. Returns the offset after it; null if
  // the text does not come from there on. The server looks through a part at a time.
  async search(text, from, progress) {
    this.searcher.abort();
    this.searcher = new AbortController();
    const { signal } = this.searcher;
    for (let next = from; ; ) {
      const part = await ask(withQuery(`${this.path}/search`, { ...this.query, text, from: next }), { signal });
      next = part.next;
      if (part.found !== null) {
        await this.show(part.found.offset);
        return next;
      }
      if (part.end) return null;
      progress(next);
    }
  }

  // Shows the line that begins there, with what is around it.
  show = (offset) => this.step(async () => {
    const signal = this.stop();
    this.lines.clear();
    this.lines.find("");
    await this.append(offset, signal);
    await this.prepend();
    this.lines.mark(offset);
  });

  later = () => this.step(() => this.append(this.lines.next, this.stop()));

  // Adds the part that begins there. At the end of the output it follows again.
  async append(from, signal) {
    const part = await this.range(from, from + STEP_BYTES - 1, signal);
    const { lines, rest } = part === null ? { lines: [], rest: { text: "", offset: from } } : split(part.bytes, part.offset);
    const reached = part === null || part.bytes.length < STEP_BYTES;
    if (this.lines.after(lines, rest) && reached) this.run(signal, part === null ? from : part.offset + part.bytes.length);
    else this.say({ state: "held", problem: null });
  }
}

export function Log({ path, query, follow }) {
  const box = useRef();
  const reader = useRef();
  const [count, setCount] = useState({ all: 0, found: 0, first: 0, begins: 0 });
  const [{ state, problem }, say] = useState({ state: "reading", problem: null });
  const [wanted, setWanted] = useState("");
  const [saving, setSaving] = useState(null);
  // Where the search goes on, and what to say of it.
  const [search, setSearch] = useState({ from: 0, said: "" });
  useEffect(() => {
    reader.current = new Reader(box.current, { path, query, follow, count: setCount, say });
    return () => reader.current.end();
  }, []);
  const find = (event) => {
    setWanted(event.target.value);
    reader.current.lines.find(event.target.value);
    reader.current.searcher.abort();
    setSearch({ from: 0, said: "" });
  };
  const searchOn = async () => {
    try {
      const progress = (at) => setSearch({ from: at, said: `Searched ${bytes(at)} …` });
      setSearch({ ...search, said: "Searching …" });
      const next = await reader.current.search(wanted, search.from, progress);
      const none = search.from === 0 ? "Not in the output." : "Not in the rest of the output. The next search begins at the first line.";
      setSearch(next === null ? { from: 0, said: none } : { from: next, said: "Found: the line is marked." });
    } catch (failed) {
      if (failed.name !== "AbortError") setSearch({ ...search, said: failed.message });
    }
  };
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    if (scrollTop < NEAR && scrollHeight > clientHeight) reader.current.earlier();
    else if (state === "held" && scrollTop + clientHeight > scrollHeight - NEAR) reader.current.later();
  };
  const save = async () => {
    setSaving("Downloading …");
    try {
      await download(withQuery(path, query), `${path.split("/").filter((part) => /^\d+$/.test(part)).join(".")}.${query.stream}.log`);
      setSaving(null);
    } catch (failed) {
      setSaving(failed.message);
    }
  };
  const number = (value) => value.toLocaleString("en");
  return html`
    <div class="filters">
      <label>Find in these lines <input type="search" data-find="true" value=${wanted} onInput=${find} autocomplete="off" spellcheck=${false} /></label>
      <span class="buttons">
        <button onClick=${searchOn} disabled=${wanted === ""}>${search.from === 0 ? "Search all output" : "Search on"}</button>
        <span role="status">${search.said}</span>
      </span>
      <span class="buttons">
        <button onClick=${() => reader.current.begin()}>First lines</button>
        <button onClick=${() => reader.current.earlier()} disabled=${count.first <= count.begins}>Earlier</button>
        <button onClick=${() => reader.current.later()} disabled=${state !== "held"}>Later</button>
        <button onClick=${() => reader.current.last()}>Last lines</button>
        <button onClick=${save} disabled=${saving === "Downloading …"}>Download</button>
        <span role="status">${saving}</span>
      </span>
    </div>
    <p class="quiet">
      ${wanted ? `${number(count.found)} of ` : ""}${number(count.all)} lines. ${SAID[state]}
      ${count.first > count.begins ? ` ${bytes(count.first - count.begins)} come before this.` : ""}
      ${count.begins > 0 ? ` The first ${bytes(count.begins)} of the output have been removed by rotation.` : ""} At most ${number(LINES_MAX)} lines are shown at a time.
    </p>
    <${Notice} problem=${problem} />
    <div class="log" ref=${box} tabindex="0" role="log" aria-live="off" aria-label="Output" onScroll=${scrolled}></div>`;
}
