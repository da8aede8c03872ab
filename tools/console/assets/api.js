// Calls to the console's server. What goes wrong comes back as a problem, never as an exception.

/**
 * @typedef {{ type: string, title: string, status: number, detail: string, errors?: Record<string, string>, traceId?: string,
 *   command?: string, current?: any }} Problem
 * @typedef {{ ok: true, status: number, body: any } | { ok: false, status: number, problem: Problem }} Answer
 */

/** How long an answer may take, in milliseconds. */
const TIMEOUT = 30_000;

/**
 * @param {string} method @param {string} path
 * @param {{ body?: any, headers?: Record<string, string>, signal?: AbortSignal }} [options]
 * @returns {Promise<Answer>}
 */
export async function call(method, path, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { accept: "application/json", ...options.headers };
  /** @type {RequestInit} */
  const request = { method, headers, cache: "no-store", signal: options.signal ?? AbortSignal.timeout(TIMEOUT) };
  if (method !== "GET") {
    headers["x-console"] = "1";
    headers["content-type"] = "application/json";
    request.body = JSON.stringify(options.body ?? {});
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    const late = error instanceof DOMException && error.name === "TimeoutError";
    const detail = late ? "The console did not answer in 30 s." : "The console does not answer. Is it still running?";
    return failure(0, "No answer", detail);
  }
  const text = await response.text().catch(() => "");
  let body;
  try {
    body = text === "" ? null : JSON.parse(text);
  } catch {
    body = undefined;
  }
  if (response.ok && body !== undefined) return { ok: true, status: response.status, body };
  if (response.status === 401 && body?.type?.endsWith(":login-required")) logIn();
  if (body && typeof body.title === "string") {
    return { ok: false, status: response.status, problem: { ...body, detail: body.detail ?? body.title } };
  }
  return failure(response.status, response.statusText || "Error", `The console answered ${response.status}.`);
}

/** Goes to the login of a secure system, and back to this page after it. */
export function logIn() {
  location.assign(`/login?to=${encodeURIComponent(location.pathname + location.search)}`);
}

/** @param {number} status @param {string} title @param {string} detail @returns {Answer} */
function failure(status, title, detail) {
  return { ok: false, status, problem: { type: "about:blank", title, status, detail } };
}

/** @param {number} size */
function hex(size) {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A new trace for a write, so that its journey has an address before the answer is there. */
export function newTrace() {
  const trace = hex(16);
  return { trace, traceparent: `00-${trace}-${hex(8)}-01` };
}

/** A key that is new for each form. */
export function newKey() {
  return crypto.randomUUID();
}
