// Writes of this page. Each leads to its journey at once; its steps are drawn before the answer is there.

import { call, newKey, newTrace } from "./api.js";
import { expect, now } from "./live.js";
import { announce } from "./parts.js";
import { go } from "./router.js";

/** @typedef {import("./live.js").Step} Step */
/** @typedef {import("./api.js").Answer} Answer */
/**
 * @typedef {{ title: string, kind: string, method: string, path: string, body: any, headers?: Record<string, string>,
 *   back: (answer: Answer & { ok: false }) => void }} Write
 * @typedef {{ write: Write, state: "sent" | "done" | "failed", problem: import("./api.js").Problem | null, body: any }} Sent
 */

/** What has been sent, by trace. @type {Map<string, Sent>} */
const sent = new Map();
let redraw = () => {};

/** @param {() => void} listener */
export function onWrite(listener) {
  redraw = listener;
}

/** @param {string} trace */
export function sentWrite(trace) {
  return sent.get(trace) ?? null;
}

/** Steps that every write of a kind takes: id, label, parent. */
const STEPS = /** @type {Record<string, [string, string, string | null][]>} */ ({
  register: [["request", "HTTP request", null], ["commit", "commit", "request"], ["billing", "billing gRPC", "request"],
    ["outbox", "outbox wait", null], ["send", "send to Kafka", null], ["apply", "apply", null]],
  update: [["request", "HTTP request", null], ["commit", "commit", "request"], ["outbox", "outbox wait", null], ["send", "send to Kafka", null], ["apply", "apply", null]],
  delete: [["request", "HTTP request", null], ["commit", "commit", "request"], ["close", "close account", null],
    ["outbox", "outbox wait", null], ["send", "send to Kafka", null], ["apply", "apply", null]],
  transaction: [["request", "HTTP request", null], ["billing", "billing gRPC", "request"]],
});

/** Statuses that say what the person has to change, so that the form is the place to show them. */
const FOR_THE_FORM = new Set([400, 409, 412, 422, 428]);

/** Sends a write and shows its journey meanwhile. @param {Write} write */
export function send(write) {
  const { trace, traceparent } = newTrace();
  const steps = (STEPS[write.kind] ?? []).map(([id, label, parent]) => {
    /** @type {Step} */
    const step = { id, label, parent, state: "waiting", start_ms: null, ms: null, service: null, span: null, wait: id === "outbox", waits_for: null, tries: [], error: null };
    return step;
  });
  const started = new Date(now()).toISOString();
  expect({
    trace, title: write.title, kind: write.kind, status: null, state: "running", error: false, origin: started, started, total_ms: null,
    delivered_ms: null, delivered_by: null, patient: null, version: null, changed: started, steps, spans: [], proofs: [], logs: [],
  });
  /** @type {Sent} */
  const mine = { write, state: "sent", problem: null, body: null };
  sent.set(trace, mine);
  if (sent.size > 20) sent.delete(/** @type {string} */ (sent.keys().next().value));
  const page = `/journeys/${trace}`;
  go(page);
  call(write.method, write.path, { body: write.body, headers: { ...write.headers, traceparent } }).then((answer) => {
    if (answer.ok) {
      Object.assign(mine, { state: "done", body: answer.body });
      announce(`${write.title}: answered ${answer.status}`);
    } else {
      Object.assign(mine, { state: "failed", problem: answer.problem });
      // The person has not gone elsewhere meanwhile.
      if (FOR_THE_FORM.has(answer.status) && location.pathname === page) write.back(answer);
      else announce(`${write.title} failed: ${answer.problem.detail}`);
    }
    redraw();
  });
}

/** Sends a write again as it was, with the same key: what has been done is not done twice. @param {Sent} failed */
export function sendAgain(failed) {
  send(failed.write);
}

/** A sample patient from the server's list of plausible ones. */
export async function registerSample() {
  const sample = await call("GET", "/api/sample");
  if (!sample.ok) {
    announce(sample.problem.detail);
    go("/patients?new=1");
    return;
  }
  send({ title: "POST /patients", kind: "register", method: "POST", path: "/api/patients", body: sample.body, headers: { "idempotency-key": newKey() }, back: () => {} });
}
