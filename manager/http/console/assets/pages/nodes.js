// Nodes, and what an admin lets them get.

import { post } from "../api.js";
import { question } from "../dialog.js";
import { usePath } from "../live.js";
import { Action, Cli, Field, Heading, html, matches, Pending, Room, rowLink, State, Table } from "../parts.js";
import { link } from "../route.js";
import { quote, visible } from "../text.js";

export const labels = ({ labels }) => Object.entries(labels).map(([name, value]) => visible(`${name}=${value}`)).join(", ");

const TEXTS = {
  cordon: "It gets no new work. What it has stays.",
  drain: "It gets no new work, and its replicas move to other nodes. Tasks of jobs run to their end.",
  uncordon: "It gets new work again.",
};

// The buttons for one node.
export function Scheduling({ node, me }) {
  const button = (verb, title) => {
    const ask = () => question({
      title: `${title} node ${visible(node.node)}?`,
      text: TEXTS[verb],
      yes: title,
      cli: `podmesh nodes ${verb} ${quote(node.node)}`,
      act: () => post(`/nodes/${encodeURIComponent(node.node)}/${verb}`),
    });
    return html`<${Action} me=${me} role="admin" onClick=${ask}>${title} …<//>`;
  };
  return html`<span class="buttons">
    ${node.scheduling === "open" && button("cordon", "Cordon")}
    ${node.scheduling !== "draining" && button("drain", "Drain")}
    ${node.scheduling !== "open" && button("uncordon", "Uncordon")}
  </span>`;
}

export function Nodes({ query: { q }, me }) {
  const { value, problem } = usePath("/nodes");
  const rows = (value?.nodes ?? []).filter((node) => matches(q, node.node, node.state, node.scheduling, labels(node)));
  const columns = [
    ["Node", ({ node }) => rowLink(link("nodes", node), node)],
    ["State", ({ state }) => html`<${State} word=${state} />`],
    ["New work", ({ scheduling }) => html`<${State} word=${scheduling} />`],
    ["Attempts", ({ attempts }) => attempts],
    ["Room", (node) => html`<${Room} node=${node} />`],
    ["Labels", labels],
    ["Version", ({ version }) => visible(version)],
    ["", (node) => html`<${Scheduling} node=${node} me=${me} />`],
  ];
  return html`
    <${Heading}>Nodes<//>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Find" name="q" value=${q} find />
    </form>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Nodes" columns=${columns} rows=${rows} keyOf=${({ node }) => node}
      empty=${q ? "No node contains the text." : "No node has joined yet."} />`}
    <${Cli} lines=${["podmesh nodes"]} />`;
}
