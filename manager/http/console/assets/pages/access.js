// Who has access: tokens and users, and their end.

import { ask, del } from "../api.js";
import { question } from "../dialog.js";
import { useLive } from "../live.js";
import { Action, Cli, Field, Heading, html, matches, Name, Pending, State, Table } from "../parts.js";
import { quote, time, visible } from "../text.js";

const concerns = ({ event }) => /token|key|user|join/.test(event);

async function load(signal) {
  const [tokens, users] = await Promise.all([ask("/tokens", { signal }), ask("/users", { signal })]);
  // The newest first.
  return { tokens: tokens.tokens.reverse(), users: users.users };
}

const revokeToken = ({ id, api }) => question({
  title: `Revoke token ${id}?`,
  text: api
    ? "Programs and pages that use it are refused at once. This cannot be undone."
    : "Nobody can join with it any more. Members that have joined keep their access. This cannot be undone.",
  yes: "Revoke the token",
  cli: `podmesh token revoke ${id}`,
  act: () => del(`/tokens/${id}`),
});

const revokeUser = ({ user }) => question({
  title: `Revoke the key of ${visible(user)}?`,
  text: "The user is disconnected, and needs a new token to join again. This cannot be undone.",
  yes: "Revoke the key",
  cli: `podmesh users revoke ${quote(user)}`,
  act: () => del(`/users/${encodeURIComponent(user)}`),
});

function Lists({ q, me }) {
  const { value, problem } = useLive(load, [], { concerns });
  const tokens = [
    ["Token", ({ id }) => id],
    ["For", ({ api, id }) => (api ? `programs and the console${me.name === `token-${id}` ? " (this page)" : ""}` : "joining")],
    ["State", ({ state }) => html`<${State} word=${state} />`],
    ["Role", ({ role }) => visible(role)],
    ["Uses left", ({ api, uses_left: left }) => (api ? "any number" : left)],
    ["Expires", (token) => time(token.expires_at)],
    ["Created by", (token) => html`<${Name}>${token.created_by}<//>`],
    ["Last used", (token) => time(token.used_at)],
    ["", (token) => token.state === "usable" && html`<${Action} me=${me} role="admin" onClick=${() => revokeToken(token)}>Revoke …<//>`],
  ];
  const users = [
    ["User", ({ user }) => html`<${Name}>${user}<//>`],
    ["Role", ({ role }) => visible(role)],
    ["Joined", (user) => time(user.joined_at)],
    ["With token", ({ token }) => token],
    ["", (user) => html`<${Action} me=${me} role="admin" onClick=${() => revokeUser(user)}>Revoke …<//>`],
  ];
  const found = (rows, ...names) => rows.filter((row) => matches(q, ...names.map((name) => row[name])));
  return html`
    <${Pending} value=${value} problem=${problem} />
    ${value && html`
      <section>
        <h2>Tokens</h2>
        <${Table} label="Tokens" columns=${tokens} rows=${found(value.tokens, "id", "state", "role", "created_by")} keyOf=${({ id }) => id} empty="There are no such tokens." />
      </section>
      <section>
        <h2>Users who joined</h2>
        <${Table} label="Users" columns=${users} rows=${found(value.users, "user", "role")} keyOf=${({ user }) => user} empty="There are no such users." />
      </section>`}`;
}

export function Access({ query: { q }, me }) {
  const may = me.role === "admin";
  return html`
    <${Heading}>Access<//>
    ${may && html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Find" name="q" value=${q} find />
    </form>`}
    ${may ? html`<${Lists} q=${q} me=${me} />` : html`<p>Tokens and users are shown to the role admin. Your role is ${visible(me.role)}.</p>`}
    <${Cli} lines=${["podmesh token", "podmesh token create --api --role viewer", "podmesh users"]} />`;
}
