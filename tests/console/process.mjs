// The real console, as a process of a test.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:net";

/** Where the console's binary is. */
export const BINARY = process.env.CONSOLE_BINARY ?? "";

/** Why the tests of the binary cannot run, or false. */
export const NO_BINARY = existsSync(BINARY) ? false : `there is no ${BINARY || "CONSOLE_BINARY"}; cargo build -p console makes it`;
if (NO_BINARY) console.error(`SKIPPED: the tests of the console itself, because ${NO_BINARY}`);

/** A port that was free a moment ago. */
export async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts the console before these services, and waits until it answers. */
export async function startConsole(services, settings = {}) {
  const port = await freePort();
  const { "patient-service": patients, "billing-service": billing, "analytics-service": analytics } = services.addresses;
  const child = spawn(BINARY, [], {
    env: { PATH: process.env.PATH, SERVER_PORT: String(port), PATIENT_SERVICE_HTTP: patients, BILLING_SERVICE_HTTP: billing, ANALYTICS_SERVICE_HTTP: analytics, LOG_FORMAT: "json", ...(process.env.CONSOLE_ASSETS && { CONSOLE_ASSETS: process.env.CONSOLE_ASSETS }), ...settings },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const started = { url: `http://127.0.0.1:${port}`, pid: child.pid, output: "", kill, stop };
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (started.output += chunk));
  const ended = new Promise((resolve) => child.on("exit", resolve));
  // What outlives its test ends with the whole run.
  const guard = () => child.kill("SIGKILL");
  process.on("exit", guard);
  async function kill() {
    child.kill("SIGKILL");
    await ended;
    process.off("exit", guard);
  }
  async function stop() {
    child.kill("SIGTERM");
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 5000).unref())]);
    await kill();
  }
  const deadline = Date.now() + 10_000;
  for (;;) {
    if (child.exitCode !== null || Date.now() > deadline) {
      await kill();
      throw new Error(`the console did not start:\n${started.output}`);
    }
    const answer = await fetch(`${started.url}/api/info`).catch(() => null);
    if (answer?.ok) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  services.console = started.url;
  return started;
}
