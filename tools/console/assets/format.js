// How values are written. What is not known is a dash and never 0.

export const DASH = "–";

/** @typedef {number | null | undefined} Maybe */

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count, such as 12,345. @param {Maybe} value */
export function count(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? DASH : grouped.format(value);
}

/** A number with three significant digits. @param {number} value */
function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return grouped.format(value);
  if (size >= 10) return value.toFixed(1);
  return value.toFixed(2);
}

/** A duration in milliseconds, in the unit that suits it. @param {Maybe} ms */
export function duration(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return DASH;
  if (ms === 0) return "0 ms";
  const size = Math.abs(ms);
  if (size < 1) return `${grouped.format(ms * 1000)} µs`;
  if (size < 999.5) return `${digits(ms)} ms`;
  if (size < 59_950) return `${digits(ms / 1000)} s`;
  const seconds = Math.round(size / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${seconds % 60} s`;
}

/** An age in seconds. @param {Maybe} seconds */
export function age(seconds) {
  return seconds === null || seconds === undefined ? DASH : seconds < 0.05 ? "0 s" : duration(seconds * 1000);
}

/** A rate a second. @param {Maybe} value */
export function rate(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return `${DASH}/s`;
  if (value === 0) return "0/s";
  return `${value >= 9.95 ? grouped.format(value) : value.toFixed(1)}/s`;
}

/** Bytes in the unit that suits them. @param {Maybe} value */
export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  if (value < 1024) return `${value} B`;
  if (value < 1024 * 1024) return `${digits(value / 1024)} KiB`;
  return `${digits(value / 1024 / 1024)} MiB`;
}

/** @param {number} value @param {number} width */
const pad = (value, width) => String(value).padStart(width, "0");

/** Local time with milliseconds, such as 12:03:04.112. @param {Maybe} ms since 1970 */
export function clock(ms) {
  if (ms === null || ms === undefined) return DASH;
  const at = new Date(ms);
  return `${pad(at.getHours(), 2)}:${pad(at.getMinutes(), 2)}:${pad(at.getSeconds(), 2)}.${pad(at.getMilliseconds(), 3)}`;
}

/** Local date and time with milliseconds. @param {Maybe} ms since 1970 */
export function dateTime(ms) {
  if (ms === null || ms === undefined) return DASH;
  const at = new Date(ms);
  return `${at.getFullYear()}-${pad(at.getMonth() + 1, 2)}-${pad(at.getDate(), 2)} ${clock(ms)}`;
}

/** The same moment for machines and titles. @param {number} ms */
export function iso(ms) {
  return new Date(ms).toISOString();
}

// ISO 4217: every other currency has two decimals.
const EXPONENTS = new Map(
  [
    ["BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF", 0],
    ["BHD IQD JOD KWD LYD OMR TND", 3],
    ["CLF UYW", 4],
  ].flatMap(([codes, exponent]) => String(codes).split(" ").map((code) => /** @type {const} */ ([code, Number(exponent)]))),
);

/** Decimals of a currency. @param {string} currency */
export function exponent(currency) {
  return EXPONENTS.get(currency) ?? 2;
}

/** An amount of minor units, such as 70.00 EUR. @param {Maybe} minor @param {string} currency */
export function money(minor, currency) {
  if (minor === null || minor === undefined) return DASH;
  const places = exponent(currency);
  const text = String(Math.abs(minor)).padStart(places + 1, "0");
  const whole = grouped.format(Number(text.slice(0, text.length - places)));
  const rest = places === 0 ? "" : `.${text.slice(text.length - places)}`;
  return `${minor < 0 ? "−" : ""}${whole}${rest} ${currency}`;
}

/**
 * Minor units of an amount that a person typed, or what is wrong with it.
 * @param {string} text @param {string} currency @returns {{ minor: number } | { error: string }}
 */
export function parseMoney(text, currency) {
  const places = exponent(currency);
  const match = /^(\d+)(?:[.,](\d*))?$/.exec(text.trim());
  if (!match) return { error: "Write an amount such as 12.50" };
  const rest = match[2] ?? "";
  if (rest.length > places) {
    return { error: places === 0 ? `${currency} has no decimals` : `${currency} has ${places} decimals` };
  }
  const minor = Number(match[1] + rest.padEnd(places, "0"));
  if (!Number.isSafeInteger(minor)) return { error: "The amount is too large" };
  if (minor === 0) return { error: "The amount must be above 0" };
  return { minor };
}

/** The first and last four digits of a trace id. @param {string} trace */
export function shortTrace(trace) {
  return `${trace.slice(0, 4)}…${trace.slice(-4)}`;
}

/** One or many: plural(1, "event") is "1 event". @param {Maybe} value @param {string} noun @param {string} [many] */
export function plural(value, noun, many = `${noun}s`) {
  return `${count(value)} ${value === 1 ? noun : many}`;
}
