// One journey: what was to happen, what has happened and when, what it waits for, and what proves it.

import { h } from "./dom.js";
import { DASH, clock, duration, plural, shortTrace } from "./format.js";
import { connection, expectedJourney, now, told } from "./live.js";
import { copyButton, empty, heading, loading, problem, shape, stateOf, time, titleOf } from "./parts.js";
import { go, withQuery } from "./router.js";
import { onWrite, sendAgain, sentWrite } from "./writes.js";

/** @typedef {import("./live.js").Journey} Journey */
/** @typedef {import("./live.js").Step} Step */
/** @typedef {import("./live.js").Span} Span */
/** @typedef {import("./live.js").LogLine} LogLine */

/** @type {import("./app.js").View} */
export const journey = {
  title: (place) => {
    const known = find(String(place.param));
    return known ? `${known.title} ${shortTrace(known.trace)}` : "Journey";
  },
  stream: (place) => ({ view: "journey", trace: String(place.param) }),
  enter(_, redraw) {
    onWrite(redraw);
  },
  draw(place) {
    const trace = String(place.param);
    const known = find(trace);
    const sent = sentWrite(trace);
    if (!known) {
      const lost = connection() === "lost";
      return [
        h("div", { class: "head" }, heading("Journey ", h("code", null, shortTrace(trace)))),
        told().journey === undefined || lost
          ? lost ? null : loading("the journey")
          : empty("This journey is not known", "The console keeps the last 1,000 traces, and none of them has this id. It appears here as soon as something of it comes.",
              h("a", { class: "button", href: "/journeys" }, "All journeys")),
      ];
    }
    const chosen = place.query.get("span");
    const span = known.spans.find((one) => one.span === chosen) ?? null;
    return [
      h("div", { class: "head" },
        heading(titleOf(known), " ", known.status !== null && h("span", { class: known.status >= 400 ? "wrong" : "muted" }, String(known.status))),
        h("span", { class: "muted nowrap" }, h("code", { title: trace }, shortTrace(trace)), copyButton(trace, "the trace id")),
        h("div", { class: "actions" },
          known.patient && known.kind !== "delete" && h("a", { class: "button", href: `/patients/${known.patient}` }, "The patient"),
          h("a", { class: "button", href: "/journeys" }, "All journeys"))),
      sent?.state === "failed" && sent.problem &&
        problem(sent.problem, h("button", { class: "primary", onclick: () => sendAgain(sent) }, "Send it again"),
          h("span", { class: "muted small" }, "With the same key, so that nothing is done twice.")),
      h("div", { class: "split journey" },
        h("div", { class: "steps-side" },
          drawVerdict(known),
          drawSteps(known, chosen),
          span && drawSpan(known, span),
          known.spans.length > 0 && drawSpans(known, chosen)),
        h("aside", { class: "side" }, drawProofs(known), drawLogs(known, chosen))),
    ];
  },
};

/** What the server tells, or what this page expects until then. @param {string} trace */
function find(trace) {
  const told_ = told().journey;
  return told_ && told_.trace === trace ? told_ : expectedJourney(trace);
}

/** Milliseconds since the journey's origin. @param {Journey} known */
function elapsed(known) {
  return Math.max(0, now() - Date.parse(known.origin));
}

/** @param {Journey} known */
function isOpen(known) {
  return known.state === "running" || known.state === "waiting";
}

/** @param {Journey} known */
function drawVerdict(known) {
  const waits = known.steps.find((step) => step.state === "waiting" && step.waits_for);
  const [text, says] =
    known.state === "delivered"
      ? [known.delivered_ms === null ? "delivered" : `delivered after ${duration(known.delivered_ms)}`, known.delivered_by === "offset" ? "Analytics has passed its offset." : ""]
      : known.state === "done"
        ? [`done after ${duration(known.total_ms)}`, ""]
        : known.state === "failed"
          ? [`failed after ${duration(known.total_ms)}`, known.status === null ? "" : `The request was answered ${known.status}.`]
          : known.state === "waiting"
            ? [`waits, ${duration(elapsed(known))} so far`, waits?.waits_for?.text ? sentence(waits.waits_for.text) : ""]
            : ["under way", ""];
  return h("div", { class: `verdict ${stateOf(known.state).tone}`, role: "status" },
    h("p", { class: "lead" }, shape(known.state), " ", text), says && h("p", { class: "muted" }, says),
    h("p", { class: "muted small" }, "Began ", time(known.started)));
}

/** @param {string} text */
function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(first) ? first : `${first}.`;
}

/** How long the drawn time is, in milliseconds. @param {Journey} known */
function extent(known) {
  let end = 0;
  for (const step of known.steps) {
    if (step.start_ms !== null) end = Math.max(end, step.start_ms + (step.ms ?? 0));
    for (const one of step.tries) end = Math.max(end, one.start_ms + (one.ms ?? 0));
  }
  for (const span of known.spans) end = Math.max(end, span.start_ms + (span.ms ?? 0));
  if (known.steps.some((step) => step.state === "waiting" && step.start_ms !== null) && isOpen(known)) end = Math.max(end, elapsed(known));
  return end;
}

/** @param {number} start @param {number} ms @param {number} whole */
function place(start, ms, whole) {
  const left = whole > 0 ? Math.max(0, Math.min(99.5, (100 * start) / whole)) : 0;
  const width = whole > 0 ? Math.max(0, Math.min(100 - left, (100 * ms) / whole)) : 0;
  return { left: `${left.toFixed(3)}%`, width: `${width.toFixed(3)}%` };
}

/** @param {Journey} known @param {string | null} chosen */
function drawSteps(known, chosen) {
  const whole = extent(known);
  return h("section", { "aria-label": "Steps" },
    whole > 0 && h("div", { class: "axis", "aria-hidden": "true" }, h("div", null, h("span", null, "0"), h("span", null, duration(whole / 2)), h("span", null, duration(whole)))),
    h("ol", { class: "steps" }, known.steps.map((step) => h("li", { key: step.id }, drawStep(known, step, whole, chosen)))));
}

/** @param {Journey} known @param {Step} step @param {number} whole @param {string | null} chosen */
function drawStep(known, step, whole, chosen) {
  const waiting = step.state === "waiting";
  const running = waiting && step.start_ms !== null && isOpen(known);
  const ms = running ? Math.max(0, elapsed(known) - Number(step.start_ms)) : step.ms;
  const kinds = `${step.wait ? "wait" : ""} ${running ? "wait open" : ""} ${step.state === "failed" ? "failed" : ""}`;
  const marks =
    step.tries.length > 1
      ? step.tries.map((one, index) => {
          const open = one.ms === null;
          return h("span", { class: `mark ${one.error ? "failed" : open ? "wait open" : ""}`, key: index, style: place(one.start_ms, one.ms ?? Math.max(0, elapsed(known) - one.start_ms), whole) });
        })
      : step.start_ms !== null && ms !== null
        ? [h("span", { class: `mark ${kinds}`, style: place(step.start_ms, ms, whole) })]
        : [];
  const says = marks.length > 0 ? null
    : step.state === "skipped" ? "not needed"
      : waiting ? (step.waits_for ? step.waits_for.text : isOpen(known) ? "expected" : "its span has not come") : step.start_ms === null && step.state === "done" ? "its span has not come" : null;
  const failures = step.tries.filter((one) => one.error);
  const folded = step.tries.length > 1
    ? `${plural(step.tries.length, "try", "tries")}: ${triesText(step.tries)}` : "";
  const content = [
    h("span", { class: "label" }, step.label, " ", h("small", null, step.service ?? "")),
    h("span", { class: says ? "track plain" : "track", "aria-hidden": says ? null : "true" }, marks, says && h("span", { class: "says" }, says)),
    h("span", { class: "time num right" },
      step.state === "failed" ? h("span", { class: "down" }, shape("failed"), h("span", { class: "hidden" }, "failed, "), " ", duration(step.ms))
        : step.state === "skipped" ? DASH
          : waiting ? (running ? h("span", { class: "muted" }, duration(ms)) : h("span", { class: "muted" }, DASH)) : duration(step.ms)),
    marks.length > 0 && waiting && step.waits_for && !step.wait && h("span", { class: "note warn" }, step.waits_for.text),
    folded && h("span", { class: `note ${failures.length > 0 ? "warn" : ""}` }, folded),
    step.state === "failed" && step.error && h("span", { class: "note failed" }, step.error),
  ];
  const classes = `step${step.parent ? " child" : ""}`;
  if (!step.span) return h("div", { class: classes, key: "plain" }, content);
  const isChosen = chosen !== null && (chosen === step.span || step.tries.some((one) => one.span === chosen));
  return h("a", { class: classes, key: "link", "data-row": true, href: withQuery({ span: isChosen ? null : step.span }), "aria-current": isChosen ? "true" : null }, content);
}

/** Many tries in few words. @param {import("./live.js").Try[]} tries */
function triesText(tries) {
  const said = tries.map((one) => (one.error ? `${one.error} after ${duration(one.ms)}` : one.ms === null ? "goes on" : `answered after ${duration(one.ms)}`));
  return said.length <= 4 ? said.join(", ") : `${said[0]}, … , ${said[said.length - 1]}`;
}

/** @param {Journey} known @param {Span} span */
function drawSpan(known, span) {
  const attributes = Object.entries(span.attributes);
  const lines = known.logs.filter((line) => line.span === span.span).length;
  return h("section", { class: "panel", key: "span", "aria-label": "The chosen span" },
    h("div", { class: "row" }, h("h2", { class: "wrap" }, span.name), h("span", { class: "muted" }, `${span.service}, ${span.kind}`),
      h("button", { class: "quiet small", style: { "margin-inline-start": "auto" }, onclick: () => go(withQuery({ span: null })) }, "Close")),
    h("dl", { class: "facts" },
      h("dt", null, "Begins"), h("dd", { class: "num" }, `${duration(span.start_ms)} after the origin, ${clock(Date.parse(known.origin) + span.start_ms)}`),
      h("dt", null, "Takes"), h("dd", { class: "num" }, duration(span.ms)),
      span.error && [h("dt", { key: "te" }, "Error"), h("dd", { key: "de", class: "wrong" }, span.error)],
      h("dt", null, "Span"), h("dd", null, h("code", null, span.span)),
      attributes.map(([name, value]) => [h("dt", { key: `t-${name}` }, h("code", null, name)), h("dd", { key: `d-${name}` }, h("code", null, String(value)))]),
      span.events.map((event, index) => [h("dt", { key: `te-${index}` }, index === 0 ? "Events" : ""), h("dd", { key: `de-${index}` }, event.name, " ", h("span", { class: "muted num" }, `at ${duration(event.at_ms)}`))])),
    lines > 0 && h("p", { class: "muted small" }, `${plural(lines, "log line")} of it ${lines === 1 ? "is" : "are"} marked beside.`));
}

/** Spans below their parents, in the order of their starts. @param {Span[]} spans @returns {[Span, number][]} */
function nested(spans) {
  const known = new Set(spans.map((span) => span.span));
  /** @type {Map<string | null, Span[]>} */
  const children = new Map();
  for (const span of [...spans].sort((a, b) => a.start_ms - b.start_ms || (a.span < b.span ? -1 : 1))) {
    const parent = span.parent !== null && known.has(span.parent) ? span.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), span]);
  }
  /** @type {[Span, number][]} */
  const order = [];
  const seen = new Set();
  const walk = (/** @type {string | null} */ parent, /** @type {number} */ depth) => {
    for (const span of children.get(parent) ?? []) {
      if (seen.has(span.span)) continue;
      seen.add(span.span);
      order.push([span, depth]);
      walk(span.span, depth + 1);
    }
  };
  walk(null, 0);
  // A circle of parents has no beginning.
  for (const span of spans) if (!seen.has(span.span)) order.push([span, 0]);
  return order;
}

/** @param {Journey} known @param {string | null} chosen */
function drawSpans(known, chosen) {
  const whole = extent(known);
  return h("details", { open: chosen !== null && known.spans.some((span) => span.span === chosen && span.step === null) ? true : null },
    h("summary", null, `All spans (${known.spans.length})`),
    h("div", { class: "scroll" }, h("table", { class: "table spans" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Span"), h("th", { scope: "col", class: "wide" }, "Service"), h("th", { scope: "col", class: "wide" }, h("span", { class: "hidden" }, "When")), h("th", { scope: "col", class: "right" }, "Took"))),
      h("tbody", null, nested(known.spans).map(([span, depth]) =>
        h("tr", { key: span.span, class: span.span === chosen ? "chosen" : null },
          h("td", { style: { "padding-inline-start": `${8 + 12 * Math.min(depth, 6)}px` } },
            h("a", { href: withQuery({ span: span.span }), "aria-current": span.span === chosen ? "true" : null }, span.name)),
          h("td", { class: "muted wide nowrap" }, span.service),
          h("td", { class: "wide", "aria-hidden": "true" }, h("div", { class: "track" }, h("span", { class: `mark ${span.error ? "failed" : ""}`, style: place(span.start_ms, span.ms ?? 0, whole) }))),
          h("td", { class: "right num" }, span.error && [h("span", { class: "down" }, shape("failed"), h("span", { class: "hidden" }, "failed")), " "], duration(span.ms))))))));
}

/** What the proofs are called while nothing is known of them. */
const PROOFS = /** @type {[string, string][]} */ ([
  ["broker", "the broker has acknowledged partition and offset"],
  ["analytics", "analytics has applied the offset"],
  ["read_back", "the record is read back from the topic"],
]);

/** @param {Journey} known */
function drawProofs(known) {
  if ((known.state === "failed" && known.proofs.length === 0) || known.kind === "read" || known.kind === "transaction" || (known.kind === "other" && known.proofs.length === 0)) return null;
  return h("section", { class: "panel" }, h("h2", null, "Proof"),
    h("ul", { class: "proofs" }, PROOFS.map(([id, words]) => {
      const proof = known.proofs.find((one) => one.id === id);
      const state = proof?.state ?? "pending";
      return h("li", { key: id, "data-proof": id, "data-state": state },
        h("span", { class: stateOf(state).tone }, shape(state), h("span", { class: "hidden" }, `${stateOf(state).word}: `)),
        h("span", { class: state === "pending" ? "muted" : null }, proof?.text || words));
    })));
}

/** @param {Journey} known @param {string | null} chosen */
function drawLogs(known, chosen) {
  return h("section", { class: "panel" }, h("h2", null, "Logs", known.logs.length > 0 && h("span", { class: "muted" }, ` (${known.logs.length})`)),
    known.logs.length > 0 ? logLines(known.logs, chosen, known.trace) : h("p", { class: "muted" }, isOpen(known) ? "No line has come yet." : "No service wrote a line about it."));
}

const SEVERITIES = /** @type {Record<string, string>} */ ({ WARN: "degraded", ERROR: "down", FATAL: "down" });

/**
 * Log lines; one with a span opens it.
 * @param {LogLine[]} lines @param {string | null} chosen @param {string} [here] the trace whose page this is
 */
export function logLines(lines, chosen, here) {
  return h("ul", { class: "logs" }, lines.map((line) => {
    const tone = SEVERITIES[line.severity];
    const content = [
      h("span", { class: "small muted" }, time(line.time), ` ${line.service}`),
      h("span", { class: "message" }, " ", tone && h("span", { class: `status ${tone}` }, shape(tone), line.severity), tone && " ", line.message),
    ];
    const href = line.trace && line.span ? (line.trace === here ? withQuery({ span: line.span }) : `/journeys/${line.trace}?span=${line.span}`) : null;
    const isChosen = chosen !== null && line.span === chosen;
    return h("li", { key: line.id, class: isChosen ? "chosen" : null, title: attributesText(line.attributes) || null },
      href ? h("a", { href, "aria-current": isChosen ? "true" : null }, content) : h("div", { class: "line" }, content));
  }));
}

/** @param {Record<string, any>} attributes */
function attributesText(attributes) {
  return Object.entries(attributes ?? {}).map(([name, value]) => `${name}=${value}`).join("\n");
}
