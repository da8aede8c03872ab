// Stand-ins for the three services: they answer what the console asks, and send the spans and lines that ours send. What
// they do is switched by tests; nothing is stored outside of memory.

import { createServer } from "node:http";
import { randomBytes, randomUUID } from "node:crypto";

import { logs, post, traces } from "./otlp.mjs";

const hex = (size) => randomBytes(size).toString("hex");

/** Listens on a port of loopback, by default on a free one. */
function listen(handler, port = 0) {
  const server = createServer(async (request, response) => {
    let text = "";
    for await (const chunk of request) text += chunk;
    const url = new URL(request.url ?? "/", "http://service");
    const answer = (status, body, headers = {}) => {
      const type = typeof body === "string" ? "text/plain; version=0.0.4" : status >= 400 ? "application/problem+json" : "application/json";
      response.writeHead(status, { "content-type": type, ...headers });
      response.end(body === null ? undefined : typeof body === "string" ? body : JSON.stringify(body));
    };
    await handler({ method: request.method, path: url.pathname, query: url.searchParams, headers: request.headers, body: text ? JSON.parse(text) : null }, answer);
  });
  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(server)));
}

const problem = (status, title, detail, kind, more = {}) => ({ type: `urn:problem-type:${kind}`, title, status, detail, message: detail, instance: "/", ...more });

export async function startServices() {
  const services = {
    /** Patients by id. */
    patients: new Map(),
    keys: new Map(),
    /** Where spans go, once the console is there. */
    console: "",
    offset: 1840,
    applied: 1840,
    /** Requests per second that /metrics tells, beside the real ones. */
    rate: 0,
    /** Answers that are lost on the way: the work is done, and the connection breaks. */
    loseAnswers: 0,
    /** Which spans are never sent: "consumer", "producer". */
    missing: new Set(),
    /** The order in which the spans of a registration arrive, by their place. */
    order: null,
    breaker: 0,
    pending: 0,
    letters: [],
    asked: [],
    started: Date.now(),
    requests: 0,
    close,
    stop,
    start,
    addresses: {},
  };
  const servers = {};

  function metrics(name) {
    const requests = services.requests + Math.floor((services.rate * (Date.now() - services.started)) / 1000);
    const all = [`build_info{version="0.1.0",revision="0123456789ab"} 1`];
    if (name === "patient-service") {
      all.push(
        `http_requests_total{method="POST",route="/patients",status="201"} ${requests}`,
        `grpc_client_calls_total{method="BillingService/CreateBillingAccount",outcome="ok"} ${requests}`,
        `grpc_client_breaker_open{peer="billing-service"} ${services.breaker}`,
        `billing_tasks_pending 0`,
        `outbox_pending{shard="0"} ${services.pending}`,
        `outbox_oldest_age_seconds{shard="0"} ${services.pending > 0 ? 1.5 : 0}`,
        `relay_published_total ${requests}`,
      );
    } else if (name === "billing-service") {
      all.push(`grpc_server_calls_total{method="BillingService/CreateBillingAccount",code="ok"} ${requests}`);
    } else {
      all.push(`events_applied_total{kind="created"} ${requests}`, ...[0, 1, 2].map((one) => `kafka_consumer_lag{topic="patient",partition="${one}"} 0`), `kafka_topic_partitions{topic="patient"} 3`);
    }
    return `${all.join("\n")}\n`;
  }

  function common(name, request, answer) {
    services.asked.push(`${name} ${request.method} ${request.path}`);
    if (request.path === "/metrics") return answer(200, metrics(name)), true;
    if (request.path.startsWith("/actuator/health")) {
      const components = { "patient-service": { database: { status: "UP" }, kafka: { status: "UP" }, billing: { status: "UP" } }, "billing-service": { database: { status: "UP" } }, "analytics-service": { kafka: { status: "UP" }, state: { status: "UP" } } }[name];
      return answer(200, { status: "UP", components }), true;
    }
    return false;
  }

  /** What our services send of a write. */
  async function send(trace, parent, route, method, status, id, version) {
    const at = BigInt(Date.now()) * 1_000_000n;
    const ms = (value) => at + BigInt(Math.round(value * 1_000_000));
    const ids = { server: hex(8), commit: hex(8), call: hex(8), billed: hex(8), opened: hex(8), producer: hex(8), consumer: hex(8) };
    const delivers = route === "/patients" || route === "/patients/:id";
    if (delivers) services.offset += 1;
    const record = { "messaging.system": "kafka", "messaging.destination.name": "patient", "messaging.destination.partition.id": "2", "messaging.kafka.offset": services.offset };
    const batches = [
      ["patient-service", { span: ids.server, parent, name: `${method} ${route}`, kind: "server", start: ms(0), end: ms(6.1), attributes: { "http.request.method": method, "http.route": route, "http.response.status_code": status, "url.scheme": "http" } }],
      ["patient-service", { span: ids.commit, parent: ids.server, name: "insert patient", kind: "client", start: ms(0.4), end: ms(2.3), attributes: { "db.system.name": "postgresql", "db.query.summary": "insert patient" } }],
      ...(version === 1 ? [
        ["patient-service", { span: ids.call, parent: ids.server, name: "BillingService/CreateBillingAccount", kind: "client", start: ms(2.6), end: ms(5), attributes: { "rpc.system": "grpc", "rpc.service": "BillingService", "rpc.method": "CreateBillingAccount", "rpc.grpc.status_code": 0, "peer.service": "billing-service" } }],
        ["billing-service", { span: ids.billed, parent: ids.call, name: "BillingService/CreateBillingAccount", kind: "server", start: ms(2.9), end: ms(4.7), attributes: { "rpc.system": "grpc", "rpc.service": "BillingService", "rpc.method": "CreateBillingAccount", "rpc.grpc.status_code": 0 } }],
        ["billing-service", { span: ids.opened, parent: ids.billed, name: "open account", kind: "client", start: ms(3.1), end: ms(4.5), attributes: { "db.system.name": "postgresql" } }],
      ] : []),
      ...(delivers ? [
        ["patient-service", { span: ids.producer, parent: ids.server, name: "send patient", kind: "producer", start: ms(11.9), end: ms(15.9), attributes: { ...record, "messaging.operation.type": "send" } }],
        ["analytics-service", { span: ids.consumer, parent: ids.producer, name: "process patient", kind: "consumer", start: ms(15.9), end: ms(28), attributes: { ...record, "messaging.operation.type": "process", "messaging.consumer.group.name": "analytics" } }],
      ] : []),
    ].filter(([, span]) => !services.missing.has(span.kind));
    const order = services.order ?? batches.map((_, index) => index);
    for (const place of order) {
      const [service, span] = batches[place] ?? [];
      if (service) await post(services.console, "traces", traces(service, [{ trace, ...span }]));
    }
    if (version === 1) await post(services.console, "logs", logs("billing-service", [{ at: ms(4), message: "account opened", trace, span: ids.billed, attributes: { patient_id: id } }]));
    if (delivers && !services.missing.has("apply")) services.applied = services.offset;
  }

  const view = ({ version: _, entries: __, ...patient }) => patient;
  const noPatient = problem(404, "Not Found", "There is no patient with this id.", "patient-not-found");
  const stale = problem(412, "Precondition Failed", "The patient is not in the state that If-Match or If-None-Match requires.", "version-mismatch");

  async function patientService(request, answer) {
    if (common("patient-service", request, answer)) return;
    const [, trace = hex(16), parent] = (request.headers.traceparent ?? "").split("-");
    const done = (status, body, headers, route, id, version) => {
      services.requests += 1;
      send(trace, parent, route, request.method, status, id, version).catch((error) => console.error("a span was not sent", error));
      // As a network that breaks after the commit.
      if (services.loseAnswers > 0) {
        services.loseAnswers -= 1;
        return answer(503, problem(503, "Service Unavailable", "The database cannot serve now.", "database-unavailable", { traceId: trace }), { "retry-after": "2" });
      }
      return answer(status, body, { traceparent: `00-${trace}-${hex(8)}-01`, ...headers });
    };
    if (request.path === "/patients" && request.method === "POST") {
      const key = request.headers["idempotency-key"];
      const before = key && services.keys.get(key);
      if (before) return answer(201, { ...view(before), billing: { accountId: `account-${before.id}`, status: "ACTIVE" } }, { location: `/patients/${before.id}`, etag: `"1"`, traceparent: `00-${trace}-${hex(8)}-01` });
      if ([...services.patients.values()].some((one) => one.email === request.body.email)) {
        return answer(409, problem(409, "Conflict", "Another patient has this email.", "email-taken", { errors: { email: "A patient with this email already exists" }, traceId: trace }));
      }
      const patient = { id: randomUUID(), registeredDate: "2026-11-26", ...request.body, version: 1, entries: [] };
      services.patients.set(patient.id, patient);
      if (key) services.keys.set(key, patient);
      return done(201, { ...view(patient), billing: { accountId: `account-${patient.id}`, status: "ACTIVE" } }, { location: `/patients/${patient.id}`, etag: `"1"` }, "/patients", patient.id, 1);
    }
    if (request.path === "/patients") {
      const limit = Number(request.query.get("limit") ?? 100);
      const term = (request.query.get("search") ?? "").toLowerCase();
      const at = Number(request.query.get("cursor") ?? 0);
      const found = [...services.patients.values()].filter((one) => `${one.name} ${one.email}`.toLowerCase().includes(term));
      const more = found.length > at + limit;
      return answer(200, found.slice(at, at + limit).map(view), more ? { link: `</patients?limit=${limit}&cursor=${at + limit}>; rel="next"` } : {});
    }
    const [, id, rest] = /^\/patients\/([^/]+)(\/billing(?:\/transactions)?)?$/.exec(request.path) ?? [];
    const patient = services.patients.get(id);
    if (!patient) return answer(404, noPatient);
    const tag = `"${patient.version}"`;
    if (rest === "/billing") {
      const sums = {};
      for (const { type, amount, currency } of patient.entries) sums[currency] = (sums[currency] ?? 0) + (type === "PAYMENT" ? -amount : amount);
      return answer(200, { accountId: `account-${id}`, status: "ACTIVE", balances: Object.entries(sums).map(([currency, amount]) => ({ amount, currency })) });
    }
    if (rest && request.method === "GET") return answer(200, patient.entries);
    if (rest) {
      const entry = { ...request.body, recordedAt: new Date().toISOString() };
      if (!patient.entries.some((one) => one.transactionId === entry.transactionId)) patient.entries.push(entry);
      return done(201, entry, {}, "/patients/:id/billing/transactions", id, 0);
    }
    if (request.method === "GET") return answer(200, view(patient), { etag: tag });
    if (request.headers["if-match"] !== tag) return answer(412, { ...stale, traceId: trace });
    if (request.method === "DELETE") {
      services.patients.delete(id);
      return done(204, null, {}, "/patients/:id", id, patient.version + 1);
    }
    Object.assign(patient, request.body, { version: patient.version + 1 });
    return done(200, view(patient), { etag: `"${patient.version}"` }, "/patients/:id", id, patient.version);
  }

  const handlers = {
    "patient-service": patientService,
    "billing-service": (request, answer) => common("billing-service", request, answer) || answer(404, problem(404, "Not Found", "No.", "not-found")),
    "analytics-service": (request, answer) => {
      if (common("analytics-service", request, answer)) return;
      const counted = services.patients.size;
      if (request.path === "/analytics/summary") {
        return answer(200, { activePatients: counted, created: counted, updated: 0, deleted: 0, unknown: 0, ageBands: [], lastEventTime: null, partitions: [0, 1, 2].map((partition) => ({ partition, appliedOffset: partition === 2 ? services.applied : 10, lag: 0 })) });
      }
      if (request.path === "/analytics/dead-letters") return answer(200, services.letters);
      return answer(404, problem(404, "Not Found", "No.", "not-found"));
    },
  };

  async function start(name) {
    const port = services.addresses[name] ? Number(services.addresses[name].split(":")[1]) : 0;
    servers[name] = await listen(handlers[name], port);
    services.addresses[name] = `127.0.0.1:${servers[name].address().port}`;
  }
  /** Ends one as a crash does: its port refuses. */
  async function stop(name) {
    servers[name].closeAllConnections();
    await new Promise((resolve) => servers[name].close(resolve));
    delete servers[name];
  }
  async function close() {
    await Promise.all(Object.keys(servers).map(stop));
  }
  for (const name of Object.keys(handlers)) await start(name);
  return services;
}
