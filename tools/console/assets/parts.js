// Small pieces that several views draw.

import { h } from "./dom.js";
import { DASH, clock, iso } from "./format.js";
import { now } from "./live.js";

/** Each shape in a square of 12: colour alone says nothing. */
const SHAPES = {
  circle: "M6 1a5 5 0 1 0 0 10A5 5 0 1 0 6 1z",
  triangle: "M6 1 11.5 11H.5z",
  square: "M1.5 1.5h9v9h-9z",
  ring: "M6 1a5 5 0 1 0 0 10A5 5 0 1 0 6 1zM6 2.6a3.4 3.4 0 1 1 0 6.8 3.4 3.4 0 1 1 0-6.8z",
  check: "M1 6.6 2.4 5.2 4.8 7.6 9.6 1.8 11 3.1 4.9 10.4z",
};

const STATES = /** @type {Record<string, { shape: keyof typeof SHAPES, word: string, tone: string }>} */ ({
  up: { shape: "circle", word: "up", tone: "up" },
  degraded: { shape: "triangle", word: "degraded", tone: "degraded" },
  down: { shape: "square", word: "down", tone: "down" },
  unknown: { shape: "ring", word: "unknown", tone: "unknown" },
  delivered: { shape: "check", word: "delivered", tone: "up" },
  ok: { shape: "check", word: "yes", tone: "up" },
  done: { shape: "check", word: "done", tone: "up" },
  running: { shape: "ring", word: "under way", tone: "unknown" },
  pending: { shape: "ring", word: "not yet", tone: "unknown" },
  waiting: { shape: "triangle", word: "waits", tone: "degraded" },
  failed: { shape: "square", word: "failed", tone: "down" },
});

/** @param {string} state */
export function stateOf(state) {
  return STATES[state] ?? /** @type {typeof STATES[string]} */ (STATES.unknown);
}

/** The outline of a state's shape in a square of 12. @param {string} state */
export function shapePath(state) {
  return SHAPES[stateOf(state).shape];
}

/** @param {string} state */
export function shape(state) {
  return h("svg", { class: "shape", viewBox: "0 0 12 12", "aria-hidden": "true" }, h("path", { d: shapePath(state), "fill-rule": "evenodd" }));
}

/** A shape and a word. @param {string} state @param {string} [word] */
export function status(state, word) {
  return h("span", { class: `status ${stateOf(state).tone}` }, shape(state), word ?? stateOf(state).word);
}

/** A moment as local time, with ISO in its title. @param {string | null | undefined} at */
export function time(at) {
  if (!at) return DASH;
  const ms = Date.parse(at);
  return h("time", { datetime: at, title: iso(ms), class: "num" }, clock(ms));
}

/** What went wrong, in the words of who said it. @param {import("./api.js").Problem} problem @param {...any} actions */
export function problem(problem, ...actions) {
  const details = Object.entries(problem.errors ?? {});
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", null, h("strong", null, problem.status ? `${problem.title} (${problem.status}). ` : `${problem.title}. `), problem.detail),
    details.length > 0 && h("ul", null, details.map(([field, why]) => h("li", null, h("code", null, field), ` ${why}`))),
    problem.traceId && h("p", { class: "small" }, h("a", { href: `/journeys/${problem.traceId}` }, "See its journey")),
    actions.length > 0 && h("div", { class: "actions" }, actions),
  );
}

/** A request's name, which may break behind each slash. @param {{ title: string }} journey */
export function titleOf({ title }) {
  if (!title) return "A trace without its request";
  return title.split(/(?<=\/)/).flatMap((piece, index) => (index === 0 ? [piece] : [h("wbr", null), piece]));
}

/** @param {string} what */
export function loading(what) {
  return h("p", { class: "loading", role: "status" }, `Loading ${what}…`);
}

/** @param {string} title @param {any} says @param {...any} actions */
export function empty(title, says, ...actions) {
  return h("div", { class: "empty" }, h("h2", null, title), h("p", null, says), actions.length > 0 && h("div", { class: "actions" }, actions));
}

/** The age of what was last seen at a moment, for values that are old. @param {string | null} seen */
export function asOf(seen) {
  return seen ? h("span", { class: "small muted" }, "as of ", time(seen)) : h("span", { class: "small muted" }, "never seen");
}

/** Milliseconds since a moment, in the server's time. @param {string} at */
export function since(at) {
  return Math.max(0, now() - Date.parse(at));
}

const announcer = /** @type {HTMLElement} */ (document.getElementById("announcer"));

/** Says something to who cannot see it. @param {string} text */
export function announce(text) {
  announcer.textContent = text;
}

/** A heading that takes the focus when its view opens. @param {...any} children */
export function heading(...children) {
  return h("h1", { tabindex: "-1" }, children);
}

/**
 * A dialog that the address opens. Esc and a click beside it close it.
 * @param {string} label @param {() => void} close @param {...any} children
 */
export function dialog(label, close, ...children) {
  return h(
    "dialog",
    {
      key: "dialog",
      "aria-label": label,
      oncancel: (/** @type {Event} */ event) => {
        event.preventDefault();
        close();
      },
      onmousedown: (/** @type {MouseEvent} */ event) => {
        if (event.target === event.currentTarget) close();
      },
    },
    h("div", { class: "inside" }, children),
  );
}

/** Shows dialogs that were drawn since. */
export function showDialogs() {
  for (const found of document.querySelectorAll("dialog")) {
    if (!found.open) {
      found.showModal();
      /** @type {HTMLElement | null} */ (found.querySelector("[data-first]"))?.focus();
    }
  }
}

/** @param {string} text @param {string} label */
export function copyButton(text, label) {
  return h("button", { class: "copy quiet", title: `Copy ${text}`, "aria-label": `Copy ${label}`, onclick: () => copy(text) }, "copy");
}

/** @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch {
    announce("The browser does not let this page copy");
  }
}
