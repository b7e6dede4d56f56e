// The frame: who is there, the menu, and the page of the address.

import { render } from "./vendor/preact.mjs";
import { useEffect, useState } from "./vendor/hooks.mjs";
import { ask, onRefused, signIn, token } from "./api.js";
import { Dialogs, help } from "./dialog.js";
import { listen } from "./keys.js";
import { follow, useStatus } from "./live.js";
import { Heading, html, Name, Notice, State } from "./parts.js";
import { takeCode, useRoute } from "./route.js";
import { Login } from "./pages/login.js";
import { Overview } from "./pages/overview.js";
import { Jobs } from "./pages/jobs.js";
import { Job } from "./pages/job.js";
import { Task } from "./pages/task.js";
import { JobOutput, ServiceOutput } from "./pages/merged.js";
import { Services } from "./pages/services.js";
import { Service } from "./pages/service.js";
import { Schedules } from "./pages/schedules.js";
import { Schedule } from "./pages/schedule.js";
import { Nodes } from "./pages/nodes.js";
import { Node } from "./pages/node.js";
import { Events } from "./pages/events.js";
import { Access } from "./pages/access.js";
import { Volumes } from "./pages/volumes.js";

const MENU = [
  ["", "Overview"],
  ["jobs", "Jobs"],
  ["services", "Services"],
  ["schedules", "Schedules"],
  ["nodes", "Nodes"],
  ["volumes", "Volumes"],
  ["events", "Events"],
  ["access", "Access"],
];

// Returns the page and its title.
function find({ parts }) {
  const [kind = "", name, below, index, ...more] = parts;
  if (more.length > 0) return [Missing, "Not found"];
  if (kind === "jobs" && below === "tasks" && index) return [Task, `Task ${name}.${index}`];
  if (kind === "jobs" && below === "output" && !index) return [JobOutput, `Output of job ${name}`];
  if (kind === "services" && below === "output" && !index) return [ServiceOutput, `Output of ${name}`];
  if (below !== undefined) return [Missing, "Not found"];
  if (name !== undefined) {
    const page = { jobs: [Job, `Job ${name}`], services: [Service, name], schedules: [Schedule, name], nodes: [Node, name] };
    return page[kind] ?? [Missing, "Not found"];
  }
  const pages = { "": Overview, jobs: Jobs, services: Services, schedules: Schedules, nodes: Nodes, volumes: Volumes, events: Events, access: Access };
  const title = MENU.find(([path]) => path === kind)?.[1];
  return title ? [pages[kind], title] : [Missing, "Not found"];
}

const Missing = () => html`<${Heading}>There is no such page<//><p><a href="#/">Overview</a></p>`;

function Header({ me, kind, leave }) {
  return html`<header>
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.querySelector("h1")?.focus())}>To the content</a>
    <strong>podmesh</strong>
    <nav aria-label="Pages of the console">
      ${MENU.map(([path, title]) => html`<a href=${`#/${path}`} aria-current=${path === kind ? "page" : undefined}>${title}</a>`)}
    </nav>
    <span class="who">
      <${Status} />
      <span><${Name}>${me.name}<//> (${me.role})</span>
      <button onClick=${leave}>Sign out</button>
      <button onClick=${help} aria-label="Keys" title="Keys (?)">?</button>
    </span>
  </header>`;
}

const Status = () => html`<span role="status" id="status"><${State} word=${useStatus()} /></span>`;

// A page, with the focus on its heading when it was opened from another one.
function Page({ route, me }) {
  const [page, title] = find(route);
  const path = route.parts.join("/");
  useEffect(() => {
    document.title = `${title} – podmesh`;
    if (document.activeElement === document.body || document.activeElement?.closest("main, nav")) {
      document.querySelector("main h1")?.focus();
    }
  }, [path]);
  return html`<main id="main"><${page} key=${path} parts=${route.parts} query=${route.query} me=${me} /></main>`;
}

function Inside({ me, leave }) {
  const route = useRoute();
  useEffect(() => {
    const aborter = new AbortController();
    follow(aborter.signal);
    return () => aborter.abort();
  }, []);
  return html`
    <${Header} me=${me} kind=${route.parts[0] ?? ""} leave=${leave} />
    <${Page} route=${route} me=${me} />
    <${Dialogs} />`;
}

const code = takeCode();

function App() {
  const [me, setMe] = useState(null);
  const [problem, setProblem] = useState(null);
  const [ready, setReady] = useState(token.get() === null && code === undefined);
  const enter = async () => setMe(await ask("/me"));
  const leave = (why) => {
    token.forget();
    setMe(null);
    setProblem(why);
  };
  useEffect(() => {
    onRefused((detail) => leave(new Error(detail)));
    listen(help);
    const start = async () => {
      if (code !== undefined) await signIn(code);
      if (token.get() !== null) await enter();
    };
    start().catch(setProblem).finally(() => setReady(true));
  }, []);
  if (!ready) return html`<p class="quiet" role="status">Loading …</p>`;
  if (me) return html`<${Inside} me=${me} leave=${() => leave(null)} />`;
  // The manager is away, and the token may still be good.
  if (token.get() !== null && problem?.status !== undefined) {
    return html`<main><${Notice} problem=${problem} /><button onClick=${() => location.reload()}>Try again</button></main>`;
  }
  return html`<${Login} enter=${enter} problem=${problem} />`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
