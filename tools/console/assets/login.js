// The login of a secure system. The session is a cookie that this script cannot read.

import { call } from "./api.js";

const form = /** @type {HTMLFormElement} */ (document.getElementById("login"));
const problem = /** @type {HTMLElement} */ (document.getElementById("problem"));
const button = /** @type {HTMLButtonElement} */ (form.querySelector("button"));

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  problem.textContent = "";
  const fields = new FormData(form);
  const answer = await call("POST", "/api/session", { body: { email: fields.get("email"), password: fields.get("password") } });
  if (answer.ok) {
    location.assign(target());
    return;
  }
  button.disabled = false;
  problem.textContent = answer.problem.detail;
  document.getElementById("password")?.focus();
});

/** The page that asked for the login: a path of the console and nothing else. */
function target() {
  const to = new URLSearchParams(location.search).get("to") ?? "/";
  const url = new URL(to, location.origin);
  return url.origin === location.origin ? url.pathname + url.search : "/";
}
