// Colours of output: the escape sequences `ESC [ … m` (SGR), as far as they choose one of the 16
// colours, bold, italic or underlined. All others stay in the text, to be seen.

const SGR = /\u001b\[([0-9;:]*)m/g;
const NONE = { colour: null, bold: false, italic: false, underline: false };

// Returns a function that takes lines in order, and returns the parts `[text, classes]` of each: a
// colour lasts until it is changed, also over lines.
export function painter() {
  let style = NONE;
  return (line) => {
    if (!line.includes("\u001b[")) return [[line, classes(style)]];
    const parts = [];
    let from = 0;
    for (const found of line.matchAll(SGR)) {
      if (found.index > from) parts.push([line.slice(from, found.index), classes(style)]);
      from = found.index + found[0].length;
      style = change(style, found[1]);
    }
    if (from < line.length || parts.length === 0) parts.push([line.slice(from), classes(style)]);
    return parts;
  };
}

function classes({ colour, bold, italic, underline }) {
  const words = [];
  if (colour !== null) words.push(`ansi-${colour}`);
  if (bold) words.push("ansi-bold");
  if (italic) words.push("ansi-italic");
  if (underline) words.push("ansi-underline");
  return words.join(" ");
}

function change(style, codes) {
  const numbers = codes.split(/[;:]/).map(Number);
  let next = { ...style };
  for (let at = 0; at < numbers.length; at += 1) {
    const code = numbers[at];
    if (code === 0) next = { ...NONE };
    else if (code === 1) next.bold = true;
    else if (code === 3) next.italic = true;
    else if (code === 4) next.underline = true;
    else if (code === 22) next.bold = false;
    else if (code === 23) next.italic = false;
    else if (code === 24) next.underline = false;
    else if (code >= 30 && code <= 37) next.colour = code - 30;
    else if (code >= 90 && code <= 97) next.colour = code - 90 + 8;
    else if (code === 39) next.colour = null;
    else if (code === 38 || code === 48) {
      // 256 colours, of which the first 16 are known here, or a colour as three numbers.
      const [kind, index] = [numbers[at + 1], numbers[at + 2]];
      if (code === 38) next.colour = kind === 5 && index < 16 ? index : null;
      at += kind === 5 ? 2 : 4;
    }
  }
  return next;
}
