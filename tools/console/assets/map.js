// The map: the parts of the system, what flows between them, and what waits where.

import { call } from "./api.js";
import { h } from "./dom.js";
import { DASH, age, clock, count, plural, rate } from "./format.js";
import { connection, silent, told } from "./live.js";
import { logLines } from "./journey.js";
import { asOf, heading, loading, problem, shapePath, stateOf, status, time } from "./parts.js";
import { registerSample } from "./writes.js";
import { go, withQuery } from "./router.js";

/** @typedef {import("./live.js").SystemMap} SystemMap */
/** @typedef {import("./live.js").Part} Part */
/** @typedef {{ x: number, y: number, width: number, height: number }} Box */

const NAMES = /** @type {Record<string, string>} */ ({
  clients: "clients",
  "patient-service": "patient-service",
  "billing-service": "billing-service",
  "analytics-service": "analytics-service",
  "patient-db": "patient-db",
  "billing-db": "billing-db",
  kafka: "Kafka",
  sqlite: "SQLite",
});

/** What an edge carries. */
const CARRIES = /** @type {Record<string, string>} */ ({
  "clients>patient-service": "HTTP",
  "patient-service>billing-service": "gRPC",
  "billing-service>billing-db": "commits",
  "patient-service>patient-db": "commits",
  "patient-db>kafka": "events",
  "kafka>analytics-service": "events",
  "analytics-service>sqlite": "applied",
});

/** Whose metrics an edge's rate comes from. */
const MEASURED_BY = /** @type {Record<string, string>} */ ({
  "clients>patient-service": "patient-service",
  "patient-service>billing-service": "patient-service",
  "billing-service>billing-db": "billing-service",
  "patient-service>patient-db": "patient-service",
  "patient-db>kafka": "patient-service",
  "kafka>analytics-service": "analytics-service",
  "analytics-service>sqlite": "analytics-service",
});

/** Below this width the parts stand under each other. */
const NARROW = 760;

/** Where each part stands, for a width in pixels. @param {number} width */
function layout(width) {
  /** @type {Record<string, Box>} */
  const boxes = {};
  /** @type {Record<string, { line: [number, number][], label: [number, number], anchor: string }>} */
  const edges = {};
  const height = 92;
  if (width >= NARROW) {
    const gap = Math.min(112, Math.max(84, width * 0.095));
    const wide = (width - 2 - 3 * gap) / 4;
    const down = 64;
    const at = (/** @type {number} */ column, /** @type {number} */ row) => ({ x: 1 + column * (wide + gap), y: 1 + row * (height + down), width: wide, height });
    Object.assign(boxes, {
      clients: at(0, 0), "patient-service": at(1, 0), "billing-service": at(2, 0), "billing-db": at(3, 0),
      "patient-db": at(1, 1), kafka: at(1, 2), "analytics-service": at(2, 2), sqlite: at(3, 2),
    });
    const across = (/** @type {string} */ from, /** @type {string} */ to) => {
      const [a, b] = [/** @type {Box} */ (boxes[from]), /** @type {Box} */ (boxes[to])];
      const y = a.y + height / 2;
      edges[`${from}>${to}`] = { line: [[a.x + a.width, y], [b.x, y]], label: [a.x + a.width + gap / 2 - 4, y - 10], anchor: "middle" };
    };
    const below = (/** @type {string} */ from, /** @type {string} */ to) => {
      const [a, b] = [/** @type {Box} */ (boxes[from]), /** @type {Box} */ (boxes[to])];
      const x = a.x + a.width / 2;
      edges[`${from}>${to}`] = { line: [[x, a.y + height], [x, b.y]], label: [x + 12, a.y + height + down / 2 + 1], anchor: "start" };
    };
    across("clients", "patient-service");
    across("patient-service", "billing-service");
    across("billing-service", "billing-db");
    below("patient-service", "patient-db");
    below("patient-db", "kafka");
    across("kafka", "analytics-service");
    across("analytics-service", "sqlite");
    return { boxes, edges, height: 3 * height + 2 * down + 2 };
  }
  // One under the other; billing stands beside the line that goes on to the counts.
  const [between, indent] = [44, 36];
  /** Those that show no values of their own need no room for them. */
  const low = ["clients", "patient-service", "billing-service", "billing-db", "kafka"];
  const order = ["clients", "patient-service", "billing-service", "billing-db", "patient-db", "kafka", "analytics-service", "sqlite"];
  let y = 1;
  order.forEach((id) => {
    const aside = id === "billing-service" || id === "billing-db";
    boxes[id] = { x: aside ? 1 + indent : 1, y, width: width - 2 - (aside ? indent : 0), height: low.includes(id) ? 74 : height };
    y += boxes[id].height + between;
  });
  const below = (/** @type {string} */ from, /** @type {string} */ to, /** @type {number} */ x) => {
    const [a, b] = [/** @type {Box} */ (boxes[from]), /** @type {Box} */ (boxes[to])];
    // The label stands just above its end, beside the line.
    edges[`${from}>${to}`] = { line: [[x, a.y + a.height], [x, b.y]], label: [x + 12, b.y - 21], anchor: "start" };
  };
  below("clients", "patient-service", 18);
  below("patient-service", "billing-service", 60);
  below("billing-service", "billing-db", 60);
  below("patient-service", "patient-db", 18);
  below("patient-db", "kafka", 18);
  below("kafka", "analytics-service", 18);
  below("analytics-service", "sqlite", 18);
  return { boxes, edges, height: y - between + 1 };
}

/** @type {{ step_s: number, end: string, series: Record<string, (number | null)[]> } | null} */
let history = null;
let historyAsked = -Infinity;
/** @type {{ id: string, body: any, problem: any, at: number } | null} */
let detail = null;
let redrawView = () => {};

/** How often the history and an open part are asked for, in milliseconds. */
const REFRESH = 2_000;

function refresh() {
  const at = performance.now();
  if (at - historyAsked > REFRESH) {
    historyAsked = at;
    call("GET", "/api/map/history").then((answer) => {
      if (answer.ok) history = answer.body;
      redrawView();
    });
  }
  const id = new URLSearchParams(location.search).get("part");
  if (id && (detail?.id !== id || at - detail.at > REFRESH)) {
    const before = detail?.id === id ? detail.body : null;
    const mine = (detail = { id, body: before, problem: detail?.id === id ? detail.problem : null, at });
    call("GET", `/api/parts/${encodeURIComponent(id)}`).then((answer) => {
      if (detail !== mine) return;
      if (answer.ok) Object.assign(mine, { body: answer.body, problem: null });
      else mine.problem = answer.problem;
      redrawView();
    });
  }
}

/** @type {import("./app.js").View} */
export const map = {
  title: () => "Map",
  stream: () => ({ view: "map" }),
  enter(_, redraw) {
    redrawView = redraw;
    refresh();
  },
  draw(place) {
    const known = told().map;
    if (connection() === "live") refresh();
    const chosen = place.query.get("part");
    return [
      h("div", { class: "head" }, heading("Map"), known && overall(known),
        h("div", { class: "actions" },
          h("button", { onclick: registerSample }, "Register a sample patient"),
          h("a", { class: "button primary", href: "/patients?new=1" }, "Register a patient…")),
        h("p", null, "A box opens its health, metrics and last log lines.")),
      known ? drawMap(known, chosen) : connection() === "lost" ? null : loading("the map"),
      chosen && NAMES[chosen] && chosen !== "clients" && known && drawPart(known, chosen),
      known && drawCharts(),
    ];
  },
};

/** @param {SystemMap} known */
function overall(known) {
  const trouble = known.parts.filter((part) => part.state === "down" || part.state === "degraded");
  const unknown = known.parts.filter((part) => part.state === "unknown");
  if (trouble.length > 0) {
    const worst = trouble.some((part) => part.state === "down") ? "down" : "degraded";
    return status(worst, trouble.map((part) => `${NAMES[part.id] ?? part.id} ${stateOf(part.state).word}`).join(", "));
  }
  if (unknown.length > 0) return status("unknown", `${plural(unknown.length, "part")} not known yet`);
  return status("up", "all parts up");
}

/** The two lines below a part's name. @param {SystemMap} known @param {string} id @returns {[string, string][]} */
function values(known, id) {
  switch (id) {
    case "clients":
      return [["requests", rate(edge(known, "clients>patient-service")?.per_second)]];
    case "patient-db":
      return [
        ["outbox", `${count(known.outbox?.pending)}, oldest ${age(known.outbox?.oldest_s)}`],
        ["billing tasks", count(known.tasks?.pending)],
      ];
    case "kafka":
      return [
        ["partitions", known.partitions.length > 0 ? known.partitions.map(({ partition }) => `p${partition}`).join(" ") : DASH],
      ];
    case "analytics-service":
      return [["lag", count(known.lag)]];
    case "sqlite":
      return [
        ["patients", count(known.counts?.active)],
        ["events", known.counts ? count(known.counts.created + known.counts.updated + known.counts.deleted) : DASH],
      ];
    default:
      return [];
  }
}

/** @param {SystemMap} known @param {string} id */
function edge(known, id) {
  return known.edges.find((found) => found.id === id);
}

/** Whether what a part last said is old. @param {Part | undefined} part */
function isOld(part) {
  return silent() || (part?.stale ?? false) && part?.seen !== null;
}

/** @param {string} text @param {number} width of the box @param {number} each of a letter */
function fit(text, width, each) {
  const room = Math.floor(width / each);
  return text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`;
}

/** @param {SystemMap} known @param {string | null} chosen */
function drawMap(known, chosen) {
  const main = /** @type {HTMLElement} */ (document.getElementById("main"));
  const style = getComputedStyle(main);
  const width = Math.floor(main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  const { boxes, edges, height } = layout(width);
  const part = (/** @type {string} */ id) => known.parts.find((found) => found.id === id);
  return h("svg", { class: "map", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Map of the system" },
    Object.entries(edges).map(([id, drawn]) => drawEdge(known, id, drawn, part)),
    width >= NARROW && drawLegend(/** @type {Box} */ (boxes.clients), /** @type {Box} */ (boxes.kafka)),
    Object.entries(boxes).map(([id, box]) => drawBox(known, id, box, part(id), chosen === id)));
}

/** What the signs mean, where the map has room. @param {Box} left @param {Box} low */
function drawLegend(left, low) {
  const rows = /** @type {[string, string][]} */ ([["up", "up"], ["degraded", "degraded"], ["down", "down"], ["unknown", "not known"]]);
  const top = low.y + low.height - 94;
  return h("g", { class: "key", key: "legend" },
    rows.map(([state, word], index) => [
      h("path", { class: stateOf(state).tone, d: shapePath(state), "fill-rule": "evenodd", transform: `translate(${left.x} ${top + index * 20 - 10})` }),
      h("text", { class: "sub", x: left.x + 20, y: top + index * 20 }, word),
    ]),
    h("text", { class: "sub", x: left.x, y: top + 88 }, "Grey values are old."));
}

/**
 * @param {SystemMap} known @param {string} id @param {{ line: [number, number][], label: [number, number], anchor: string }} drawn
 * @param {(id: string) => Part | undefined} part
 */
function drawEdge(known, id, drawn, part) {
  const told = edge(known, id);
  const [[x1, y1], [x2, y2]] = /** @type {[[number, number], [number, number]]} */ (drawn.line);
  const down = x1 === x2;
  const end = down ? [x2, y2 - 7] : [x2 - 7, y2];
  const path = `M${x1} ${y1}L${end[0]} ${end[1]}`;
  const tip = down ? `M${x2} ${y2}l-4.5-8h9z` : `M${x2} ${y2}l-8-4.5v9z`;
  const value = told?.per_second;
  const old = isOld(part(MEASURED_BY[id] ?? ""));
  const flows = !old && value !== null && value !== undefined && value > 0;
  const [x, y] = drawn.label;
  const breaker = told?.breaker;
  const open = breaker === "open" || breaker === "half-open";
  return h("g", { key: id, class: old ? "old" : null },
    h("path", { class: "edge", d: path }),
    flows && h("path", { class: "flow", d: path, style: { "animation-duration": `${Math.max(0.25, Math.min(2, 2 / Math.sqrt(value)))}s` } }),
    h("path", { class: "tip", d: tip }),
    h("text", { class: "val", x, y, "text-anchor": drawn.anchor },
      h("title", null, `${NAMES[id.split(">")[0] ?? ""]} to ${NAMES[id.split(">")[1] ?? ""]}: ${CARRIES[id] ?? ""}, mean of the last 5 s`),
      `${rate(value)} `, h("tspan", { class: "sub" }, CARRIES[id] ?? "")),
    breaker && h("text", { "data-breaker": breaker, class: `val ${open ? "down" : ""}`, x: down ? x + 72 : x, y: down ? y : y + 27, "text-anchor": drawn.anchor }, open ? `◆ ${breaker}` : `◇ ${breaker}`));
}

/** @param {SystemMap} known @param {string} id @param {Box} box @param {Part | undefined} part @param {boolean} chosen */
function drawBox(known, id, box, part, chosen) {
  const state = part?.state ?? "unknown";
  const old = isOld(part);
  const name = NAMES[id] ?? id;
  const replicas = part?.replicas?.length ?? 0;
  const lines = values(known, id);
  const where = replicas === 1 ? part?.replicas?.[0]?.address : replicas > 1 ? plural(replicas, "replica") : part?.detail;
  const seen = part?.seen ? Date.parse(part.seen) : null;
  const word = id === "clients" ? "" : state === "down" || state === "degraded" || state === "unknown" ? (lines.length < 2 && part?.detail) || stateOf(state).word : "";
  const text = old && seen !== null ? `as of ${clock(seen)}` : word || (lines.length < 2 && where ? where : "");
  const classes = [id === "clients" || state === "up" || state === "unknown" ? "" : `is-${state}`, old ? "old" : "", chosen ? "chosen" : ""].join(" ").trim();
  const inside = [
    h("rect", { class: "box", x: box.x, y: box.y, width: box.width, height: box.height, rx: "6" }),
    id !== "clients" && h("path", { class: stateOf(state).tone, d: shapePath(state), "fill-rule": "evenodd", transform: `translate(${box.x + 12} ${box.y + 13})` }),
    h("text", { class: "name", x: box.x + (id === "clients" ? 12 : 30), y: box.y + 24 },
      fit(name, box.width - 60, 7.6), replicas > 0 && h("tspan", { class: "sub", dx: "2" }, ` ×${replicas}`)),
    lines.slice(0, 2).map(([label, value], index) =>
      h("text", { class: "val", x: box.x + 12, y: box.y + 46 + index * 17 },
        h("tspan", { class: "sub" }, `${label} `), fit(value, box.width - 24 - label.length * 6.5, 6.4))),
    text && h("text", { class: old || word === "" ? "sub" : `val ${stateOf(state).tone}`, x: box.x + 12, y: box.y + 46 + Math.min(lines.length, 2) * 17 }, fit(text, box.width - 20, 6.4)),
  ];
  if (id === "clients") return h("g", { key: id, class: classes }, inside);
  // What is seen, in its order, and then what the shape says.
  const seenText = [name, replicas > 0 ? `×${replicas}` : "", ...lines.map(([label, value]) => `${label} ${value}`), text].filter(Boolean).join(" ");
  return h("a", { key: id, class: classes || null, href: withQuery({ part: chosen ? null : id }), "aria-label": `${seenText}, ${stateOf(state).word}`, "aria-current": chosen ? "true" : null, "data-row": true },
    // Without a space between them, readers join the words.
    inside.flat().flatMap((one) => [one, " "]));
}

/** Health, metrics and last log lines of the part that was chosen. @param {SystemMap} known @param {string} id */
function drawPart(known, id) {
  const part = known.parts.find((found) => found.id === id);
  const body = detail?.id === id ? detail.body : null;
  const components = Object.entries(body?.health?.components ?? {});
  return h("section", { class: "panel", key: `part-${id}`, "aria-label": NAMES[id] },
    h("div", { class: "row" }, h("h2", null, NAMES[id]), part && status(part.state), part && isOld(part) && asOf(part.seen),
      part?.detail && h("span", { class: "muted small" }, part.detail),
      h("button", { class: "quiet small", style: { "margin-inline-start": "auto" }, onclick: () => go(withQuery({ part: null })) }, "Close")),
    detail?.problem && problem(detail.problem),
    !body && !detail?.problem && loading(NAMES[id] ?? "the part"),
    part?.replicas && part.replicas.length > 0 &&
      h("ul", null, part.replicas.map((replica) =>
        h("li", { key: replica.address }, status(replica.state), " ", h("code", null, replica.address), " ",
          h("span", { class: "muted small" }, replica.version ? `version ${replica.version}, ` : "", "seen ", time(replica.seen))))),
    components.length > 0 &&
      h("div", null, h("h3", null, "Health"),
        h("dl", { class: "facts" }, components.map(([name, component]) => [
          h("dt", { key: `t-${name}` }, name),
          h("dd", { key: `d-${name}` }, status({ UP: "up", DEGRADED: "degraded", DOWN: "down" }[String(/** @type {any} */ (component).status)] ?? "unknown"),
            /** @type {any} */ (component).detail && h("span", { class: "muted small" }, ` ${/** @type {any} */ (component).detail}`)),
        ]))),
    body?.metrics?.length > 0 &&
      h("details", null, h("summary", null, plural(body.metrics.length, "metric")),
        h("div", { class: "scroll" }, h("table", { class: "table" }, h("tbody", null, body.metrics.map((/** @type {any} */ metric) =>
          h("tr", { key: metric.name + JSON.stringify(metric.labels) },
            h("td", null, h("code", null, metric.name), " ", h("span", { class: "small muted wrap" }, words(metric.labels))),
            h("td", { class: "right num" }, metric.value === null ? DASH : Number.isInteger(metric.value) ? count(metric.value) : String(metric.value)))))))),
    body && h("div", null, h("h3", null, "Last log lines"), body.logs?.length > 0 ? logLines(body.logs, null) : h("p", { class: "muted" }, "None has come since the console started.")));
}

/** @param {any} fields */
function words(fields) {
  if (fields === null || typeof fields !== "object") return String(fields ?? "");
  return Object.entries(fields).map(([name, value]) => `${name}=${typeof value === "object" ? JSON.stringify(value) : value}`).join(" ");
}

const CHARTS = /** @type {const} */ ([
  ["requests", "Requests", "/s"],
  ["commits", "Commits", "/s"],
  ["sends", "Events sent", "/s"],
  ["applied", "Events applied", "/s"],
  ["outbox", "Waiting in the outbox", ""],
  ["lag", "Lag of analytics", ""],
]);

function drawCharts() {
  const span = history ? history.step_s * Math.max(...Object.values(history.series).map((points) => points.length), 1) : 300;
  return h("section", { "aria-label": "The last five minutes" },
    h("div", { class: "charts" }, CHARTS.map(([id, label, unit]) => {
      const points = history?.series[id] ?? [];
      const last = points.length > 0 ? points[points.length - 1] : null;
      const shown = points.map((value) => value ?? 0);
      const most = Math.max(...shown, unit === "/s" ? 1 : 5);
      return h("figure", { class: `chart${silent() ? " stale" : ""}`, key: id },
        h("figcaption", { class: "small muted" }, label),
        h("div", { class: "now" }, unit === "/s" ? rate(last) : count(last)),
        h("svg", { viewBox: "0 0 300 40", preserveAspectRatio: "none", role: "img", "aria-label": `${label}, last ${Math.round(span)} s, at most ${unit === "/s" ? rate(Math.max(...shown, 0)) : count(Math.max(...shown, 0))}` },
          h("line", { x1: "0", x2: "300", y1: "39.5", y2: "39.5" }),
          h("path", { d: line(points, most) })));
    })));
}

/** A line of at most 300 points; it breaks where a value is not known. @param {(number | null)[]} points @param {number} most */
function line(points, most) {
  let path = "";
  let broken = true;
  points.forEach((value, index) => {
    if (value === null) {
      broken = true;
      return;
    }
    const x = 300 - (points.length - 1 - index);
    path += `${broken ? "M" : "L"}${x} ${(38 - (value / most) * 35).toFixed(1)}`;
    broken = false;
  });
  return path;
}
