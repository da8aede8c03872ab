// The lab: break a part for some seconds, and compare what is measured with what docs/failures.md says.

import { call } from "./api.js";
import { h } from "./dom.js";
import { count, duration, plural, rate } from "./format.js";
import { connection, consoleInfo, now, told } from "./live.js";
import { announce, empty, heading, loading, problem, status, time } from "./parts.js";
import { go } from "./router.js";

/** @typedef {import("./api.js").Problem} Problem */
/** @typedef {{ id: string, expected: string, measured: string | null, state: "pending" | "ok" | "failed" }} Verdict */
/** @typedef {{ run: string, part: string, verb: string, seconds: number, state: string, started: string, ends: string | null, detail?: string | null, verdicts: Verdict[] }} Run */
/**
 * @typedef {{ rate: number, until: string, sent: number, answered?: number, failed: number, p50_ms?: number | null, p99_ms: number | null }} Load
 * @typedef {{ agent: boolean, parts: { id: string, verbs: string[] }[], excluded: { id: string, why: string }[], max_seconds: number,
 *   expectations: { id: string, part: string, verb: string, text: string[], row: string }[], commands: Record<string, string>,
 *   load: Load | null, last_load?: Load | null, runs: Run[], run: Run | null }} Lab
 */

const SECONDS = [5, 10, 20, 30, 60];
const RATES = [10, 50, 100, 200];
const STATES = /** @type {Record<string, { state: string, word: string }>} */ ({
  waiting: { state: "pending", word: "is about to begin" },
  running: { state: "degraded", word: "under way" },
  healing: { state: "running", word: "heals" },
  ended: { state: "done", word: "over" },
  failed: { state: "failed", word: "could not be done" },
});

/** What the person has chosen. */
const chosen = { part: "", verb: "", seconds: 10, rate: 50, loadSeconds: 30 };
/** @type {Problem | null} */
let failed = null;
/** @type {Lab | null} */
let fetched = null;
/** @type {Run | null} */
let older = null;
let redraw = () => {};

let asked = false;

/** Asks for what the stream does not tell. @param {import("./router.js").Place} place */
function ask(place) {
  asked = true;
  if (!told().lab) call("GET", "/api/lab").then((answer) => {
    if (answer.ok) fetched = answer.body;
    else failed = answer.problem;
    redraw();
  });
  if (place.param) call("GET", `/api/lab/runs/${place.param}`).then((answer) => {
    if (answer.ok) older = answer.body;
    else failed = answer.problem;
    redraw();
  });
}

/** @type {import("./app.js").View} */
export const lab = {
  title: (place) => (place.param ? `Lab, run ${place.param}` : "Lab"),
  stream: (place) => ({ view: "lab", ...(place.param !== null && { run: place.param }) }),
  enter(_, redraw_) {
    redraw = redraw_;
    [older, asked, failed] = [null, false, null];
  },
  draw(place) {
    if (consoleInfo()?.lab !== true) {
      return [h("div", { class: "head" }, heading("Lab")), consoleInfo() ? empty("There is no lab here", "This console cannot break parts.", h("a", { class: "button", href: "/" }, "To the map")) : loading("the lab")];
    }
    if (!asked) ask(place);
    /** @type {Lab | null} */
    const known = told().lab ?? fetched;
    const current = known?.run ?? null;
    const run = place.param ? (current?.run === place.param ? current : older?.run === place.param ? older : null) : current;
    return [
      h("div", { class: "head" }, heading("Lab"), h("p", null, "Break a part for some seconds and watch it heal. The stack's agent does it, and ends it by its own timer though the console dies.")),
      failed && problem(failed),
      !known && !failed && (connection() === "lost" ? null : loading("the lab")),
      known && h("div", { class: "split lab" }, drawFault(known), drawLoad(known)),
      run && drawRun(run),
      known && known.runs.length > 0 && drawRuns(known.runs, run?.run ?? null),
    ];
  },
};

/** @param {Run | null} run */
function isGoing(run) {
  return run !== null && ["waiting", "running", "healing"].includes(run.state);
}

/** @param {Lab} known */
function drawFault(known) {
  const parts = known.parts.filter((part) => part.verbs.length > 0);
  if (parts.length === 0) return h("section", { class: "panel" }, h("h2", null, "Break a part"), h("p", { class: "muted" }, "No part can be broken here."), drawExcluded(known));
  const part = parts.find((one) => one.id === chosen.part) ?? /** @type {typeof parts[number]} */ (parts[0]);
  const verb = part.verbs.includes(chosen.verb) ? chosen.verb : String(part.verbs[0]);
  const expected = known.expectations.find((one) => one.part === part.id && one.verb === verb);
  const command = known.commands[`${part.id}.${verb}`];
  const seconds = SECONDS.filter((one) => one <= known.max_seconds);
  return h("section", { class: "panel", "aria-label": "Break a part" },
    h("h2", null, "Break a part"),
    h("form", { class: "stacked", onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      breakIt(part.id, verb, chosen.seconds);
    } },
      h("div", { class: "two" },
        select("part", "1. Part", part.id, parts.map((one) => [one.id, one.id]), (value) => { chosen.part = value; }),
        select("verb", "2. What happens to it", verb, part.verbs.map((one) => [one, one]), (value) => { chosen.verb = value; }),
        select("seconds", "3. For how long", String(chosen.seconds), seconds.map((one) => [String(one), `${one} s`]), (value) => { chosen.seconds = Number(value); })),
      expected && h("div", null, h("h3", null, "Expected"), h("ul", { class: "bullets" }, expected.text.map((text) => h("li", { key: text }, text))),
        h("p", { class: "muted small" }, "docs/failures.md: ", expected.row)),
      known.agent
        ? h("div", { class: "actions" }, h("button", { class: "primary", type: "submit", "aria-disabled": isGoing(known.run) ? "true" : null }, "Break it"),
            isGoing(known.run) && h("span", { class: "muted" }, "One at a time."))
        : h("p", null, "The stack's agent is not there, so type it yourself: ", command ? h("code", null, command) : h("span", { class: "muted" }, "there is no command for this."))),
    drawExcluded(known));
}

/** @param {Lab} known */
function drawExcluded(known) {
  return known.excluded.length > 0 && h("p", { class: "muted small" }, "Left out: ", known.excluded.map((one) => `${one.id} (${one.why})`).join(", "), ".");
}

/** @param {string} name @param {string} label @param {string} value @param {[string, string][]} options @param {(value: string) => void} take */
function select(name, label, value, options, take) {
  return h("div", { class: "field" }, h("label", { for: `l-${name}` }, label),
    h("select", { id: `l-${name}`, name, value, onchange: (/** @type {any} */ event) => {
      take(event.target.value);
      redraw();
    } }, options.map(([key, text]) => h("option", { key, value: key }, text))));
}

/** @param {string} part @param {string} verb @param {number} seconds */
async function breakIt(part, verb, seconds) {
  const answer = await call("POST", "/api/lab/runs", { body: { part, verb, seconds } });
  failed = answer.ok ? null : answer.problem;
  if (answer.ok) go(`/lab/${answer.body.run}`);
  else announce(answer.problem.detail);
  redraw();
}

/** @param {Run} run */
async function heal(run) {
  const answer = await call("DELETE", `/api/lab/runs/${run.run}`);
  failed = answer.ok ? null : answer.problem;
  redraw();
}

/** @param {Run} run */
function drawRun(run) {
  const { state, word } = STATES[run.state] ?? { state: "unknown", word: run.state };
  const left = run.ends ? Math.max(0, Date.parse(run.ends) - now()) : null;
  return h("section", { class: "panel", key: `run-${run.run}`, "aria-label": `Run ${run.run}` },
    h("div", { class: "row" }, h("h2", null, `${run.verb} ${run.part} for ${run.seconds} s`), status(state, word),
      run.state === "running" && left !== null && h("span", { class: "muted num" }, `heals in ${duration(left)}`),
      h("span", { class: "muted small" }, "Began ", time(run.started)),
      isGoing(run) && h("button", { style: { "margin-inline-start": "auto" }, onclick: () => heal(run) }, "Heal now")),
    run.detail && h("p", { class: "wrong" }, run.detail),
    run.verdicts.length > 0 && h("table", { class: "table cards" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Expected"), h("th", { scope: "col" }, "Measured"))),
      h("tbody", null, run.verdicts.map((verdict) => h("tr", { key: verdict.id, "data-verdict": verdict.id, "data-state": verdict.state },
        h("td", null, verdict.expected),
        h("td", null, status(verdict.state, verdict.measured ?? "not yet")))))));
}

/** @param {Lab} known */
function drawLoad(known) {
  const load = known.load;
  const left = load ? Math.max(0, Date.parse(load.until) - now()) : 0;
  return h("section", { class: "panel", "aria-label": "Load" },
    h("h2", null, "Load"),
    load
      ? [
          h("p", { key: "rate" }, h("span", { class: "lead" }, rate(load.rate)), h("span", { class: "muted num" }, ` for ${duration(left)} more`)),
          loadFigures(load),
          h("div", { class: "actions", key: "actions" }, h("button", { onclick: () => setLoad("DELETE") }, "Stop")),
        ]
      : h("form", { class: "stacked", key: "form", onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          setLoad("POST");
        } },
          h("p", { class: "muted" }, "Registrations of samples, at a steady rate."),
          h("div", { class: "two" },
            select("rate", "Registrations", String(chosen.rate), RATES.map((one) => [String(one), `${one}/s`]), (value) => { chosen.rate = Number(value); }),
            select("load-seconds", "For", String(chosen.loadSeconds), SECONDS.map((one) => [String(one), `${one} s`]), (value) => { chosen.loadSeconds = Number(value); })),
          h("div", { class: "actions" }, h("button", { type: "submit" }, "Go")),
          known.last_load && [h("h3", { key: "last" }, `The last one: ${rate(known.last_load.rate)}`), loadFigures(known.last_load)]));
}

/** @param {Load} load */
function loadFigures(load) {
  const rows = [["Sent", count(load.sent)], ["Failed", count(load.failed)], ["p50", duration(load.p50_ms)], ["p99", duration(load.p99_ms)]];
  return h("dl", { class: "facts", key: "facts" }, rows.map(([name, value]) => [h("dt", null, String(name)), h("dd", { class: "num" }, String(value))]));
}

/** @param {"POST" | "DELETE"} method */
async function setLoad(method) {
  const answer = await call(method, "/api/lab/load", { body: method === "POST" ? { rate: chosen.rate, seconds: chosen.loadSeconds } : {} });
  failed = answer.ok ? null : answer.problem;
  if (!answer.ok) announce(answer.problem.detail);
  redraw();
}

/** @param {Run[]} runs @param {string | null} current */
function drawRuns(runs, current) {
  return h("section", null, h("h2", null, "Runs"),
    h("table", { class: "table clickable cards" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Run"), h("th", { scope: "col" }, "State"), h("th", { scope: "col", class: "wide" }, "Began"), h("th", { scope: "col" }, "Verdicts"))),
      h("tbody", null, runs.map((run) => {
        const good = run.verdicts?.filter((verdict) => verdict.state === "ok").length ?? 0;
        const { state, word } = STATES[run.state] ?? { state: "unknown", word: run.state };
        return h("tr", { key: run.run, class: run.run === current ? "chosen" : null },
          h("td", null, h("a", { class: "cover", "data-row": true, href: `/lab/${run.run}`, "aria-current": run.run === current ? "true" : null }, `${run.verb} ${run.part}, ${run.seconds} s`)),
          h("td", null, status(state, word)),
          h("td", { class: "wide" }, time(run.started)),
          h("td", { class: "num" }, run.verdicts ? `${good} of ${plural(run.verdicts.length, "expectation")}` : ""));
      }))));
}
