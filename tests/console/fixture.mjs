// A server with the page and fixed answers, for what depends on the page alone: appearance, accessibility, keys, states
// that a real system reaches seldom. What it answers has the form of tools/console's API.

import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const ASSETS = process.env.CONSOLE_ASSETS ?? fileURLToPath(new URL("../../tools/console/assets/", import.meta.url));
/** The moment at which everything happens. */
export const NOW = Date.parse("2026-11-26T12:03:04.112Z");
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml" };
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const iso = (ms) => new Date(ms).toISOString();
export const TRACES = { delivered: "d".repeat(32), retried: "a".repeat(32), failed: "b".repeat(32), waiting: "c".repeat(32), offset: "e".repeat(32) };
const span = (digit, number) => `${digit}`.repeat(12) + String(number).padStart(4, "0");

const NAMES = ["Jane Doe", "محمد عبد الرحمن الأنصاري", "Max Miller", "Dr. Wolfeschlegelsteinhausenbergerdorff-Schmidt von und zu Hohenlohe-Langenburg", "שרה כהן", "Ada Lovelace", "Zoë Ångström", "Nguyễn Thị Minh Khai", "Olu Adebayo"];
export const PATIENTS = Array.from({ length: 60 }, (_, index) => ({
  id: `01900000-0000-7000-8000-${String(index).padStart(12, "0")}`,
  name: NAMES[index % NAMES.length] + (index >= NAMES.length ? ` ${index}` : ""),
  email: index === 3 ? "wolfe.a.very.long.local.part.of.an.address.that.goes.on@example.org" : `person.${index}@${index % 3 === 0 ? "sample.example" : "example.org"}`,
  address: index % 3 === 0 ? `Sample: ${index + 1} Main Street, Springfield` : `${index + 1} Main Street, Springfield`,
  dateOfBirth: `19${50 + (index % 50)}-0${1 + (index % 9)}-1${index % 10}`,
  registeredDate: "2026-11-26",
}));

function step(id, label, parent, start, ms, service, number, more = {}) {
  return { id, label, parent, state: "done", start_ms: start, ms, service, span: number === null ? null : span("f", number), waits_for: null, tries: [], error: null, ...more };
}

function journey(trace, change = () => {}) {
  const steps = [
    step("request", "HTTP request", null, 0, 6.1, "patient-service", 1),
    step("commit", "commit", "request", 0.4, 1.9, "patient-service", 2),
    step("billing", "billing gRPC", "request", 2.6, 2.4, "patient-service", 3),
    step("outbox", "outbox wait", null, 2.3, 9.6, "patient-service", null, { wait: true }),
    step("send", "send to Kafka", null, 11.9, 4, "patient-service", 6),
    step("apply", "apply", null, 15.9, 12.1, "analytics-service", 7),
  ];
  const one = (number, parent, service, name, kind, start, ms, stepOf, attributes = {}, events = []) =>
    ({ span: span("f", number), parent: parent === null ? null : span("f", parent), service, name, kind, start_ms: start, ms, error: null, step: stepOf, attributes, events });
  const known = {
    trace, title: "POST /patients", kind: "register", status: 201, state: "delivered", error: false, origin: iso(NOW - 5000), started: iso(NOW - 5000),
    total_ms: 28, delivered_ms: 28, delivered_by: "steps", patient: PATIENTS[0].id, version: 1, changed: iso(NOW - 4000), steps,
    spans: [
      one(1, null, "patient-service", "POST /patients", "server", 0, 6.1, "request", { "http.request.method": "POST", "http.route": "/patients", "http.response.status_code": 201 }),
      one(2, 1, "patient-service", "insert patient", "client", 0.4, 1.9, "commit", { "db.system.name": "postgresql" }),
      one(3, 1, "patient-service", "BillingService/CreateBillingAccount", "client", 2.6, 2.4, "billing", { "rpc.system": "grpc" }),
      one(4, 3, "billing-service", "BillingService/CreateBillingAccount", "server", 2.9, 1.8, null, { "rpc.system": "grpc" }),
      one(5, 4, "billing-service", "open account", "client", 3.1, 1.4, null, { "db.system.name": "postgresql" }),
      one(6, 1, "patient-service", "send patient", "producer", 11.9, 4, "send", { "messaging.destination.partition.id": "2", "messaging.kafka.offset": 1841 }),
      one(7, 6, "analytics-service", "process patient", "consumer", 15.9, 12.1, "apply", { "messaging.kafka.offset": 1841 }),
    ],
    proofs: [
      { id: "broker", state: "ok", partition: 2, offset: 1841, text: "the broker acknowledged partition 2, offset 1841" },
      { id: "analytics", state: "ok", applied: 1841, text: "analytics has applied offset 1841" },
      { id: "read_back", state: "ok", version: 1, text: "the record read back is version 1" },
    ],
    logs: [
      { id: 1, time: iso(NOW - 4996), at_ms: 4, service: "billing-service", severity: "INFO", message: "account opened", trace, span: span("f", 4), attributes: { patient_id: PATIENTS[0].id } },
      { id: 2, time: iso(NOW - 4994), at_ms: 6, service: "patient-service", severity: "INFO", message: "request answered", trace, span: span("f", 1), attributes: {} },
    ],
  };
  change(known);
  return known;
}

const of = (known, id) => known.steps.find((one) => one.id === id);
const without = (known, ...steps) => known.spans.filter((one) => !steps.includes(one.step));
export const JOURNEYS = [
  journey(TRACES.delivered),
  journey(TRACES.retried, (known) => {
    const send = of(known, "send");
    send.tries = [{ start_ms: 11.9, ms: 1000, error: "timeout", span: span("f", 8) }, { start_ms: 1511.9, ms: 1000, error: "unavailable", span: span("f", 9) }, { start_ms: 3511.9, ms: 12, error: null, span: span("f", 6) }];
    Object.assign(send, { start_ms: 3511.9, ms: 12 });
    of(known, "apply").start_ms = 3523.9;
    Object.assign(known, { total_ms: 3536, delivered_ms: 3536 });
  }),
  journey(TRACES.failed, (known) => {
    Object.assign(known, { status: 503, state: "failed", error: true, delivered_ms: null, delivered_by: null, total_ms: 2003, patient: null, version: null, proofs: [], spans: known.spans.slice(0, 2), steps: known.steps.slice(0, 2) });
    Object.assign(of(known, "request"), { state: "failed", error: "503", ms: 2003 });
    Object.assign(of(known, "commit"), { state: "failed", error: "unavailable", ms: 2000 });
    known.logs = [{ id: 3, time: iso(NOW - 3000), at_ms: 2000, service: "patient-service", severity: "WARN", message: "the database is away", trace: known.trace, span: span("f", 2), attributes: {} }];
  }),
  journey(TRACES.waiting, (known) => {
    for (const id of ["send", "apply"]) Object.assign(of(known, id), { state: "waiting", start_ms: null, ms: null, span: null });
    Object.assign(of(known, "outbox"), { state: "waiting", ms: null, waits_for: { part: "kafka", text: "waits for Kafka, which does not answer" } });
    of(known, "send").waits_for = { part: "kafka", text: "waits for Kafka, which does not answer" };
    of(known, "apply").waits_for = { part: "kafka", text: "waits for the event" };
    Object.assign(known, { state: "waiting", delivered_ms: null, delivered_by: null, proofs: [], spans: without(known, "send", "apply") });
  }),
  journey(TRACES.offset, (known) => {
    Object.assign(of(known, "apply"), { state: "waiting", start_ms: null, ms: null, span: null });
    Object.assign(known, { delivered_by: "offset", delivered_ms: null, spans: without(known, "apply") });
  }),
];

export function summary(known, index = 0) {
  const { trace, title, kind, status, state, error, total_ms, delivered_ms, patient, changed, version } = known;
  return { trace, title, kind, status, state, error, started: iso(NOW - 5000 - index * 1000), total_ms, delivered_ms, patient, span_count: known.spans.length, changed, version };
}

const EDGES = [["clients", "patient-service"], ["patient-service", "billing-service"], ["billing-service", "billing-db"], ["patient-service", "patient-db"], ["patient-db", "kafka"], ["kafka", "analytics-service"], ["analytics-service", "sqlite"]];

/** The map in a scenario: up, kafka-down, billing-killed, unknown. */
export function systemMap(scenario) {
  const unknown = scenario === "unknown";
  const kafka = scenario === "kafka-down";
  const killed = scenario === "billing-killed";
  const known = (value) => (unknown ? null : value);
  const part = (id, kind, state, port, more = {}) => ({
    id, kind, state: unknown ? "unknown" : state, seen: known(iso(NOW)), stale: false, detail: kind === "database" ? "told by patient-service" : null,
    ...(port && { replicas: [{ address: `127.0.0.1:${port}`, state: unknown ? "unknown" : state, seen: known(iso(NOW)), version: known("0.1.0") }] }), ...more,
  });
  const old = killed ? { seen: iso(NOW - 8000), stale: true } : {};
  return {
    now: iso(NOW),
    parts: [
      part("patient-service", "service", kafka || killed ? "degraded" : "up", 4000, { detail: kafka ? "kafka: no answer within 2 s" : killed ? "billing: the peer is away" : null }), part("billing-service", "service", killed ? "down" : "up", 4001, old), part("analytics-service", "service", kafka ? "degraded" : "up", 4002),
      part("patient-db", "database", "up"), part("billing-db", "database", killed ? "unknown" : "up", null, old), part("kafka", "broker", kafka ? "down" : "up"), part("sqlite", "file", "up"),
    ],
    edges: EDGES.map(([from, to]) => ({ id: `${from}>${to}`, from, to, per_second: known(kafka && ["patient-db", "kafka", "analytics-service"].includes(from) ? 0 : 12), ...(to === "billing-service" && { breaker: known(killed ? "open" : "closed") }) })),
    outbox: { pending: known(kafka ? 212 : 0), oldest_s: known(kafka ? 8.4 : 0) },
    tasks: { pending: known(killed ? 41 : 0) },
    partitions: unknown ? [] : [0, 1, 2].map((partition) => ({ partition, applied: 1841 + partition, lag: 0 })),
    lag: known(0),
    counts: unknown ? null : { active: 10_040, created: 10_941, updated: 3, deleted: 901 },
  };
}

const wave = (base, swing) => Array.from({ length: 300 }, (_, index) => (index > 100 && index < 106 ? null : Math.max(0, Math.round((base + swing * Math.sin(index / 9)) * 10) / 10)));

const RUN = {
  run: "r1", part: "kafka", verb: "pause", seconds: 10, state: "running", started: iso(NOW - 2000), ends: iso(NOW + 8000),
  verdicts: [
    { id: "answers", expected: "registrations answer 201", measured: "41 of 41, p99 9.10 ms", state: "ok" },
    { id: "outbox", expected: "events wait in the outbox", measured: "at most 212", state: "ok" },
    { id: "drained", expected: "drained after the broker returns", measured: null, state: "pending" },
  ],
};

function lab(scenario) {
  return {
    agent: scenario !== "no-agent", parts: [{ id: "kafka", verbs: ["pause", "slow"] }, { id: "billing-service", verbs: ["kill", "pause", "slow"] }], excluded: [{ id: "patient-db", why: "given from outside" }], max_seconds: 60,
    expectations: [{ id: "kafka.pause", part: "kafka", verb: "pause", text: RUN.verdicts.map((one) => one.expected), row: "the broker is unavailable at the start, dies, freezes" }],
    commands: { "kafka.pause": "./justw kill kafka" }, load: null, last_load: { rate: 50, until: iso(NOW - 60_000), sent: 1500, answered: 1500, failed: 0, p50_ms: 3.2, p99_ms: 9.1 }, runs: scenario === "no-agent" ? [] : [RUN], run: scenario === "no-agent" ? null : RUN,
  };
}

const LETTERS = [
  { partition: 1, offset: 93, error: "no event", bytes: 31, since: iso(NOW - 1_000_000), forwarded: true },
  { partition: 0, offset: 12, error: "the event names no patient: the field patient_id is empty, and the header ce_subject says nothing either", bytes: 4096, since: iso(NOW - 2_000_000), forwarded: false },
];
const REJECTED = [
  { id: "outbox-3", kind: "PATIENT_CREATED", bytes: 1_200_000, since: iso(NOW - 3_000_000), error: "MessageTooLarge" },
  { id: `billing-${PATIENTS[0].id}`, kind: "OPEN", bytes: 0, since: iso(NOW - 4_000_000), error: "billing rejected the call: INVALID_ARGUMENT" },
];

/** Starts the server. `scenario` may be changed while it runs; `say` sends a change to every open stream. */
export async function startFixture() {
  const streams = new Set();
  const fixture = { scenario: "up", url: "", refuses: false, asked: /** @type {string[]} */ ([]), say, dropStreams, close };
  let seq = 0;

  function members(view, trace) {
    const empty = fixture.scenario === "empty";
    return {
      map: systemMap(fixture.scenario),
      ...(view === "journeys" && { journeys: empty ? [] : JOURNEYS.map(summary) }),
      ...(view === "journey" && { journey: JOURNEYS.find((one) => one.trace === trace) ?? null }),
      ...(view === "lab" && { lab: lab(fixture.scenario) }),
    };
  }
  function say(message) {
    for (const { response } of streams) response.write(`event: delta\ndata: ${JSON.stringify({ seq: ++seq, now: iso(NOW), ...message })}\n\n`);
  }
  function dropStreams() {
    for (const { response } of streams) response.end();
    streams.clear();
  }
  function detail(patient) {
    return {
      patient, version: 3, etag: '"3"', billing: { accountId: "a1", status: "ACTIVE", balances: [{ currency: "EUR", amount: 7000, exponent: 2 }, { currency: "JPY", amount: 5000, exponent: 0 }] },
      transactions: [
        { transactionId: "5b0c3d1e-1111-4222-8333-444455556666", type: "CHARGE", amount: 12_000, currency: "EUR", exponent: 2, recordedAt: iso(NOW - 90_000) },
        { transactionId: "transfer-1", type: "PAYMENT", amount: 5000, currency: "EUR", exponent: 2, recordedAt: iso(NOW - 60_000) },
        { transactionId: "visit-2", type: "CHARGE", amount: 5000, currency: "JPY", exponent: 0, recordedAt: iso(NOW - 30_000) },
      ],
      transactions_next: null, billing_problem: null, journeys: [{ ...summary(JOURNEYS[0]), version: 3 }],
    };
  }

  const server = createServer(async (request, response) => {
    const url = new URL(request.url ?? "/", "http://fixture");
    const { pathname: path, searchParams: query } = url;
    fixture.asked.push(`${request.method} ${request.url}`);
    const send = (status, body, type = "application/json") => {
      response.writeHead(status, { "content-type": type, "content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-store" });
      response.end(typeof body === "string" || Buffer.isBuffer(body) ? body : JSON.stringify(body));
    };
    const problem = (status, title, text, more = {}) => send(status, { type: "about:blank", title, status, detail: text, ...more }, "application/problem+json");
    for await (const chunk of request) void chunk;
    if (path.startsWith("/assets/")) {
      const name = basename(path);
      const file = await Promise.resolve().then(() => readFileSync(join(ASSETS, name))).catch(() => null);
      return file ? send(200, file, TYPES[extname(name)] ?? "application/octet-stream") : problem(404, "Not Found", "There is no such file.");
    }
    if (path === "/api/stream") {
      if (fixture.refuses) return problem(503, "Service Unavailable", "Not now.");
      const [view, trace] = [query.get("view"), query.get("trace")];
      response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
      response.write(`retry: 200\nevent: snapshot\ndata: ${JSON.stringify({ seq: ++seq, now: iso(NOW), ...members(view, trace) })}\n\n`);
      const mine = { response, view };
      streams.add(mine);
      response.on("close", () => streams.delete(mine));
      return;
    }
    if (path === "/api/info") return send(200, { version: "0.1.0", revision: "0123456789ab", now: iso(NOW), agent: fixture.scenario !== "no-agent", lab: true, links: { api: "http://127.0.0.1:4000/swagger-ui/index.html" }, collector: null });
    if (path === "/api/map/history") {
      const series = { requests: wave(12, 3), commits: wave(12, 3), sends: wave(12, 4), applied: wave(12, 4), outbox: wave(2, 3), lag: wave(1, 3) };
      return send(200, { step_s: 1, end: iso(NOW), series: fixture.scenario === "unknown" ? Object.fromEntries(Object.keys(series).map((name) => [name, []])) : series });
    }
    if (path.startsWith("/api/parts/")) {
      const part = systemMap(fixture.scenario).parts.find((one) => one.id === path.slice(11));
      const health = { status: "UP", components: { database: { status: "UP" }, kafka: { status: fixture.scenario === "kafka-down" ? "DEGRADED" : "UP", detail: "no answer within 2 s" } } };
      return send(200, { part, health, metrics: [{ name: "outbox_pending", labels: { shard: "0" }, value: 0 }, { name: "http_requests_total", labels: { method: "POST", route: "/patients", status: "201" }, value: 18_123 }], logs: JOURNEYS[0].logs });
    }
    if (path === "/api/sample") return send(200, { name: "Grace Hopper", email: "grace.1@sample.example", address: "Sample: 12 Main Street, Springfield", dateOfBirth: "1976-12-09" });
    if (path === "/api/currencies") return send(200, { EUR: 2, JPY: 0, KWD: 3 });
    if (path === "/api/patients" && request.method === "GET") {
      if (fixture.scenario === "unreachable") return problem(502, "Bad Gateway", "patient-service does not answer at 127.0.0.1:4000.");
      const text = (query.get("q") ?? "").toLowerCase();
      const found = fixture.scenario === "empty" ? [] : PATIENTS.filter((one) => `${one.name} ${one.email}`.toLowerCase().includes(text));
      const at = Number(query.get("cursor") ?? 0);
      return send(200, { patients: found.slice(at, at + 50), next: found.length > at + 50 ? String(at + 50) : null });
    }
    if (path === "/api/patients" && request.method === "POST") return problem(409, "Conflict", "Another patient has this email.", { errors: { email: "A patient with this email already exists" } });
    const patient = PATIENTS.find((one) => path === `/api/patients/${one.id}`);
    if (patient && request.method === "GET") return send(200, detail(patient));
    if (path === "/api/dead-letters") return send(200, { analytics: fixture.scenario === "empty" ? [] : LETTERS, outbox: fixture.scenario === "empty" ? [] : fixture.scenario === "no-agent" ? null : REJECTED, next: null, problem: null });
    if (path === "/api/dead-letters/resend") return send(200, { state: "dead", detail: "no event" });
    if (path === "/api/lab") return send(200, lab(fixture.scenario));
    if (path === "/api/lab/runs/r1") return send(200, RUN);
    if (path.startsWith("/api/")) return problem(404, "Not Found", "There is no such call.");
    send(200, readFileSync(join(ASSETS, "index.html")), TYPES[".html"]);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  fixture.url = `http://127.0.0.1:${address.port}`;
  async function close() {
    dropStreams();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
  return fixture;
}
