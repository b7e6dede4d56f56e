// Named volumes.

import { usePath } from "../live.js";
import { Cli, Field, Heading, html, jobLink, matches, Name, nodeLink, Pending, serviceLink, State, Table } from "../parts.js";
import { time, visible } from "../text.js";

const list = (items, item) => items.map((each, at) => html`${at > 0 && ", "}${item(each)}`);

const COLUMNS = [
  ["Volume", ({ volume }) => html`<${Name}>${volume}<//>`],
  ["Node", ({ node }) => nodeLink(node)],
  ["Created", ({ created }) => time(created)],
  ["Services", ({ services }) => list(services, serviceLink)],
  ["Jobs", ({ jobs }) => list(jobs, jobLink)],
  ["", ({ removing, failed }) => removing && html`<${State} word="removing" /> ${visible(failed ?? "")}`],
];

export function Volumes({ query: { q } }) {
  const { value, problem } = usePath("/volumes");
  const rows = (value?.volumes ?? []).filter((row) => matches(q, row.volume, row.node, ...row.services));
  return html`
    <${Heading}>Volumes<//>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Find" name="q" value=${q} find />
    </form>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Volumes" columns=${COLUMNS} rows=${rows} keyOf=${({ volume }) => volume}
      empty=${q ? "No volume contains the text." : "There are no volumes."} />`}
    <${Cli} lines=${["podmesh volumes"]} />`;
}
