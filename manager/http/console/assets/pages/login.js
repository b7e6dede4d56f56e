// Asks for the token.

import { useState } from "../vendor/hooks.mjs";
import { token } from "../api.js";
import { Cli, Heading, html, Notice } from "../parts.js";

export function Login({ enter, problem }) {
  const [failed, setFailed] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const value = new FormData(event.target).get("token").trim();
    // A header cannot have other characters.
    if (!/^[\x21-\x7e]+$/.test(value)) return setFailed(new Error("This is not a token: a token is one word without spaces."));
    setBusy(true);
    setFailed(null);
    token.set(value);
    try {
      await enter();
    } catch (error) {
      token.forget();
      setFailed(error);
      setBusy(false);
    }
  };
  return html`<main class="login">
    <${Heading}>podmesh<//>
    <p>The console needs an API token. Create one on the manager's machine, or on any machine that joined as an admin:</p>
    <${Cli} lines=${["podmesh token create --api --role viewer"]} />
    <p>Without a token, on any machine that joined: this opens the console with your own role.</p>
    <${Cli} lines=${["podmesh console"]} />
    <form onSubmit=${submit}>
      <label>API token <input name="token" type="password" autocomplete="off" spellcheck=${false} required autofocus /></label>
      <button disabled=${busy}>Sign in</button>
    </form>
    <${Notice} problem=${failed ?? problem} />
    <p class="quiet">With the role viewer you see everything except tokens and users. To change services or cancel jobs you need operator; for nodes, admin.
    The token stays in this tab until you close it.</p>
  </main>`;
}
