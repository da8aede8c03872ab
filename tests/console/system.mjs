// The whole system as `up` starts it: PostgreSQL, a broker, the services, the console and the agent, with a folder and ports
// of its own.

import { spawn, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { BINARY, freePort } from "./process.mjs";

/** The folder of the binaries: `up` starts the services beside itself. */
const BINARIES = dirname(BINARY);
const MISSING = ["stack", "console", "patient-service", "billing-service", "analytics-service"].filter((name) => !existsSync(join(BINARIES, name)));

/** Why the tests of the whole system cannot run, or false. */
export const NO_SYSTEM = MISSING.length === 0 ? false : `${MISSING.join(", ")} ${MISSING.length === 1 ? "is" : "are"} not in ${BINARIES || "the folder of CONSOLE_BINARY"}; just browser builds them`;
if (NO_SYSTEM) console.error(`SKIPPED: the tests of the whole system, because ${NO_SYSTEM}`);

/** How long `up` may take, which may have to install a broker; and every other command. In milliseconds. */
const UP_DEADLINE = 600_000;
const COMMAND_DEADLINE = 60_000;
const PORTS = ["PATIENT_PORT", "BILLING_PORT", "BILLING_GRPC_PORT", "ANALYTICS_PORT", "KAFKA_PORT", "CONSOLE_PORT"];

/** Starts the system; `up` prints what it prints. */
export async function startSystem() {
  const folder = mkdtempSync(join(tmpdir(), "console-system-"));
  // PostgreSQL runs as another user if this one is root.
  chmodSync(folder, 0o755);
  /** @type {Record<string, string>} */
  const ports = {};
  for (const name of PORTS) ports[name] = String(await freePort());
  // Settings of the person's own are of another system.
  const { PATH, HOME, PATIENT_MANAGEMENT_CACHE, XDG_CACHE_HOME, JAVA_HOME, BROKER } = process.env;
  const given = { PATH, HOME, PATIENT_MANAGEMENT_CACHE, XDG_CACHE_HOME, JAVA_HOME, BROKER };
  const environment = { ...Object.fromEntries(Object.entries(given).filter(([, value]) => value)), ...ports, STACK_HOME: join(folder, "stack") };
  const command = { cwd: folder, env: environment };

  /** Runs a command of `stack`; gives what it printed. */
  function stack(...words) {
    return run(words, COMMAND_DEADLINE);
  }
  function run(words, deadline) {
    return new Promise((resolve, reject) => {
      const child = spawn(join(BINARIES, "stack"), words, { ...command, stdio: ["ignore", "pipe", "pipe"], timeout: deadline });
      let printed = "";
      for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (printed += chunk));
      child.on("error", reject);
      child.on("exit", (code, signal) => (code === 0 ? resolve(printed) : reject(new Error(`stack ${words.join(" ")}: ${code ?? signal}\n${printed}`))));
    });
  }
  // What outlives its test ends with the whole run.
  const guard = () => {
    spawnSync(join(BINARIES, "stack"), ["reset", "--yes"], { ...command, stdio: "ignore", timeout: COMMAND_DEADLINE });
    rmSync(folder, { recursive: true, force: true });
  };
  process.on("exit", guard);
  const interrupted = () => process.exit(130);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, interrupted);
  async function stop() {
    guard();
    process.off("exit", guard);
    for (const signal of ["SIGINT", "SIGTERM"]) process.off(signal, interrupted);
  }
  const printed = await run(["up", "--native"], UP_DEADLINE).catch((error) => {
    stop();
    throw error;
  });
  return {
    printed,
    ports,
    url: `http://127.0.0.1:${ports.CONSOLE_PORT}`,
    patients: `http://127.0.0.1:${ports.PATIENT_PORT}`,
    stack,
    stop,
    /** Has the process of a part stand still; gives what wakes it. */
    freeze(/** @type {string} */ part) {
      const pid = Number.parseInt(readFileSync(join(folder, "stack", `${part}.pid`), "utf8"), 10);
      process.kill(pid, "SIGSTOP");
      return () => process.kill(pid, "SIGCONT");
    },
    /** What a part has logged. */
    log: (/** @type {string} */ part) => readFileSync(join(folder, "stack", `${part}.log`), "utf8"),
    /** The record at a place of the topic of the events: its key, as it is in the broker. */
    keyOf: (/** @type {number} */ partition, /** @type {number} */ offset) => keyAt(Number(ports.KAFKA_PORT), "patient", partition, offset),
  };
}

/** Asks the broker itself for a record, in its own protocol (Fetch version 4), and gives its key; null if it has none there. */
async function keyAt(port, topic, partition, offset) {
  const FETCH = 1;
  const name = Buffer.from(topic);
  const body = Buffer.alloc(10 + 4 + 4 + 4 + 4 + 1 + 4 + 2 + name.length + 4 + 4 + 8 + 4);
  let at = 0;
  const int16 = (value) => (at = body.writeInt16BE(value, at));
  const int32 = (value) => (at = body.writeInt32BE(value, at));
  // The head: API, version, correlation, no name of the client. Then no replica, time and bytes, all records, one topic.
  [FETCH, 4].forEach(int16);
  int32(1);
  int16(-1);
  [-1, 500, 1, 1 << 20].forEach(int32);
  at = body.writeInt8(0, at);
  int32(1);
  int16(name.length);
  at += name.copy(body, at);
  [1, partition].forEach(int32);
  at = body.writeBigInt64BE(BigInt(offset), at);
  int32(1 << 20);
  const answer = await exchange(port, body.subarray(0, at));
  // Correlation, throttling, one topic with its name, one partition with its number.
  let place = 4 + 4 + 4 + 2 + name.length + 4 + 4;
  const error = answer.readInt16BE(place);
  if (error !== 0) throw new Error(`the broker answers with error ${error}`);
  place += 2 + 8 + 8;
  const aborted = answer.readInt32BE(place);
  place += 4 + Math.max(0, aborted) * 16;
  const end = place + 4 + answer.readInt32BE(place);
  place += 4;
  // Batches: base offset, length, leader epoch, magic 2, checksum, attributes, ..., count, records.
  while (place + 61 <= end) {
    const base = Number(answer.readBigInt64BE(place));
    const next = place + 12 + answer.readInt32BE(place + 8);
    if (answer[place + 16] !== 2 || (answer.readInt16BE(place + 21) & 7) !== 0) throw new Error("a batch is of another form, or compressed");
    let count = answer.readInt32BE(place + 57);
    place += 61;
    const varint = () => {
      let [value, shift, byte] = [0n, 0n, 0];
      do {
        byte = answer.readUInt8(place++);
        value |= BigInt(byte & 127) << shift;
        shift += 7n;
      } while (byte & 128);
      return Number((value >> 1n) ^ -(value & 1n));
    };
    for (; count > 0; count--) {
      const length = varint();
      const following = place + length;
      place += 1;
      varint();
      const found = base + varint();
      const key = varint();
      if (found === offset) return key < 0 ? null : answer.toString("utf8", place, place + key);
      place = following;
    }
    place = next;
  }
  return null;
}

/** Sends a request to a broker; gives its answer. */
function exchange(port, body) {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1");
    socket.setTimeout(COMMAND_DEADLINE, () => socket.destroy(new Error("the broker does not answer")));
    const size = Buffer.alloc(4);
    size.writeInt32BE(body.length);
    socket.write(Buffer.concat([size, body]));
    let received = Buffer.alloc(0);
    socket.on("data", (chunk) => {
      received = Buffer.concat([received, chunk]);
      if (received.length < 4 || received.length < 4 + received.readInt32BE(0)) return;
      socket.end();
      resolve(received.subarray(4, 4 + received.readInt32BE(0)));
    });
    socket.on("error", reject);
    socket.on("close", () => reject(new Error("the broker closed the connection")));
  });
}
