// Records that are no events, and events that the broker rejected: what they are, and how to send them again.

import { call } from "./api.js";
import { h } from "./dom.js";
import { bytes, dateTime, iso, plural } from "./format.js";
import { consoleInfo, isPaused } from "./live.js";
import { announce, empty, heading, loading, problem, status } from "./parts.js";

/** @typedef {import("./api.js").Problem} Problem */
/** @typedef {{ id: number, partition: number, offset: number, error: string, value_bytes: number, parked_at: string, forwarded: boolean }} Letter */

/** How often the list is asked for, in milliseconds. */
const REFRESH = 3_000;
/** How long sending one again may take with what becomes of it, in milliseconds. */
const RESEND_TIMEOUT = 60_000;

/** @type {{ analytics: Letter[] | null, outbox: any[] | null, problem: Problem | null } | null} */
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
      outbox && outbox.length > 0 && drawOutbox(outbox),
      letters && letters.length === 0 && (outbox === null || outbox.length === 0) &&
        empty("No dead letters", "Every record on the topic was an event, and the broker took every event."),
    ];
  },
};

/** @param {Letter[]} letters */
function drawLetters(letters) {
  return h("section", null, h("h2", null, `On the topic (${letters.length})`),
    h("table", { class: "table cards" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Id"), h("th", { scope: "col" }, "Record"), h("th", { scope: "col" }, "Why"), h("th", { scope: "col", class: "right wide" }, "Size"),
        h("th", { scope: "col", class: "wide" }, "Since"), h("th", { scope: "col" }, h("span", { class: "hidden" }, "Action")))),
      h("tbody", null, letters.map((letter) => {
        const name = `analytics-${letter.id}`;
        return h("tr", { key: letter.id },
          h("td", { class: "num" }, h("span", { class: "narrow-word" }, "Id "), letter.id),
          h("td", { class: "num" }, `partition ${letter.partition}, offset ${letter.offset}`),
          h("td", { class: "wrap" }, letter.error, h("div", { class: "small" }, letter.forwarded ? status("degraded", "dead, on its topic") : status("unknown", "dead, waits for its topic"))),
          h("td", { class: "right num wide" }, bytes(letter.value_bytes)),
          h("td", { class: "wide" }, h("time", { datetime: letter.parked_at, title: iso(Date.parse(letter.parked_at)), class: "num" }, dateTime(Date.parse(letter.parked_at)))),
          h("td", { class: "right" }, resendButton(name, letter)));
      }))));
}

/** @param {string} name @param {Letter} letter */
function resendButton(name, letter) {
  const { id } = letter;
  const told = resent.get(name);
  // Only the stack's agent acts; without it the person types the command.
  if (consoleInfo()?.agent !== true) return h("code", { class: "small" }, `./justw dead-letters --resend ${id}`);
  return [
    h("button", { onclick: () => resend(name, letter), "aria-disabled": told?.state === "running" ? "true" : null, "aria-label": `Resend dead letter ${id}` }, "Resend"),
    told && h("div", { class: "small", role: "status" }, status(told.state === "running" ? "running" : told.state, told.text), told.command && h("div", null, h("code", null, told.command))),
  ];
}

/** @param {string} name @param {Letter} letter */
async function resend(name, { id, partition, offset }) {
  if (resent.get(name)?.state === "running") return;
  resent.set(name, { state: "running", text: "is sent again" });
  redraw();
  const answer = await call("POST", "/api/dead-letters/resend", { body: { partition, offset }, signal: AbortSignal.timeout(RESEND_TIMEOUT) });
  const dead = answer.ok && answer.body?.state === "dead";
  if (dead) resent.set(name, { state: "failed", text: `dead again${answer.body.detail ? `: ${answer.body.detail}` : ""}` });
  else if (answer.ok) resent.set(name, { state: "done", text: "sent again, and taken" });
  else resent.set(name, { state: "failed", text: answer.problem.command ? "type it yourself:" : answer.problem.detail, command: answer.problem.command });
  announce(answer.ok ? `Dead letter ${id} was sent again, and is ${dead ? "dead again" : "taken"}` : answer.problem.detail);
  asked = -Infinity;
  redraw();
}

/** @param {any[]} rows */
function drawOutbox(rows) {
  return h("section", null, h("h2", null, `Rejected by the broker (${plural(rows.length, "event")})`),
    h("table", { class: "table" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Id"), h("th", { scope: "col" }, "Why"))),
      h("tbody", null, rows.map((row) => h("tr", { key: row.id }, h("td", { class: "num" }, row.id), h("td", { class: "wrap" }, row.error))))),
    h("p", { class: "muted small" }, h("code", null, "./justw dead-letters --resend"), " sends them again."));
}
