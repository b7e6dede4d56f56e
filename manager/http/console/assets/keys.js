// The keyboard: `/` finds, `j` and `k` go through the rows, `Enter` opens (the browser does that, as
// the link has the focus), `?` helps.

const ROWS = "main .row-link";

function step(by) {
  const rows = [...document.querySelectorAll(ROWS)];
  if (rows.length === 0) return;
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + by, 0), rows.length - 1);
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
}

function types(element) {
  return element.closest?.("input, select, textarea, [contenteditable]") != null;
}

export function listen(help) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (types(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const find = document.querySelector("main [data-find]");
    if (event.key === "/" && find) find.focus();
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "?") help();
    else return;
    event.preventDefault();
  });
}
