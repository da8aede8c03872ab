// What the server tells of the running system: one EventSource a tab, a snapshot and then changes.

/**
 * @typedef {"up" | "degraded" | "down" | "unknown"} State
 * @typedef {{ id: string, kind: string, state: State, seen: string | null, stale: boolean, detail: string | null,
 *   replicas?: { address: string, state: State, seen: string | null, version: string | null }[] }} Part
 * @typedef {{ id: string, from: string, to: string, per_second: number | null, breaker?: string | null }} Edge
 * @typedef {{ now: string, parts: Part[], edges: Edge[], outbox: { pending: number | null, oldest_s: number | null } | null,
 *   tasks: { pending: number | null } | null, partitions: { partition: number, applied: number | null, lag: number | null }[],
 *   lag: number | null, counts: { active: number, created: number, updated: number, deleted: number } | null }} SystemMap
 * @typedef {{ trace: string, title: string, kind: string, status: number | null, state: string, error: boolean,
 *   started: string, total_ms: number | null, delivered_ms: number | null, patient: string | null, span_count: number,
 *   changed: string, version?: number | null }} Summary
 * @typedef {{ start_ms: number, ms: number | null, error: string | null, span: string | null }} Try
 * @typedef {{ id: string, label: string, parent: string | null, state: "done" | "waiting" | "failed" | "skipped",
 *   start_ms: number | null, ms: number | null, service: string | null, span: string | null, wait?: boolean,
 *   waits_for: { part: string, text: string } | null, tries: Try[], error: string | null }} Step
 * @typedef {{ span: string, parent: string | null, service: string, name: string, kind: string, start_ms: number,
 *   ms: number | null, error: string | null, step: string | null, attributes: Record<string, any>,
 *   events: { name: string, at_ms: number }[] }} Span
 * @typedef {{ id: string, state: "pending" | "ok" | "failed", text: string, partition?: number, offset?: number,
 *   applied?: number, version?: number }} Proof
 * @typedef {{ id: number, time: string, at_ms: number | null, service: string, severity: string, message: string,
 *   trace: string | null, span: string | null, attributes: Record<string, any> }} LogLine
 * @typedef {{ trace: string, title: string, kind: string, status: number | null, state: string, error: boolean,
 *   origin: string, started: string, total_ms: number | null, delivered_ms: number | null, delivered_by: string | null,
 *   patient: string | null, version: number | null, changed: string, steps: Step[], spans: Span[], proofs: Proof[],
 *   logs: LogLine[] }} Journey
 * @typedef {{ map: SystemMap | null, journeys: Map<string, Summary> | null, journey: Journey | null | undefined, lab: any }} Told
 */

/**
 * What the console says of itself: `agent` is whether the stack's agent asks for work, `lab` whether there is a lab at all.
 * @typedef {{ version: string, revision: string | null, agent: boolean, lab?: boolean, login?: boolean, user?: string | null, links: Record<string, string> | null, collector: string | null }} Info
 */

/** @type {Info | null} */
let info = null;

/** Null until the console has said it. */
export function consoleInfo() {
  return info;
}

/** @param {Info} said */
export function setInfo(said) {
  info = said;
}

/** After so much silence the console is taken for gone, in milliseconds. */
const SILENCE = 10_000;
/** After so much time a value is shown as old, in milliseconds. */
export const STALE = 3_000;

/** @type {Told} */
let newest = { map: null, journeys: null, journey: undefined, lab: null };
/** What is shown while the person has paused. @type {Told | null} */
let frozen = null;
/** @type {EventSource | null} */
let source = null;
let address = "";
let connected = false;
let wasConnected = false;
let heard = 0;
let serverNow = 0;
/** @type {() => void} */
let changed = () => {};

/** What is to be drawn. @returns {Told} */
export function told() {
  return frozen ?? newest;
}

/** @returns {"connecting" | "live" | "paused" | "lost"} */
export function connection() {
  if (!isLive()) return wasConnected || lostSince > 0 ? "lost" : "connecting";
  return frozen ? "paused" : "live";
}

let lostSince = 0;

function isLive() {
  return connected && performance.now() - heard < SILENCE;
}

/** Whether nothing has come for so long that every value is old. */
export function silent() {
  return heard > 0 && !connected && performance.now() - heard > STALE;
}

/** The server's time now, in milliseconds since 1970. */
export function now() {
  return serverNow === 0 ? Date.now() : serverNow + performance.now() - heard;
}

/** When something was last heard, in the server's time. */
export function lastHeard() {
  return serverNow === 0 ? null : serverNow;
}

/** Stops what is shown, or shows again what is new. */
export function togglePause() {
  frozen = frozen ? null : { ...newest, journeys: newest.journeys && new Map(newest.journeys) };
  changed();
}

export function isPaused() {
  return frozen !== null;
}

/** Is called whenever there is something new to draw. @param {() => void} listener */
export function onChange(listener) {
  changed = listener;
}

/** Listens for a view: its parameters are those of /api/stream. @param {Record<string, string>} parameters */
export function listen(parameters) {
  const wanted = `/api/stream?${new URLSearchParams(parameters)}`;
  if (wanted === address) return;
  address = wanted;
  // What the last view was told is not this one's; the map is everyone's.
  newest = { map: newest.map, journeys: null, journey: undefined, lab: parameters.view === "lab" ? newest.lab : null };
  frozen = null;
  if (!document.hidden) open();
}

function open() {
  source?.close();
  const mine = new EventSource(address);
  source = mine;
  connected = false;
  mine.addEventListener("snapshot", (event) => mine === source && take(JSON.parse(event.data), true));
  mine.addEventListener("delta", (event) => mine === source && take(JSON.parse(event.data), false));
  mine.onerror = () => {
    if (mine !== source) return;
    if (connected || lostSince === 0) lostSince = performance.now();
    connected = false;
    // The browser gives up for good after an answer that is no stream.
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => mine === source && open(), 2_000);
    changed();
  };
}

/** @param {any} message @param {boolean} whole */
function take(message, whole) {
  connected = true;
  wasConnected = true;
  lostSince = 0;
  heard = performance.now();
  if (message.now) serverNow = Date.parse(message.now);
  const next = { ...newest };
  if (message.map) next.map = message.map;
  if ("journey" in message) next.journey = message.journey;
  if ("lab" in message) next.lab = message.lab;
  if (message.journeys || message.gone) {
    next.journeys = new Map(whole ? [] : next.journeys);
    for (const summary of message.journeys ?? []) next.journeys.set(summary.trace, summary);
    for (const trace of message.gone ?? []) next.journeys.delete(trace);
  }
  newest = next;
  changed();
}

document.addEventListener("visibilitychange", () => {
  if (address === "") return;
  if (document.hidden) {
    source?.close();
    source = null;
  } else if (!source) {
    open();
  }
});

/** The journey as the page itself expects it, until the server tells of it. @param {Journey} journey */
export function expect(journey) {
  expected.set(journey.trace, journey);
  if (expected.size > 20) expected.delete(/** @type {string} */ (expected.keys().next().value));
}

/** @type {Map<string, Journey>} */
const expected = new Map();

/** @param {string} trace */
export function expectedJourney(trace) {
  return expected.get(trace) ?? null;
}
