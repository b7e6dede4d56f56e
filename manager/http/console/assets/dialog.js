// Questions before what cannot be undone, and other dialogs.

import { useEffect, useRef, useState } from "./vendor/hooks.mjs";
import { Cli, html, Notice } from "./parts.js";

let open = () => {};

// Asks before `act()`. `text` says what will happen, `yes` is the button, `cli` the same as a command.
// If `act` returns a text, the dialog stays and says it.
export function question({ title, text, yes, cli, act }) {
  open({ title, text, yes, cli, act });
}

export function help() {
  open({ title: "Keys", keys: true });
}

const KEYS = [
  ["/", "go to the field that finds or filters"],
  ["j", "next row"],
  ["k", "previous row"],
  ["Enter", "open the row"],
  ["Esc", "leave a field, close a dialog"],
  ["?", "this list"],
];

const Keys = () => html`<dl class="keys">
  ${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}
</dl>`;

export function Dialogs() {
  const [shown, show] = useState(null);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState(null);
  const [said, say] = useState(null);
  const element = useRef();
  useEffect(() => {
    open = (next) => (setProblem(null), say(null), show(next));
  }, []);
  useEffect(() => {
    if (shown && !element.current.open) element.current.showModal();
  }, [shown]);
  if (!shown) return null;

  const close = () => element.current.close();
  const act = async () => {
    setBusy(true);
    setProblem(null);
    try {
      const text = await shown.act();
      if (typeof text === "string") say(text);
      else close();
    } catch (failed) {
      setProblem(failed);
    }
    setBusy(false);
  };
  const asks = shown.act && said === null;
  return html`<dialog ref=${element} aria-labelledby="dialog-title" onClose=${() => show(null)}>
    <h2 id="dialog-title">${shown.title}</h2>
    ${shown.keys && html`<${Keys} />`}
    ${shown.text && html`<p>${shown.text}</p>`}
    ${shown.cli && html`<${Cli} lines=${[shown.cli]} />`}
    <${Notice} problem=${problem} />
    ${said && html`<p class="notice" role="alert">${said}</p>`}
    <div class="buttons">
      <button autofocus onClick=${close}>${asks ? "No, go back" : "Close"}</button>
      ${asks && html`<button class="danger" disabled=${busy} onClick=${act}>${shown.yes}</button>`}
    </div>
  </dialog>`;
}
