// Services.

import { usePath } from "../live.js";
import { Cli, Field, Heading, html, matches, Name, Pending, rowLink, State, Table } from "../parts.js";
import { link } from "../route.js";
import { visible } from "../text.js";

export const published = (ports) => Object.entries(ports).map(([name, port]) => `${visible(name)}: ${port}`).join(", ");

const COLUMNS = [
  ["Service", ({ service }) => rowLink(link("services", service), service)],
  ["State", ({ state }) => html`<${State} word=${state} />`],
  ["Healthy", ({ healthy, replicas }) => `${healthy} of ${replicas}`],
  ["Exist", ({ existing }) => existing],
  ["Revision", ({ revision }) => revision],
  ["Runs", ({ runs }) => html`<code>${visible(runs)}</code>`],
  ["Published ports", (service) => published(service.published)],
  ["Project", ({ project }) => project && html`<${Name}>${project.name}<//>`],
];

const concerns = ({ event }) => /^(service|replica|attempt|node)/.test(event);

export function Services({ query: { q } }) {
  const { value, problem } = usePath("/services", { concerns });
  const rows = (value?.services ?? []).filter((row) => matches(q, row.service, row.state, row.runs, row.project?.name));
  return html`
    <${Heading}>Services<//>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Find" name="q" value=${q} find />
    </form>
    <${Pending} value=${value} problem=${problem} />
    ${value && html`<${Table} label="Services" columns=${COLUMNS} rows=${rows} keyOf=${({ service }) => service}
      empty=${q ? "No service contains the text." : "There are no services."} />`}
    <${Cli} lines=${["podmesh services"]} />`;
}
