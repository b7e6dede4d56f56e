// Values as text for people.

// Characters that do something instead of being seen: control characters, and those that turn the
// direction of text.
const UNSEEN = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

function show(character) {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code); // ␛ for an escape
  if (code === 0x7f) return "\u2421";
  return `<${code.toString(16).toUpperCase().padStart(4, "0")}>`;
}

// Text from outside, with every character to be seen.
export function visible(text) {
  return String(text).replace(UNSEEN, show);
}

export function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count.toFixed(unit === 0 || count >= 100 ? 0 : 1).replace(/\.0$/, "")} ${UNITS[unit]}`;
}

// Thousandths of a core.
export function cores(millis) {
  return (millis / 1000).toFixed(2).replace(/\.?0+$/, "");
}

// Thousandths of a named resource.
export const amount = (millis) => (millis / 1000).toLocaleString("en");

// What a task or a replica needs: cores, memory, named resources.
export function needs(spec) {
  const named = Object.entries(spec.resource_millis).map(([name, millis]) => `${amount(millis)} ${visible(name)}`);
  const memory = spec.memory_bytes ? bytes(spec.memory_bytes) : "memory without a limit";
  return [`${cores(spec.cpu_millis)} cores`, memory, ...named, ...(spec.exclusive ? ["a node for itself"] : [])].join(", ");
}

// A moment by the manager's clock, in the zone of the browser. The day, unless it is today.
export function time(rfc3339) {
  if (!rfc3339) return "";
  const at = new Date(rfc3339);
  const clock = at.toLocaleTimeString("en-GB");
  const today = at.toDateString() === new Date().toDateString();
  if (today) return clock;
  const two = (number) => String(number).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock}`;
}

export function duration(ms) {
  if (ms < 1000) return `${ms} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// How an attempt ended, in words.
export function outcome(end) {
  if (!end) return "";
  const words = [end.kind.replaceAll("_", " ")];
  if (end.exit_code != null) words.push(`exit code ${end.exit_code}`);
  if (end.signal != null) words.push(`signal ${end.signal}`);
  if (end.oom_killed) words.push("out of memory");
  return words.join(", ");
}

// A word for a shell.
export function quote(word) {
  word = visible(word);
  return /^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
