// The list of journeys: what clients asked for lately, and how far it has come.

import { h } from "./dom.js";
import { DASH, duration, plural } from "./format.js";
import { connection, told } from "./live.js";
import { empty, heading, loading, status, time, titleOf } from "./parts.js";
import { registerSample } from "./writes.js";

/** @typedef {import("./live.js").Summary} Summary */

/** @type {import("./app.js").View} */
export const journeys = {
  title: () => "Journeys",
  stream: (place) => ({ view: "journeys", ...(place.query.get("error") === "1" && { error: "1" }) }),
  draw(place) {
    const errors = place.query.get("error") === "1";
    const known = told().journeys;
    const rows = [...(known?.values() ?? [])].sort((a, b) => (a.started < b.started ? 1 : a.started > b.started ? -1 : a.trace < b.trace ? 1 : -1));
    return [
      h("div", { class: "head" }, heading("Journeys"),
        h("nav", { class: "segments", "aria-label": "Which journeys" },
          h("a", { href: "/journeys", "aria-current": errors ? null : "true" }, "All"),
          h("a", { href: "/journeys?error=1", "aria-current": errors ? "true" : null }, "Failed")),
        h("p", null, "Each request, through HTTP, PostgreSQL, gRPC, outbox and Kafka into the counts. Newest first.")),
      known === null
        ? connection() === "lost" ? null : loading("journeys")
        : rows.length === 0
          ? errors
            ? empty("Nothing has failed", "No request failed among those that are kept.", h("a", { class: "button", href: "/journeys" }, "All journeys"))
            : empty("No journeys yet", ["Register a patient and watch it travel, or send many with ", h("code", null, "./justw seed"), "."],
                h("button", { class: "primary", onclick: registerSample }, "Register a sample patient"),
                h("a", { class: "button", href: "/patients?new=1" }, "Register a patient…"))
          : journeyTable(rows),
    ];
  },
};

/** @param {Summary[]} rows @param {boolean} [small] without the columns that need room */
export function journeyTable(rows, small = false) {
  const extra = small ? "gone" : "wide";
  return h("table", { class: "table clickable" },
    h("caption", { class: "hidden" }, plural(rows.length, "journey")),
    h("thead", null, h("tr", null,
      h("th", { scope: "col", class: "wide" }, "Time"), h("th", { scope: "col" }, "Request"), h("th", { scope: "col" }, "State"),
      h("th", { scope: "col", class: "right" }, "Took"), h("th", { scope: "col", class: `right ${extra}` }, "Delivered"), h("th", { scope: "col", class: `right ${extra}` }, "Spans"))),
    h("tbody", null, rows.map((row) =>
      h("tr", { key: row.trace },
        h("td", { class: "wide" }, time(row.started)),
        h("td", null,
          h("a", { href: `/journeys/${row.trace}`, class: "cover", "data-row": true }, titleOf(row)),
          row.status !== null && h("span", { class: `num ${row.status >= 400 ? "wrong" : "muted"}` }, ` ${row.status}`)),
        h("td", { class: "nowrap" }, status(row.state)),
        h("td", { class: "right num" }, duration(row.total_ms)),
        h("td", { class: `right num ${extra}` }, row.delivered_ms === null ? DASH : duration(row.delivered_ms)),
        h("td", { class: `right num ${extra}` }, row.span_count)))));
}
