// The frame of the console: which view is shown, the keys, the theme, and when to draw.

import { call, logIn } from "./api.js";
import { deadLetters } from "./dead-letters.js";
import { h, render } from "./dom.js";
import { clock } from "./format.js";
import { journey } from "./journey.js";
import { journeys } from "./journeys.js";
import { lab } from "./lab.js";
import { connection, consoleInfo, isPaused, lastHeard, listen, onChange, setInfo, told, togglePause } from "./live.js";
import { map } from "./map.js";
import { announce, dialog, heading, showDialogs, status } from "./parts.js";
import { patients } from "./patients.js";
import { go, here, onNavigation, withQuery } from "./router.js";

/**
 * @typedef {import("./router.js").Place} Place
 * @typedef {{
 *   title: (place: Place) => string,
 *   stream: (place: Place) => Record<string, string>,
 *   enter?: (place: Place, redraw: () => void) => void,
 *   draw: (place: Place) => any,
 *   dialog?: (place: Place) => any,
 * }} View
 */

/** @type {Record<string, View>} */
const VIEWS = {
  map,
  journeys,
  journey,
  patients,
  lab,
  "dead-letters": deadLetters,
  unknown: {
    title: () => "Not found",
    stream: () => ({ view: "map" }),
    draw: (place) => [
      h("div", { class: "head" }, heading("There is no such page")),
      h("p", null, h("code", null, place.path), " is no address of the console. ", h("a", { href: "/" }, "To the map"), "."),
    ],
  },
};

const NAVIGATION = [
  { href: "/", label: "Map", views: ["map"] },
  { href: "/journeys", label: "Journeys", views: ["journeys", "journey"] },
  { href: "/patients", label: "Patients", views: ["patients"] },
  { href: "/lab", label: "Lab", views: ["lab"] },
  { href: "/dead-letters", label: "Dead letters", views: ["dead-letters"] },
];

const header = /** @type {HTMLElement} */ (document.getElementById("header"));
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const dialogs = /** @type {HTMLElement} */ (document.getElementById("dialogs"));
main.replaceChildren();

let place = here();
let drawing = false;

/** @param {string} name */
function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

/** @param {string} name @param {string | null} value */
function store(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // Storage is blocked: the choice lasts as long as the page.
  }
}

let keysOn = stored("keys") !== "off";

function view() {
  return /** @type {View} */ (VIEWS[place.name]);
}

/** Draws before the browser shows its next frame, however often it is asked. */
function redraw() {
  if (drawing) return;
  drawing = true;
  // A hidden page has no frames, and nothing to draw for.
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function draw() {
  document.documentElement.classList.toggle("paused", isPaused());
  document.title = `${view().title(place)} · Console`;
  render(header, drawHeader());
  render(main, view().draw(place));
  render(dialogs, place.query.has("help") ? drawHelp() : (view().dialog?.(place) ?? null));
  showDialogs();
}

const CONNECTIONS = {
  connecting: { state: "unknown", word: "connecting" },
  live: { state: "up", word: "live" },
  paused: { state: "unknown", word: "paused" },
  lost: { state: "down", word: "no connection" },
};

let connectionBefore = "connecting";

function drawHeader() {
  const state = connection();
  if (state !== connectionBefore) {
    if (state === "lost") {
      announce("The connection to the console is lost");
      readInfo();
    }
    else if (connectionBefore === "lost") announce("The connection to the console is back");
    connectionBefore = state;
  }
  const { state: tone, word } = CONNECTIONS[state];
  const paused = isPaused();
  return [
    h("a", { class: "brand", href: "/", "aria-label": "Console of Patient Management, to the map" },
      h("img", { src: "/assets/icon.svg", width: "24", height: "24", alt: "" }), h("span", null, "Patient Management")),
    h("nav", { class: "views", "aria-label": "Views" },
      NAVIGATION.map(({ href, label, views }, index) => (href !== "/lab" || hasLab()) &&
        h("a", { href, key: href, "aria-current": views.includes(place.name) ? "page" : null, "aria-keyshortcuts": String(index + 1) },
          label, h("kbd", { "aria-hidden": "true" }, String(index + 1))))),
    h("div", { class: "tools" },
      h("button", { class: "quiet", onclick: togglePause, "aria-pressed": String(paused), "aria-keyshortcuts": "Space",
        title: paused ? "Show what is new (Space)" : "Hold what is shown (Space)" },
        status(tone, word)),
      h("button", { class: "quiet icon", onclick: nextTheme, title: `Theme: ${theme()}`, "aria-label": `Theme: ${theme()}. Change it` },
        h("svg", { width: "16", height: "16", viewBox: "0 0 16 16", "aria-hidden": "true" },
          h("circle", { cx: "8", cy: "8", r: "6.5", fill: "none", stroke: "currentColor", "stroke-width": "1.5" }),
          h("path", { d: "M8 1.5a6.5 6.5 0 0 1 0 13z", fill: "currentColor" }))),
      consoleInfo()?.user && h("button", { class: "quiet", onclick: logOut, title: `Logged in as ${consoleInfo()?.user}` }, "Log out"),
      h("a", { class: "button quiet icon", href: withQuery({ help: "1" }), title: "Keys and words (?)", "aria-label": "Keys and words", "aria-keyshortcuts": "?" }, "?")),
    state === "lost" &&
      h("div", { class: "notice", key: "notice" },
        h("span", null, h("strong", null, "The console does not answer. "),
          lastHeard() ? `What you see is as of ${clock(lastHeard())}. ` : "", "It is asked again by itself; ", h("code", null, "./justw up"), " starts it.")),
  ];
}

async function logOut() {
  await call("DELETE", "/api/session");
  logIn();
}

/** Whether this console can break parts. */
function hasLab() {
  return consoleInfo()?.lab === true;
}

function theme() {
  return document.documentElement.dataset.theme ?? "as the system";
}

/** The other theme than the one that is seen, and at last the system's again. */
function nextTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const order = dark ? [undefined, "light", "dark"] : [undefined, "dark", "light"];
  const next = order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  store("theme", next ?? null);
  announce(`Theme: ${theme()}`);
  redraw();
}

function closeHelp() {
  go(withQuery({ help: null }), { replace: true });
}

function drawHelp() {
  const info = consoleInfo();
  const keys = [
    ["1 – 5", "the five views"],
    ["/", "search patients"],
    ["n", "register a patient"],
    ["j  k", "next or previous row"],
    ["Enter", "open the row"],
    ["Space", "hold what is shown, or go on"],
    ["Esc", "close, or back to the list"],
    ["?", "this page"],
  ];
  return dialog("Keys and words", closeHelp,
    h("h2", null, "Keys"),
    h("dl", { class: "keys" }, keys.map(([key, what]) => [h("dt", null, h("kbd", null, String(key))), h("dd", null, String(what))])),
    h("label", { class: "actions" },
      h("input", { type: "checkbox", checked: keysOn, onchange: (/** @type {any} */ event) => {
        keysOn = event.target.checked;
        store("keys", keysOn ? null : "off");
        redraw();
      } }), "Single keys work"),
    h("h2", null, "Signs"),
    h("ul", { class: "legend" }, ["up", "degraded", "down", "unknown"].map((state) => h("li", null, status(state)))),
    h("p", { class: "muted" }, "– is not known. Grey values are old; their time stands beside them. Hatched bars are waits, dashed outlines are failures."),
    info && h("p", { class: "small muted" }, `Console ${info.version}, revision ${info.revision}. `,
      info.links?.api && h("a", { href: info.links.api, target: "_blank", rel: "noreferrer" }, "API of patient-service")),
    h("div", { class: "actions" }, h("button", { onclick: closeHelp, "data-first": true }, "Close")));
}

let pathBefore = "";
let nameBefore = "";

function navigate() {
  place = here();
  const moved = place.path !== pathBefore;
  const first = pathBefore === "";
  pathBefore = place.path;
  listen(view().stream(place));
  view().enter?.(place, redraw);
  // At once, so that focus goes to what is there.
  draw();
  if (moved && !first) {
    const beside = place.name === nameBefore && innerWidth >= 960;
    // A list beside what it opened stays where it was, and keeps the focus.
    if (!beside) scrollTo(0, 0);
    if (!beside && !document.querySelector("dialog[open]")) /** @type {HTMLElement | null} */ (main.querySelector("h1"))?.focus({ preventScroll: true });
  }
  nameBefore = place.name;
}

/** @param {1 | -1} step */
function moveRow(step) {
  const rows = /** @type {NodeListOf<HTMLElement>} */ (main.querySelectorAll("[data-row]"));
  if (rows.length === 0) return;
  const at = Array.prototype.indexOf.call(rows, document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step));
  rows[next]?.focus();
}

function escape() {
  if (place.query.has("help")) closeHelp();
  else if (place.name === "map" && place.query.has("part")) go(withQuery({ part: null }));
  else if (place.name === "journey" && place.query.has("span")) go(withQuery({ span: null }));
  else if (place.name === "journey") go("/journeys");
  else if (place.name === "patients" && place.param) go(`/patients${location.search}`);
  else if (place.name === "lab" && place.param) go("/lab");
  else if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const target = event.target instanceof Element ? event.target : document.body;
  const modal = document.querySelector("dialog[open]") !== null;
  const typing = target.matches("input:not([type=checkbox]):not([type=radio]), select, textarea, [contenteditable]");
  if (event.key === "Escape") {
    // A dialog closes by itself.
    if (!modal && typing) /** @type {HTMLElement} */ (target).blur();
    else if (!modal) escape();
    return;
  }
  if (modal || typing || !keysOn) return;
  const digit = "12345".indexOf(event.key);
  if (digit === 3 && !hasLab()) return;
  if (digit >= 0) go(/** @type {typeof NAVIGATION[number]} */ (NAVIGATION[digit]).href);
  else if (event.key === "/") {
    if (place.name !== "patients") go("/patients");
    /** @type {HTMLElement | null} */ (document.getElementById("search"))?.focus();
  } else if (event.key === "j" || event.key === "ArrowDown" && target.hasAttribute("data-row")) moveRow(1);
  else if (event.key === "k" || event.key === "ArrowUp" && target.hasAttribute("data-row")) moveRow(-1);
  else if (event.key === "n") go("/patients?new=1");
  else if (event.key === "?") go(withQuery({ help: "1" }));
  else if (event.key === " ") {
    if (target.matches("button, summary, input")) return;
    togglePause();
  } else return;
  event.preventDefault();
});

onNavigation(navigate);
onChange(redraw);
addEventListener("resize", redraw);
// Values become old, and waits longer, although nothing comes.
setInterval(() => !document.hidden && !isPaused() && redraw(), 500);
document.addEventListener("visibilitychange", () => !document.hidden && redraw());
navigate();
readInfo();

/** Reads what the console says about itself; in a secure system it may want a login, such as after the session's end. */
function readInfo() {
  call("GET", "/api/info").then((answer) => {
    if (answer.ok && answer.body.login && !answer.body.user) logIn();
    else if (answer.ok) setInfo(answer.body);
    redraw();
  });
}

// For whoever looks from the browser's own console.
Object.defineProperty(window, "told", { get: told });
