// A window of lines of output in a box: never more than a bounded number, however long the output
// is. Lines are text, never HTML, and are added without a virtual DOM.

import { painter } from "./ansi.js";
import { matches } from "./parts.js";
import { visible } from "./text.js";

export const LINES_MAX = 5000;
// Lines that a step towards the beginning or the end adds.
export const STEP_LINES = 2500;
// A longer line is shown in pieces.
const LINE_CHARS_MAX = 10_000;
// How near to its end the box must be to stay there, in pixels.
const NEAR = 40;

const encoder = new TextEncoder();
const sizeOf = (text) => encoder.encode(text).length;

function pieces(line) {
  const parts = [];
  for (; line.text.length > LINE_CHARS_MAX; ) {
    const text = line.text.slice(0, LINE_CHARS_MAX);
    parts.push({ text, offset: line.offset });
    line = { text: line.text.slice(LINE_CHARS_MAX), offset: line.offset + sizeOf(text) };
  }
  return [...parts, line];
}

// Returns the lines `{ text, offset }` of bytes that begin at an offset, and what is left after the
// last line break.
export function split(bytes, offset) {
  const decoder = new TextDecoder();
  const lines = [];
  let from = 0;
  for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, from)) {
    lines.push({ text: decoder.decode(bytes.subarray(from, end)), offset: offset + from });
    from = end + 1;
  }
  return { lines, rest: { text: decoder.decode(bytes.subarray(from)), offset: offset + from } };
}

export class Lines {
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
    this.wanted = "";
    this.frame = null;
    this.open = document.createElement("div");
    this.clear();
  }

  clear() {
    this.box.replaceChildren(this.open);
    this.fresh = [];
    // The last line, which has not ended yet.
    this.rest = { text: "", offset: 0 };
    this.began = false;
    this.paint = painter();
    this.plan();
  }

  // Where the first line begins, in bytes.
  get first() {
    return this.box.firstElementChild?.offset ?? this.fresh[0]?.offset ?? this.rest.offset;
  }

  // Adds text as it comes, from one offset to another. It is shown with the next frame.
  add(text, offset, after) {
    if (!this.began || this.rest.text === "") this.rest = { text: "", offset };
    this.began = true;
    const parts = (this.rest.text + text).split("\n");
    let at = this.rest.offset;
    const last = parts.pop();
    for (const part of parts) {
      this.fresh.push(...pieces({ text: part, offset: at }));
      at += sizeOf(part) + 1;
    }
    // Bytes that are not text make the sum wrong; the server knows.
    const ends = pieces({ text: last, offset: after - sizeOf(last) });
    this.rest = ends.pop();
    this.fresh.push(...ends);
    // A tab in the background has no frames.
    if (this.fresh.length > 2 * LINES_MAX) this.fresh.splice(0, this.fresh.length - LINES_MAX);
    this.plan();
  }

  plan() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const { box } = this;
    const follows = box.scrollTop + box.clientHeight >= box.scrollHeight - NEAR;
    box.insertBefore(this.elements(this.fresh.slice(-LINES_MAX)), this.open);
    this.fresh = [];
    while (box.childElementCount - 1 > LINES_MAX) box.firstElementChild.remove();
    this.drawRest();
    if (follows) box.scrollTop = box.scrollHeight;
    this.count();
  }

  drawRest() {
    this.open.textContent = visible(this.rest.text);
    this.open.offset = this.rest.offset;
    this.open.hidden = !matches(this.wanted, this.open.textContent);
  }

  elements(lines, paint = this.paint) {
    const fragment = document.createDocumentFragment();
    for (const line of lines) {
      const element = document.createElement("div");
      for (const [text, classes] of paint(line.text.replace(/\r$/, ""))) {
        if (classes === "") element.append(visible(text));
        else element.append(Object.assign(document.createElement("span"), { className: classes, textContent: visible(text) }));
      }
      element.offset = line.offset;
      element.hidden = !matches(this.wanted, element.textContent);
      fragment.append(element);
    }
    return fragment;
  }

  // Puts whole lines before the first one. Returns whether lines at the end had to go.
  before(lines) {
    this.draw();
    const { box } = this;
    const first = box.firstElementChild;
    box.prepend(this.elements(lines.flatMap(pieces).slice(-STEP_LINES), painter()));
    const over = box.childElementCount - 1 - LINES_MAX;
    for (let n = 0; n < over; n += 1) {
      this.rest = { text: "", offset: this.open.previousElementSibling.offset };
      this.open.previousElementSibling.remove();
    }
    this.drawRest();
    this.show(first);
    this.count();
    return over > 0;
  }

  // Puts lines, and what follows the last line break, at the end. Returns whether all had room.
  after(lines, rest) {
    this.draw();
    const { box } = this;
    const all = lines.flatMap(pieces);
    const last = this.open.previousElementSibling;
    box.insertBefore(this.elements(all.slice(0, STEP_LINES)), this.open);
    const whole = all.length <= STEP_LINES;
    this.rest = whole ? rest : { text: "", offset: all[STEP_LINES].offset };
    this.began = true;
    while (box.childElementCount - 1 > LINES_MAX) box.firstElementChild.remove();
    this.drawRest();
    if (last !== null) this.show(last);
    this.count();
    return whole;
  }

  // Scrolls to a line, so that lines before and after it are seen.
  show(line) {
    const { box } = this;
    box.scrollTop = line.offsetTop - box.offsetTop - box.clientHeight / 2;
  }

  // Marks the line that begins there, and scrolls to it.
  mark(offset) {
    const line = [...this.box.children].find((one) => one.offset === offset && one.textContent !== "");
    if (line === undefined) return;
    line.classList.add("found");
    this.show(line);
  }

  // Where the bytes begin that are not in the window.
  get next() {
    return this.rest.offset;
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
      if (line === this.open && this.rest.text === "") continue;
      all += 1;
      if (!line.hidden) found += 1;
    }
    this.changed({ all, found, first: this.first });
  }

  end() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
  }
}
