// Draws a view from a description of it and changes only what differs, so that focus, selection and scroll survive updates.

/**
 * @typedef {{ tag: string, props: Record<string, any>, children: VChild[], key?: string }} VNode
 * @typedef {VNode | string} VChild
 * @typedef {VNode | string | number | null | undefined | false | Child[]} Child
 */

/**
 * Describes an element. Handlers are props that begin with "on", CSS properties are in `style`, and `key` names a child
 * among its siblings. A prop that is null, undefined or false is left out.
 * @param {string} tag
 * @param {Record<string, any> | null} [props]
 * @param {...Child} children
 * @returns {VNode}
 */
export function h(tag, props, ...children) {
  const { key, ...rest } = props ?? {};
  return { tag, props: rest, children: flatten(children, []), key: key === undefined ? undefined : String(key) };
}

/** @param {Child[]} children @param {VChild[]} into @returns {VChild[]} */
function flatten(children, into) {
  for (const child of children) {
    if (Array.isArray(child)) flatten(child, into);
    else if (child === null || child === undefined || child === false) continue;
    else if (typeof child === "object") into.push(child);
    else into.push(String(child));
  }
  return into;
}

const SVG = "http://www.w3.org/2000/svg";
/** What each element was drawn from. @type {WeakMap<Node, VNode>} */
const drawn = new WeakMap();

/**
 * Makes the children of `root` what is described.
 * @param {Element} root
 * @param {Child[]} children
 */
export function render(root, ...children) {
  const active = document.activeElement;
  patchChildren(root, flatten(children, []));
  // A row that moved among its siblings has lost the focus on the way.
  if (active instanceof HTMLElement || active instanceof SVGElement) {
    if (active !== document.activeElement && active.isConnected) active.focus({ preventScroll: true });
  }
}

/** @param {VChild} child @param {Element} parent @returns {Node} */
function create(child, parent) {
  if (typeof child === "string") return document.createTextNode(child);
  const svg = child.tag === "svg" || (parent.namespaceURI === SVG && parent.tagName !== "foreignObject");
  const element = svg ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
  patch(element, child);
  return element;
}

/** @param {Element} element @param {VNode} next */
function patch(element, next) {
  const before = drawn.get(element)?.props ?? {};
  for (const name in before) if (!(name in next.props)) set(element, name, undefined, before[name]);
  // The children first: a select takes its value only once it has its options.
  if (next.props.opaque !== true) patchChildren(element, next.children);
  for (const name in next.props) set(element, name, next.props[name], before[name]);
  drawn.set(element, next);
}

/** @param {Element} element @param {string} name @param {any} value @param {any} before */
function set(element, name, value, before) {
  if (name === "opaque") return;
  const target = /** @type {any} */ (element);
  if (name.startsWith("on")) {
    if (value !== before) target[name] = value || null;
  } else if (name === "style") {
    const style = /** @type {HTMLElement} */ (element).style;
    for (const property in before) if (!value || !(property in value)) style.removeProperty(property);
    for (const property in value) if (value[property] !== before?.[property]) style.setProperty(property, value[property]);
  } else if (name === "value" || name === "checked") {
    // What the person has typed since stays: only a value that the view itself changed is set.
    if (value !== before && target[name] !== value) target[name] = value ?? "";
  } else if (value === null || value === undefined || value === false) {
    element.removeAttribute(name);
  } else {
    const text = value === true ? "" : String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** @param {Element} parent @param {VChild[]} children */
function patchChildren(parent, children) {
  /** @type {Map<string, Element>} */
  const keyed = new Map();
  for (const element of parent.children) {
    const key = drawn.get(element)?.key;
    if (key !== undefined) keyed.set(key, element);
  }
  const wanted = new Set(children.map((child) => (typeof child === "string" ? undefined : child.key)));
  // Rows that are gone leave first, so that those which stay need not move.
  for (const [key, element] of keyed) if (!wanted.has(key)) element.remove();
  let place = parent.firstChild;
  for (const child of children) {
    if (typeof child !== "string" && child.key !== undefined) {
      const found = keyed.get(child.key);
      if (found && found.localName === child.tag) {
        patch(found, child);
        if (found === place) place = place.nextSibling;
        else parent.insertBefore(found, place);
      } else {
        parent.insertBefore(create(child, parent), place);
      }
      continue;
    }
    if (place && fits(place, child)) {
      if (typeof child === "string") {
        if (place.nodeValue !== child) place.nodeValue = child;
      } else {
        patch(/** @type {Element} */ (place), child);
      }
      place = place.nextSibling;
    } else {
      const made = create(child, parent);
      if (place && !isKeyed(place)) {
        const old = place;
        place = place.nextSibling;
        parent.replaceChild(made, old);
      } else {
        parent.insertBefore(made, place);
      }
    }
  }
  while (place) {
    const next = place.nextSibling;
    parent.removeChild(place);
    place = next;
  }
}

/** @param {Node} node */
function isKeyed(node) {
  return drawn.get(node)?.key !== undefined;
}

/** Whether a node can become what is described. @param {Node} node @param {VChild} child */
function fits(node, child) {
  if (typeof child === "string") return node.nodeType === Node.TEXT_NODE;
  return node.nodeType === Node.ELEMENT_NODE && !isKeyed(node) && /** @type {Element} */ (node).localName === child.tag;
}
