// Which view an address shows. Addresses hold the whole state, so that reload, back and a shared link show the same.

/**
 * @typedef {{ name: string, path: string, param: string | null, query: URLSearchParams }} Place
 */

/** @type {[RegExp, string][]} */
const ROUTES = [
  [/^\/$/, "map"],
  [/^\/journeys$/, "journeys"],
  [/^\/journeys\/([0-9a-f]{32})$/, "journey"],
  [/^\/patients$/, "patients"],
  [/^\/patients\/([0-9a-f-]{36})$/, "patients"],
  [/^\/lab$/, "lab"],
  [/^\/lab\/([A-Za-z0-9_-]+)$/, "lab"],
  [/^\/dead-letters$/, "dead-letters"],
];

/** The place that the address bar names. @returns {Place} */
export function here() {
  const { pathname, search } = location;
  const query = new URLSearchParams(search);
  for (const [pattern, name] of ROUTES) {
    const match = pattern.exec(pathname);
    if (match) return { name, path: pathname, param: match[1] ?? null, query };
  }
  return { name: "unknown", path: pathname, param: null, query };
}

/** @type {(() => void)[]} */
const listeners = [];

/** Calls back whenever the address has changed. @param {() => void} listener */
export function onNavigation(listener) {
  listeners.push(listener);
}

/** Goes to an address of the console. @param {string} href @param {{ replace?: boolean }} [options] */
export function go(href, options) {
  if (options?.replace) history.replaceState(null, "", href);
  else if (href !== location.pathname + location.search) history.pushState(null, "", href);
  for (const listener of listeners) listener();
}

/**
 * The present address with other parameters; null takes one away.
 * @param {Record<string, string | null>} changes
 */
export function withQuery(changes) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  return location.pathname + (text ? `?${text}` : "");
}

addEventListener("popstate", () => {
  for (const listener of listeners) listener();
});

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const anchor = event.target instanceof Element ? event.target.closest("a[href]") : null;
  const href = anchor?.getAttribute("href");
  if (!anchor || !href || !href.startsWith("/") || anchor.hasAttribute("target") || href.startsWith("/api/")) return;
  event.preventDefault();
  go(href);
});
