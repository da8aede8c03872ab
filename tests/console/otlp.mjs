// Spans and log lines as OTLP in protobuf, the bytes that a service of ours sends.

import { Buffer } from "node:buffer";
import { request } from "node:http";

function varint(value) {
  const out = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  do {
    const low = Number(rest & 127n);
    rest >>= 7n;
    out.push(rest > 0n ? low | 128 : low);
  } while (rest > 0n);
  return Buffer.from(out);
}

const field = (number, wire) => varint((number << 3) | wire);
const bytes = (number, value) => Buffer.concat([field(number, 2), varint(value.length), value]);
const text = (number, value) => bytes(number, Buffer.from(value));
const whole = (number, value) => Buffer.concat([field(number, 0), varint(value)]);
function fixed64(number, value) {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(BigInt(value));
  return Buffer.concat([field(number, 1), out]);
}

function any(value) {
  if (typeof value === "number") return whole(3, value);
  if (typeof value === "boolean") return whole(2, value ? 1 : 0);
  return text(1, String(value));
}
const attribute = (number, [key, value]) => bytes(number, Buffer.concat([text(1, key), bytes(2, any(value))]));
const attributes = (number, all) => Buffer.concat(Object.entries(all ?? {}).map((one) => attribute(number, one)));
const resource = (service) => bytes(1, attributes(1, { "service.name": service }));

const KINDS = { internal: 1, server: 2, client: 3, producer: 4, consumer: 5 };

/** @param {{ trace: string, span: string, parent?: string, name: string, kind: keyof typeof KINDS, start: bigint, end: bigint, attributes?: object, error?: string, events?: { name: string, at: bigint }[] }} span */
function spanBytes(span) {
  return Buffer.concat([
    bytes(1, Buffer.from(span.trace, "hex")),
    bytes(2, Buffer.from(span.span, "hex")),
    span.parent ? bytes(4, Buffer.from(span.parent, "hex")) : Buffer.alloc(0),
    text(5, span.name),
    whole(6, KINDS[span.kind]),
    fixed64(7, span.start),
    fixed64(8, span.end),
    attributes(9, { ...span.attributes, ...(span.error && { "error.type": span.error }) }),
    ...(span.events ?? []).map((event) => bytes(11, Buffer.concat([fixed64(1, event.at), text(2, event.name)]))),
    span.error ? bytes(15, whole(3, 2)) : Buffer.alloc(0),
  ]);
}

/** A request of /v1/traces. */
export function traces(service, spans) {
  return bytes(1, Buffer.concat([resource(service), bytes(2, Buffer.concat(spans.map((span) => bytes(2, spanBytes(span)))))]));
}

/** A request of /v1/logs. */
export function logs(service, lines) {
  const records = lines.map((line) =>
    bytes(2, Buffer.concat([
      fixed64(1, line.at), whole(2, line.severity === "WARN" ? 13 : 9), text(3, line.severity ?? "INFO"), bytes(5, any(line.message)), attributes(6, line.attributes),
      bytes(9, Buffer.from(line.trace, "hex")), bytes(10, Buffer.from(line.span, "hex")), fixed64(11, line.at),
    ])),
  );
  return bytes(1, Buffer.concat([resource(service), bytes(2, Buffer.concat(records))]));
}

/** Sends a request as a service does: without the headers that fetch adds, by which a browser is known. */
export function post(origin, signal, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const sent = request(`${origin}/v1/${signal}`, { method: "POST", headers: { "content-type": "application/x-protobuf", "content-length": body.length, ...headers } }, (answer) => {
      answer.resume();
      answer.on("end", () => resolve(answer.statusCode));
    });
    sent.on("error", reject);
    sent.end(body);
  });
}
