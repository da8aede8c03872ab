// Patients: search, pages, one patient with its account and its journeys, and the forms that write.

import { call, newKey } from "./api.js";
import { h } from "./dom.js";
import { DASH, clock, count, exponent, money, parseMoney } from "./format.js";
import { journeyTable } from "./journeys.js";
import { announce, copyButton, dialog, empty, heading, loading, problem, status } from "./parts.js";
import { go, here, withQuery } from "./router.js";
import { registerSample, send } from "./writes.js";

/** @typedef {import("./api.js").Problem} Problem */
/** @typedef {{ id: string, name: string, email: string, address: string, dateOfBirth: string, registeredDate: string }} Patient */
/** @typedef {{ transactionId: string, type: string, amount: number, currency: string, exponent?: number, recordedAt?: string, bookedAt?: string }} Transaction */
/**
 * @typedef {{ patient: Patient, version: number | null, etag: string | null,
 *   billing: { accountId: string | null, status: string, balances?: { currency: string, amount?: number, balance?: number }[] } | null,
 *   transactions: Transaction[] | null, transactions_next: string | null, billing_problem: Problem | null,
 *   journeys: import("./live.js").Summary[] }} Detail
 * @typedef {{ kind: "new" | "edit" | "CHARGE" | "PAYMENT" | "REFUND" | "delete", id: string | null, key: string, values: Record<string, string>,
 *   errors: Record<string, string>, problem: Problem | null, etag: string | null, version: number | null, current: { patient: Patient, version: number, etag: string } | null }} Form
 */

const LIMIT = 50;
/** How often an open patient is read again, in milliseconds. */
const REFRESH = 5_000;
/** How long typing pauses before a search begins, in milliseconds. */
const TYPING = 200;

/** @type {{ key: string, body: { patients: Patient[], next: string | null } | null, problem: Problem | null } | null} */
let list = null;
/** @type {{ id: string, body: Detail | null, problem: Problem | null, at: number } | null} */
let detail = null;
/** @type {Form | null} */
let form = null;
/** @type {string[]} */
let currencies = ["EUR", "USD", "GBP", "CHF", "JPY", "KWD"];
let currenciesAsked = false;
let redraw = () => {};
let typing = 0;
/** When the list was last asked for. */
let listed = -Infinity;

/** @param {import("./router.js").Place} place */
function listKey(place) {
  return JSON.stringify([place.query.get("q") ?? "", place.query.get("cursor") ?? ""]);
}

/** @param {import("./router.js").Place} place */
function loadList(place) {
  const key = listKey(place);
  const query = new URLSearchParams({ limit: String(LIMIT) });
  for (const name of ["q", "cursor"]) {
    const value = place.query.get(name);
    if (value) query.set(name, value);
  }
  // Until the answer is there, what was found before stays.
  /** @type {NonNullable<typeof list>} */
  const mine = { key, body: list?.body ?? null, problem: null };
  list = mine;
  listed = performance.now();
  call("GET", `/api/patients?${query}`).then((answer) => {
    if (list !== mine) return;
    if (answer.ok) {
      mine.body = answer.body;
      if (place.query.get("q")) announce(mine.body?.patients.length === 0 ? "No patient found" : `${mine.body?.patients.length}${mine.body?.next ? " or more" : ""} found`);
    } else mine.problem = answer.problem;
    redraw();
  });
}

/** @param {string} id */
function loadDetail(id) {
  const same = detail?.id === id;
  const mine = (detail = { id, body: same ? (detail?.body ?? null) : null, problem: same ? (detail?.problem ?? null) : null, at: performance.now() });
  call("GET", `/api/patients/${id}`).then((answer) => {
    if (detail !== mine) return;
    if (answer.ok) Object.assign(mine, { body: answer.body, problem: null });
    else Object.assign(mine, { problem: answer.problem, body: answer.status === 404 ? null : mine.body });
    redraw();
  });
}

/** @type {import("./app.js").View} */
export const patients = {
  title: (place) => (place.param ? "Patient" : "Patients"),
  stream: () => ({ view: "map" }),
  enter(place, redraw_) {
    redraw = redraw_;
    if (place.query.has("new") || place.query.has("edit") || place.query.has("tx") || place.query.has("delete")) prepareForm(place);
    else form = null;
    if (list?.key !== listKey(place) || performance.now() - listed > REFRESH) loadList(place);
    if (place.param) loadDetail(place.param);
  },
  draw(place) {
    if (place.param && detail?.id === place.param && performance.now() - detail.at > REFRESH && !document.hidden) loadDetail(place.param);
    const q = place.query.get("q") ?? "";
    return [
      h("div", { class: "head" }, heading("Patients"),
        h("form", { class: "search", role: "search", onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          /** @type {HTMLElement | null} */ (document.querySelector("main [data-row]"))?.focus();
        } },
          h("input", { id: "search", type: "search", placeholder: "Part of a name or an email", "aria-label": "Search patients", value: q, autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/", dir: "auto", oninput: search })),
        h("div", { class: "actions" },
          h("button", { onclick: registerSample }, "Register a sample"),
          h("a", { class: "button primary", href: withQuery({ new: "1" }), "aria-keyshortcuts": "n" }, "New patient…"))),
      h("div", { class: `split patients${place.param ? " open" : ""}` },
        h("section", { class: "list", "aria-label": "Patients found" }, drawList(place, q)),
        place.param && h("section", { class: "detail", key: place.param, "aria-label": "The patient" }, drawDetail(place.param))),
    ];
  },
  dialog(place) {
    if (place.query.has("new")) return patientDialog("Register a patient");
    if (!place.param) return null;
    if (place.query.has("edit")) return patientDialog("Change the patient");
    if (place.query.has("tx")) return transactionDialog();
    if (place.query.has("delete")) return deleteDialog();
    return null;
  },
};

/** @param {Event} event */
function search(event) {
  const text = /** @type {HTMLInputElement} */ (event.target).value;
  clearTimeout(typing);
  typing = setTimeout(() => {
    // Who has left for another view meanwhile stays there.
    if (here().name === "patients") go(withQuery({ q: text.trim(), cursor: null }), { replace: true });
  }, TYPING);
}

/** @param {import("./router.js").Place} place @param {string} q */
function drawList(place, q) {
  if (!list) return null;
  if (list.problem) return problem(list.problem, h("button", { onclick: () => loadList(here()) }, "Try again"));
  const body = list.body;
  if (!body) return loading("patients");
  const cursor = place.query.get("cursor");
  if (body.patients.length === 0) {
    if (q) return empty("Nobody found", ["No name and no email has ", h("bdi", null, `“${q}”`), " in it."], h("a", { class: "button", href: "/patients" }, "All patients"));
    if (cursor) return empty("No more patients", "This page is behind the last patient.", h("a", { class: "button", href: "/patients" }, "To the first"));
    return empty("No patients yet", ["Register the first one, or let ", h("code", null, "./justw seed"), " make 200 plausible ones, marked as samples."],
      h("button", { class: "primary", onclick: registerSample }, "Register a sample patient"), h("a", { class: "button", href: "/patients?new=1" }, "Register a patient…"));
  }
  const rest = location.search;
  return [
    h("table", { class: "table clickable", "aria-busy": list.key === listKey(place) ? null : "true" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Name"), !place.param && h("th", { scope: "col", class: "wide" }, "Email"), h("th", { scope: "col" }, "Born"))),
      h("tbody", null, body.patients.map((patient) =>
        h("tr", { key: patient.id, class: patient.id === place.param ? "chosen" : null },
          h("td", { class: "wrap" },
            h("a", { href: `/patients/${patient.id}${rest}`, class: "cover", "data-row": true, "aria-current": patient.id === place.param ? "true" : null }, h("bdi", null, patient.name)),
            isSample(patient) && [" ", h("span", { class: "tag" }, "sample")]),
          !place.param && h("td", { class: "wrap muted wide" }, h("bdi", null, patient.email)),
          h("td", { class: "num muted" }, patient.dateOfBirth))))),
    (cursor || body.next) && h("nav", { class: "pages", "aria-label": "Pages", style: { "margin-top": "12px" } },
      cursor && h("a", { class: "button", href: withQuery({ cursor: null }) }, "First"),
      cursor && h("button", { onclick: () => history.back() }, "Back"),
      body.next && h("a", { class: "button", href: withQuery({ cursor: body.next }), rel: "next" }, `Next ${LIMIT}`)),
  ];
}

/** @param {Patient} patient */
function isSample(patient) {
  return patient.email.endsWith("@sample.example") || patient.address.startsWith("Sample:");
}

const ACCOUNTS = /** @type {Record<string, string>} */ ({ ACTIVE: "up", PENDING: "pending", CLOSED: "unknown" });
const TYPES = /** @type {Record<string, { verb: string, word: string, sign: 1 | -1, says: string }>} */ ({
  CHARGE: { verb: "Charge", word: "charge", sign: 1, says: "What the patient has to pay." },
  PAYMENT: { verb: "Pay", word: "payment", sign: -1, says: "What the patient has paid." },
  REFUND: { verb: "Refund", word: "refund", sign: 1, says: "What the patient gets back." },
});

/** @param {string} id */
function drawDetail(id) {
  const back = h("a", { class: "button quiet narrow-only", href: `/patients${location.search}` }, "← All patients");
  if (!detail || detail.id !== id) return null;
  const body = detail.body;
  if (!body) {
    if (!detail.problem) return [back, loading("the patient")];
    if (detail.problem.status === 404) return [back, empty("There is no such patient", "It was deleted, or it never was.", h("a", { class: "button", href: "/patients" }, "All patients"))];
    return [back, problem(detail.problem, h("button", { onclick: () => loadDetail(id) }, "Try again"))];
  }
  const { patient, version, billing, transactions } = body;
  const dated = transactions?.some(recordedAt) ?? false;
  const mine = body.journeys.find((one) => one.version === version && version !== null) ?? null;
  return [
    back,
    detail.problem && problem(detail.problem),
    h("div", { class: "panel" },
      h("div", { class: "row" }, h("h2", { class: "wrap" }, h("bdi", null, patient.name)),
        h("span", { class: "tag", title: "version" }, version === null ? `v${DASH}` : `v${version}`),
        isSample(patient) && h("span", { class: "tag" }, "sample")),
      h("dl", { class: "facts" },
        h("dt", null, "Email"), h("dd", null, h("bdi", null, patient.email)),
        h("dt", null, "Address"), h("dd", null, h("bdi", null, patient.address)),
        h("dt", null, "Born"), h("dd", { class: "num" }, patient.dateOfBirth),
        h("dt", null, "Registered"), h("dd", { class: "num" }, patient.registeredDate),
        h("dt", null, "Id"), h("dd", null, h("code", null, patient.id), " ", copyButton(patient.id, "the id"))),
      h("div", { class: "actions" },
        h("a", { class: "button", href: withQuery({ edit: "1" }) }, "Change…"),
        mine && h("a", { class: "button", href: `/journeys/${mine.trace}` }, `Journey of v${version}`),
        h("a", { class: "button danger", href: withQuery({ delete: "1" }) }, "Delete…"))),
    h("div", { class: "panel" },
      h("div", { class: "row" }, h("h2", null, "Account"), billing ? status(ACCOUNTS[billing.status] ?? "unknown", billing.status) : h("span", { class: "muted" }, DASH)),
      body.billing_problem && problem(body.billing_problem),
      billing && (billing.balances && billing.balances.length > 0
        ? h("div", { class: "balances" }, billing.balances.map(({ currency, amount, balance }) => {
            const owed = amount ?? balance ?? 0;
            return h("div", { key: currency }, h("span", { class: "lead" }, money(Math.abs(owed), currency)), h("span", { class: "muted" }, owed < 0 ? " in credit" : " owed"));
          }))
        : h("p", { class: "muted" }, billing.status === "PENDING" ? "Billing has not opened the account yet; the reconciler goes on trying." : "Nothing is owed.")),
      billing?.status === "ACTIVE" && h("div", { class: "actions" }, Object.entries(TYPES).map(([type, { verb }]) => h("a", { class: "button", key: type, href: withQuery({ tx: type }) }, `${verb}…`))),
      transactions && transactions.length > 0 && h("table", { class: "table" },
        h("caption", { class: "hidden" }, "Ledger"),
        h("thead", null, h("tr", null, h("th", { scope: "col" }, "Entry"), dated && h("th", { scope: "col", class: "wide" }, "Recorded"), h("th", { scope: "col", class: "right" }, "Amount"))),
        h("tbody", null, transactions.map((entry) => {
          const type = TYPES[entry.type];
          return h("tr", { key: entry.transactionId },
            h("td", null, type?.word ?? entry.type, " ", h("span", { class: "small muted wrap", title: entry.transactionId }, short(entry.transactionId))),
            dated && h("td", { class: "wide muted" }, recordedAt(entry) ? recorded(recordedAt(entry)) : DASH),
            h("td", { class: "right num" }, money((type?.sign ?? 1) * entry.amount, entry.currency)));
        }))),
      body.transactions_next && h("p", { class: "muted small" }, `The first ${count(transactions?.length)} entries; there are more.`)),
    body.journeys.length > 0 && h("div", { class: "panel" }, h("h2", null, "Journeys"), journeyTable(body.journeys, true)),
  ];
}

/** @param {Transaction} entry */
function recordedAt(entry) {
  return entry.recordedAt ?? entry.bookedAt ?? "";
}

/** @param {string} at */
function recorded(at) {
  const ms = Date.parse(at);
  const day = new Date(ms);
  const today = new Date().toDateString() === day.toDateString();
  return h("time", { datetime: at, title: day.toISOString(), class: "num" }, today ? clock(ms) : day.toLocaleDateString("sv"));
}

/** @param {string} id */
function short(id) {
  return id.length > 13 ? `${id.slice(0, 8)}…` : id;
}

// Forms. Each has one key for as long as it is open, so that sending it twice does nothing twice.

/** @param {import("./router.js").Place} place */
function prepareForm(place) {
  const kind = /** @type {Form["kind"]} */ (place.query.has("new") ? "new" : place.query.has("edit") ? "edit" : place.query.has("delete") ? "delete" : (place.query.get("tx") ?? "CHARGE"));
  const id = kind === "new" ? null : place.param;
  if (form && form.kind === kind && form.id === id) return;
  form = { kind, id, key: newKey(), values: {}, errors: {}, problem: null, etag: null, version: null, current: null };
  if (kind in TYPES && !currenciesAsked) {
    currenciesAsked = true;
    call("GET", "/api/currencies").then((answer) => {
      if (answer.ok) currencies = [...new Set([...currencies, ...Object.keys(answer.body).sort()])];
      redraw();
    });
  }
}

function closeForm() {
  form = null;
  go(withQuery({ new: null, edit: null, tx: null, delete: null }), { replace: true });
}

/** What the form holds now. @param {Event} event @returns {Record<string, string>} */
function valuesOf(event) {
  return Object.fromEntries([...new FormData(/** @type {HTMLFormElement} */ (event.target))].map(([name, value]) => [name, String(value)]));
}

/** Shows what is wrong, and goes to the first field that is. @param {Form} failed */
function showErrors(failed) {
  form = failed;
  redraw();
  requestAnimationFrame(() => requestAnimationFrame(() => /** @type {HTMLElement | null} */ (document.querySelector("dialog [aria-invalid=true]"))?.focus()));
}

/** Back from the journey to the form, with what was wrong. @param {Form} mine @param {string} address */
function backToForm(mine, address) {
  return (/** @type {import("./api.js").Answer & { ok: false }} */ answer) => {
    mine.errors = answer.problem.errors ?? {};
    mine.problem = answer.problem;
    if (answer.problem.current) mine.current = answer.problem.current;
    // A key that was used for another body is of no more use.
    if (answer.status === 422) mine.key = newKey();
    form = mine;
    go(address, { replace: true });
    announce(answer.problem.detail);
    showErrors(mine);
  };
}

/**
 * @param {Form} mine @param {string} name @param {string} label @param {Record<string, any>} props @param {string | null} value
 * @param {string} [hint]
 */
function field(mine, name, label, props, value, hint) {
  const wrong = mine.errors[name];
  const theirs = mine.current && name in mine.current.patient ? /** @type {any} */ (mine.current.patient)[name] : null;
  const differs = theirs !== null && theirs !== mine.values[name];
  return h("div", { class: "field", key: name },
    h("label", { for: `f-${name}` }, label),
    h("input", { id: `f-${name}`, name, value: mine.values[name] ?? value ?? "", "aria-invalid": wrong ? "true" : null,
      "aria-describedby": [wrong ? `e-${name}` : "", hint ? `h-${name}` : "", differs ? `t-${name}` : ""].filter(Boolean).join(" ") || null, ...props }),
    hint && h("span", { class: "hint", id: `h-${name}` }, hint),
    wrong && h("span", { class: "wrong", id: `e-${name}` }, sentence(wrong)),
    differs && h("span", { class: "hint", id: `t-${name}` }, "Now stored: ", h("bdi", null, theirs)));
}

/** @param {string} text */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** @param {string} title */
function patientDialog(title) {
  const mine = form;
  if (!mine) return null;
  const editing = mine.kind === "edit";
  const known = editing && detail?.id === mine.id ? detail.body : null;
  if (editing && !known) return dialog(title, closeForm, h("h2", null, title), detail?.problem ? problem(detail.problem) : loading("the patient"));
  // The version that the person saw when the form opened is the one that it may replace.
  if (known && mine.etag === null) Object.assign(mine, { etag: known.etag, version: known.version, values: { ...known.patient } });
  const stale = mine.problem?.status === 412;
  return dialog(title, closeForm,
    h("h2", null, title),
    stale
      ? h("div", { class: "problem mild", role: "alert" },
          h("p", null, h("strong", null, "Somebody has changed this patient meanwhile. "),
            mine.current ? `You began with version ${mine.version}; version ${mine.current.version} is stored now. ` : "",
            "Nothing of yours was written. What differs stands below each field."),
          mine.current && h("div", { class: "actions" },
            h("button", { type: "button", onclick: () => {
              const current = mine.current;
              if (!current) return;
              form = { ...mine, key: newKey(), values: { ...current.patient }, etag: current.etag, version: current.version, current: null, problem: null };
              redraw();
            } }, "Take what is stored")))
      : mine.problem && problem({ ...mine.problem, errors: undefined }),
    h("form", { class: "stacked", novalidate: true, onsubmit: (/** @type {Event} */ event) => submitPatient(event, mine) },
      field(mine, "name", "Name", { required: true, maxlength: "100", autocomplete: "off", dir: "auto", "data-first": true }, ""),
      field(mine, "email", "Email", { type: "email", required: true, autocomplete: "off", dir: "auto" }, ""),
      field(mine, "address", "Address", { required: true, maxlength: "255", autocomplete: "off", dir: "auto" }, ""),
      field(mine, "dateOfBirth", "Date of birth", { type: "date", required: true, max: new Date().toISOString().slice(0, 10) }, ""),
      h("div", { class: "actions" },
        h("button", { class: "primary", type: "submit" }, editing ? (stale && mine.current ? `Write over version ${mine.current.version}` : "Save and see its journey") : "Register and see its journey"),
        h("button", { type: "button", onclick: closeForm }, "Cancel"),
        !editing && h("button", { type: "button", class: "quiet", onclick: () => fillSample(mine) }, "Fill with a sample"))));
}

/** @param {Form} mine */
async function fillSample(mine) {
  const sample = await call("GET", "/api/sample");
  if (!sample.ok) return announce(sample.problem.detail);
  // The values are set although the person has typed: that is what was asked for.
  mine.values = { ...sample.body };
  mine.errors = {};
  redraw();
  for (const [name, value] of Object.entries(sample.body)) {
    const input = /** @type {HTMLInputElement | null} */ (document.getElementById(`f-${name}`));
    if (input) input.value = String(value);
  }
}

/** @param {Event} event @param {Form} mine */
function submitPatient(event, mine) {
  event.preventDefault();
  const values = valuesOf(event);
  /** @type {Record<string, string>} */
  const errors = {};
  const labels = { name: "a name", email: "an email", address: "an address", dateOfBirth: "a date of birth" };
  for (const [name, label] of Object.entries(labels)) if (!values[name]?.trim()) errors[name] = `write ${label}`;
  const next = { ...mine, values, errors, problem: null };
  if (Object.keys(errors).length > 0) return showErrors(next);
  const { name, email, address, dateOfBirth } = values;
  const body = { name, email, address, dateOfBirth };
  if (mine.kind === "new") {
    send({ title: "POST /patients", kind: "register", method: "POST", path: "/api/patients", body, headers: { "idempotency-key": mine.key }, back: backToForm(next, "/patients?new=1") });
  } else {
    const etag = mine.current?.etag ?? mine.etag ?? "";
    const version = mine.current?.version ?? mine.version;
    send({ title: "PUT /patients/:id", kind: "update", method: "PUT", path: `/api/patients/${mine.id}`, body: { ...body, registeredDate: mine.values.registeredDate },
      headers: { "if-match": etag }, back: backToForm({ ...next, etag, version, current: null }, `/patients/${mine.id}?edit=1`) });
  }
}

function transactionDialog() {
  const mine = form;
  const type = mine && TYPES[mine.kind];
  if (!mine || !type) return null;
  const currency = mine.values.currency ?? "EUR";
  return dialog(type.verb, closeForm,
    h("h2", null, type.verb),
    h("p", { class: "muted" }, type.says),
    mine.problem && problem({ ...mine.problem, errors: undefined }),
    h("form", { class: "stacked", novalidate: true, onsubmit: (/** @type {Event} */ event) => submitTransaction(event, mine) },
      h("div", { class: "two" },
        field(mine, "amount", "Amount", { inputmode: "decimal", autocomplete: "off", "data-first": true }, "", exponent(currency) === 0 ? "No decimals" : `Up to ${exponent(currency)} decimals`),
        h("div", { class: "field", key: "currency" }, h("label", { for: "f-currency" }, "Currency"),
          h("select", { id: "f-currency", name: "currency", value: currency, onchange: (/** @type {any} */ event) => {
            mine.values = { ...mine.values, currency: event.target.value };
            redraw();
          } }, currencies.map((code) => h("option", { value: code, key: code }, code))))),
      h("div", { class: "actions" }, h("button", { class: "primary", type: "submit" }, `${type.verb} and see its journey`), h("button", { type: "button", onclick: closeForm }, "Cancel"))));
}

/** @param {Event} event @param {Form} mine */
function submitTransaction(event, mine) {
  event.preventDefault();
  const values = valuesOf(event);
  const currency = values.currency ?? "EUR";
  const parsed = parseMoney(values.amount ?? "", currency);
  const next = { ...mine, values, errors: {}, problem: null };
  if ("error" in parsed) return showErrors({ ...next, errors: { amount: parsed.error } });
  send({ title: "POST /patients/:id/billing/transactions", kind: "transaction", method: "POST", path: `/api/patients/${mine.id}/transactions`,
    body: { transactionId: mine.key, type: mine.kind, amount: parsed.minor, currency }, back: backToForm(next, `/patients/${mine.id}?tx=${mine.kind}`) });
}

function deleteDialog() {
  const mine = form;
  if (!mine) return null;
  const known = detail?.id === mine.id ? detail.body : null;
  if (!known) return dialog("Delete the patient", closeForm, detail?.problem ? problem(detail.problem) : loading("the patient"));
  if (mine.etag === null) Object.assign(mine, { etag: known.etag, version: known.version });
  return dialog("Delete the patient", closeForm,
    h("h2", { class: "wrap" }, "Delete ", h("bdi", null, known.patient.name), "?"),
    mine.problem && problem(mine.problem),
    h("p", null, "Its account is closed and a last event tells the others. The topic keeps the earlier events."),
    h("form", { class: "actions", onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      const etag = mine.problem?.status === 412 ? (known.etag ?? "") : (mine.etag ?? "");
      send({ title: "DELETE /patients/:id", kind: "delete", method: "DELETE", path: `/api/patients/${mine.id}`, body: {}, headers: { "if-match": etag }, back: backToForm(mine, `/patients/${mine.id}?delete=1`) });
    } }, h("button", { class: "danger", type: "submit" }, "Delete and see its journey"), h("button", { type: "button", onclick: closeForm, "data-first": true }, "Cancel")));
}
