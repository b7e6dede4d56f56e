// One service: its replicas and endpoints, an update as it happens, and its earlier revisions.

import { useState } from "../vendor/hooks.mjs";
import { post } from "../api.js";
import { question } from "../dialog.js";
import { usePath } from "../live.js";
import { Action, attemptHref, Cli, Heading, html, Name, nodeLink, Pending, State, Table } from "../parts.js";
import { link } from "../route.js";
import { needs, plural, quote, time, visible } from "../text.js";
import { labels } from "./nodes.js";
import { published } from "./services.js";

const REPLICAS = [
  ["Replica", ({ number, attempt }) => attempt ? html`<a class="row-link" href=${attemptHref(attempt)}>${number}</a>` : number],
  ["Revision", ({ revision }) => revision],
  ["State", ({ state }) => html`<${State} word=${state} />`],
  ["Node", ({ node }) => nodeLink(node)],
  ["Endpoints", ({ endpoints }) => published(endpoints)],
  ["Failed in a row", ({ failures }) => failures || ""],
  ["Message", ({ message }) => visible(message ?? "")],
];

// What a dialog says when a request has changed nothing.
const unless = ({ changed }, why) => (changed ? undefined : `Nothing has changed: ${why}`);

function revisions(name, current, me) {
  const back = (revision) => question({
    title: `Go back to revision ${revision} of ${visible(name)}?`,
    text: "Replicas that differ from it are replaced, step by step as an update does.",
    yes: `Go back to revision ${revision}`,
    cli: `podmesh service rollback --to ${revision} ${quote(name)}`,
    act: async () => {
      const reply = await post(`/services/${encodeURIComponent(name)}/rollback`, { to: revision });
      return unless(reply, `revision ${revision} wants the same as the current revision ${reply.revision}.`);
    },
  });
  return [
    ["Revision", ({ revision }) => revision],
    ["State", ({ state }) => html`<${State} word=${state} />`],
    ["Applied", (row) => time(row.applied_at)],
    ["By", ({ by }) => html`<${Name}>${by}<//>`],
    ["Message", ({ message }) => visible(message ?? "")],
    ["", ({ revision }) => revision === current ? "current" : html`<${Action} me=${me} role="operator" onClick=${() => back(revision)}>Go back …<//>`],
  ];
}

// How far an update is, replica by replica.
function Update({ service }) {
  const { revision, replicas, replica_list: list } = service;
  const fresh = list.filter((replica) => replica.revision === revision);
  const healthy = fresh.filter(({ state }) => state === "healthy").length;
  const old = list.length - fresh.length;
  return html`<p class="update" role="status">
    <progress value=${healthy} max=${replicas || 1} aria-label="Healthy replicas of the current revision" />
    ${` Revision ${revision}: ${healthy} of ${plural(replicas, "replica")} healthy; ${plural(old, "replica")} of older revisions left.`}
  </p>`;
}

function Scale({ name, current, me }) {
  const [wanted, setWanted] = useState(null);
  const count = wanted ?? String(current);
  const valid = /^\d{1,6}$/.test(count);
  const ask = (event) => {
    event.preventDefault();
    question({
      title: `Scale ${visible(name)} from ${current} to ${plural(Number(count), "replica")}?`,
      text: Number(count) < current ? "Replicas are stopped, after the connections that they have." : "New replicas start where there is room.",
      yes: `Scale to ${count}`,
      cli: `podmesh service scale ${quote(name)} ${count}`,
      act: async () => {
        const reply = await post(`/services/${encodeURIComponent(name)}/scale`, { replicas: Number(count) });
        setWanted(null);
        return unless(reply, `it has ${plural(Number(count), "replica")} already.`);
      },
    });
  };
  return html`<form class="inline" onSubmit=${ask}>
    <label>Replicas <input type="number" min="0" max="999999" required value=${count} onInput=${(event) => setWanted(event.target.value)} /></label>
    <${Action} me=${me} role="operator" disabled=${!valid || Number(count) === current}>Scale …<//>
  </form>`;
}

// What the replicas run, and where they may.
function Facts({ service }) {
  const { spec } = service;
  const facts = [
    ["Runs", html`<code>${visible(service.runs)}</code>`],
    ["Each replica gets", needs(spec)],
    ["Only on nodes with", labels({ labels: spec.require })],
    ["Nodes tried first", labels({ labels: spec.prefer })],
    ["Spread over", visible(spec.spread ?? "")],
    ["Published ports", Object.keys(service.published).length > 0 ? `${published(service.published)}, on every node` : ""],
    ["Project", service.project ? html`<${Name}>${service.project.name}<//>` : ""],
  ];
  return html`<dl class="facts">${facts.map(([name, fact]) => fact !== "" && html`<div><dt>${name}</dt><dd>${fact}</dd></div>`)}</dl>`;
}

function Shown({ service, name, me }) {
  const restart = () => question({
    title: `Restart ${visible(name)}?`,
    text: "All replicas are replaced by new ones, step by step as an update does.",
    yes: "Restart",
    cli: `podmesh service restart ${quote(name)}`,
    act: () => post(`/services/${encodeURIComponent(name)}/restart`),
  });
  return html`
    <p><${State} word=${service.state} /> ${service.healthy} of ${plural(service.replicas, "replica")} healthy, revision ${service.revision}</p>
    ${["updating", "rolling_back"].includes(service.state) && html`<${Update} service=${service} />`}
    ${service.failed_update && html`<p class="notice">The last update failed: ${visible(service.failed_update)}</p>`}
    ${service.waits_for.length > 0 && html`<section class="waits"><h2>Why replicas wait</h2><ul>${service.waits_for.map((why) => html`<li>${visible(why)}</li>`)}</ul></section>`}
    ${service.closed_ports.length > 0 && html`<section class="waits"><h2>Ports that are not open</h2><ul>${service.closed_ports.map((why) => html`<li>${visible(why)}</li>`)}</ul></section>`}
    <${Facts} service=${service} />
    <div class="buttons">
      <${Scale} name=${name} current=${service.replicas} me=${me} />
      <${Action} me=${me} role="operator" onClick=${restart}>Restart …<//>
    </div>
    <section>
      <h2>Replicas</h2>
      <p><a href=${link("services", name, "output")}>Output of the replicas</a></p>
      <${Table} label="Replicas" columns=${REPLICAS} rows=${service.replica_list} keyOf=${({ number, revision, attempt }) => attempt ?? `${number}/${revision}`} empty="There are no replicas." />
    </section>
    <section>
      <h2>Revisions</h2>
      <${Table} label="Revisions" columns=${revisions(name, service.revision, me)} rows=${service.history} keyOf=${({ revision }) => revision} empty="There is no revision." />
    </section>`;
}

export function Service({ parts: [, name], me }) {
  // Its replicas also wait for what others do.
  const { value: service, problem } = usePath(`/services/${encodeURIComponent(name)}`);
  return html`
    <${Heading}>Service <${Name}>${name}<//><//>
    <${Pending} value=${service} problem=${problem} />
    ${service && html`<${Shown} service=${service} name=${name} me=${me} />`}
    <${Cli} lines=${[`podmesh service ${quote(name)}`, `podmesh service history ${quote(name)}`, `podmesh logs -f ${quote(name)}`]} />`;
}
