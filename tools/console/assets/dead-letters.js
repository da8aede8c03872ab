// Records that are no events, and what the broker or billing has rejected: what they are, and how to send them again.

import { call } from "./api.js";
import { h } from "./dom.js";
import { DASH, bytes, dateTime, iso } from "./format.js";
import { consoleInfo, isPaused } from "./live.js";
import { announce, empty, heading, loading, problem, status } from "./parts.js";

/** @typedef {import("./api.js").Problem} Problem */
/**
 * @typedef {{ partition: number, offset: number, error: string, bytes: number, since: string, forwarded: boolean }} Letter
 * @typedef {{ id: string, kind: string, bytes: number, since: string, error: string }} Rejected
 * @typedef {{ partition: number, offset: number } | { id: string }} Name
 */

/** How often the list is asked for, in milliseconds. */
const REFRESH = 3_000;
/** How long sending one again may take with what becomes of it, in milliseconds. */
const RESEND_TIMEOUT = 60_000;

/** @type {{ analytics: Letter[] | null, outbox: Rejected[] | null, next: string | null, problem: Problem | null } | null} */
let body = null;
/** @type {Problem | null} */
let failed = null;
let asked = -Infinity;
let asking = false;
let redraw = () => {};
/** What became of sending one again. @type {Map<string, { state: "running" | "done" | "failed", text: string, command?: string }>} */
const resent = new Map();

function refresh() {
  if (asking || performance.now() - asked < REFRESH) return;
  asking = true;
  call("GET", "/api/dead-letters").then((answer) => {
    asking = false;
    asked = performance.now();
    if (answer.ok) [body, failed] = [answer.body, null];
    else failed = answer.problem;
    redraw();
  });
}

/** @type {import("./app.js").View} */
export const deadLetters = {
  title: () => "Dead letters",
  stream: () => ({ view: "map" }),
  enter(_, redraw_) {
    redraw = redraw_;
    refresh();
  },
  draw() {
    if (!isPaused()) refresh();
    const letters = body?.analytics ?? null;
    const outbox = body?.outbox ?? null;
    return [
      h("div", { class: "head" }, heading("Dead letters"),
        h("p", null, "Records that are no events. They are kept, counted and shown, and sent again once somebody has mended the cause. Their content is not shown: it may be personal.")),
      failed && problem(failed, h("button", { onclick: () => { asked = -Infinity; refresh(); } }, "Try again")),
      body?.problem && problem(body.problem),
      !body && !failed && loading("dead letters"),
      letters && letters.length > 0 && drawLetters(letters),
      body?.next && h("p", { class: "muted small" }, "There are more; ", h("code", null, "./justw dead-letters"), " lists all of them."),
      outbox && outbox.length > 0 && drawRejected(outbox),
      letters && letters.length === 0 && (outbox === null || outbox.length === 0) &&
        empty("No dead letters", outbox === null ? "Every record on the topic was an event." : "Every record on the topic was an event, the broker took every event, and billing every task."),
      body && outbox === null && !body.problem && h("p", { class: "muted small" }, consoleInfo()?.agent === true
        ? "The stack's agent has not listed yet what was rejected of patient-service."
        : ["Only the stack's agent can list what was rejected of patient-service, and it is not there: ", h("code", null, "./justw dead-letters"), " does."]),
    ];
  },
};

/** @param {Letter[]} letters */
function drawLetters(letters) {
  return h("section", null, h("h2", null, `On the topic (${letters.length})`),
    table("Record", letters.map((letter) => {
      const { partition, offset } = letter;
      return row(`${partition}:${offset}`, `partition ${partition}, offset ${offset}`, letter,
        letter.forwarded ? status("degraded", "dead, on its topic") : status("unknown", "dead, waits for its topic"), { partition, offset });
    })));
}

const KINDS = /** @type {Record<string, string>} */ ({ OPEN: "open an account", CLOSE: "close an account" });

/** @param {Rejected[]} letters */
function drawRejected(letters) {
  return h("section", null, h("h2", null, `Rejected of patient-service (${letters.length})`),
    h("p", { class: "muted small" }, "Events that the broker has rejected for good, and tasks that billing has. They never were on the topic."),
    table("Event or task", letters.map((letter) => {
      const of = letter.id.startsWith("outbox-") ? status("degraded", "rejected by the broker") : status("degraded", "rejected by billing");
      return row(letter.id, [h("code", null, letter.id), h("div", { class: "small muted" }, KINDS[letter.kind] ?? letter.kind)], letter, of, { id: letter.id });
    })));
}

/** @param {string} first @param {import("./dom.js").Child[]} rows */
function table(first, rows) {
  return h("table", { class: "table cards" },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, first), h("th", { scope: "col" }, "Why"), h("th", { scope: "col", class: "right wide" }, "Size"),
      h("th", { scope: "col", class: "wide" }, "Since"), h("th", { scope: "col" }, h("span", { class: "hidden" }, "Action")))),
    h("tbody", null, rows));
}

/**
 * @param {string} key @param {import("./dom.js").Child} what @param {{ error: string, bytes: number, since: string }} letter
 * @param {import("./dom.js").Child} state @param {Name} name
 */
function row(key, what, { error, bytes: size, since }, state, name) {
  return h("tr", { key },
    h("td", { class: "num wrap" }, what),
    h("td", { class: "wrap" }, error, h("div", { class: "small" }, state)),
    h("td", { class: "right num wide" }, size > 0 ? bytes(size) : DASH),
    h("td", { class: "wide" }, h("time", { datetime: since, title: iso(Date.parse(since)), class: "num" }, dateTime(Date.parse(since)))),
    h("td", { class: "right" }, resendButton(key, name)));
}

/** @param {string} key @param {Name} name */
function resendButton(key, name) {
  const told = resent.get(key);
  const words = "id" in name ? name.id : `partition ${name.partition}, offset ${name.offset}`;
  // Only the stack's agent acts; without it the person types the command, which lists the ids.
  if (consoleInfo()?.agent !== true) return h("code", { class: "small" }, "./justw dead-letters");
  return [
    h("button", { onclick: () => resend(key, words, name), "aria-disabled": told?.state === "running" ? "true" : null, "aria-label": `Resend ${words}` }, "Resend"),
    told && h("div", { class: "small", role: "status" }, status(told.state === "running" ? "running" : told.state, told.text), told.command && h("div", null, h("code", null, told.command))),
  ];
}

/** @param {string} key @param {string} words @param {Name} name */
async function resend(key, words, name) {
  if (resent.get(key)?.state === "running") return;
  resent.set(key, { state: "running", text: "is sent again" });
  redraw();
  const answer = await call("POST", "/api/dead-letters/resend", { body: name, signal: AbortSignal.timeout(RESEND_TIMEOUT) });
  const dead = answer.ok && answer.body?.state === "dead";
  if (dead) resent.set(key, { state: "failed", text: `dead again${answer.body.detail ? `: ${answer.body.detail}` : ""}` });
  else if (answer.ok) resent.set(key, { state: "done", text: "sent again, and taken" });
  else resent.set(key, { state: "failed", text: answer.problem.command ? "type it yourself:" : answer.problem.detail, command: answer.problem.command });
  announce(answer.ok ? `${words} was sent again, and is ${dead ? "dead again" : "taken"}` : answer.problem.detail);
  asked = -Infinity;
  redraw();
}
