// The page on the real console, which sees stand-ins for the services: spans come as OTLP, patients over HTTP.

import assert from "node:assert/strict";
import { request as plainRequest } from "node:http";
import { after, before, beforeEach, describe, test } from "node:test";

import { launch, open, until, violations } from "./browser.mjs";
import { post, traces } from "./otlp.mjs";
import { NO_BINARY, startConsole } from "./process.mjs";
import { assertSoon, register } from "./registration.mjs";
import { startServices } from "./services.mjs";

describe("the console", { skip: NO_BINARY }, () => {
  let browser;
  let services;
  let console_;

  before(async () => {
    [browser, services] = await Promise.all([launch(), startServices()]);
    console_ = await startConsole(services);
  });
  after(async () => {
    await browser?.close();
    await console_?.stop();
    await services?.close();
  });
  beforeEach(() => {
    services.missing.clear();
    services.order = null;
    services.loseAnswers = 0;
  });

  const view = (/** @type {string} */ path, options = {}) => open(browser, console_.url + path, options);
  const api = async (/** @type {string} */ path) => (await fetch(console_.url + path)).json();

  const delivered = (page) => page.locator(".lead", { hasText: "delivered" }).waitFor();
  let people = 0;
  const email = () => `jane.${++people}@example.org`;

  test("serves assets of less than 60 KB, compressed", async () => {
    const html = await (await fetch(console_.url)).text();
    const names = [...html.matchAll(/(?:src|href)="(\/assets\/[^"]+)"/g)].map((match) => match[1]);
    assert.ok(names.length >= 12);
    let sum = 0;
    for (const name of ["/", ...names]) {
      sum += await new Promise((resolve, reject) => {
        plainRequest(console_.url + name, { headers: { "accept-encoding": "gzip" } }, (answer) => {
          let bytes = 0;
          assert.equal(answer.headers["content-encoding"], "gzip", name);
          answer.on("data", (chunk) => (bytes += chunk.length)).on("end", () => resolve(bytes));
        }).on("error", reject).end();
      });
    }
    console.log(`assets: ${sum} bytes on the wire`);
    assert.ok(sum < 60_000, `${sum} bytes`);
  });

  test("makes no error in any view, asks nobody else, and has no violation", async () => {
    for (const path of ["/", "/?part=patient-service", "/journeys", "/journeys?error=1", "/patients", "/lab", "/dead-letters"]) {
      const { page, close } = await view(path);
      await until(page, () => document.querySelector("main h1") !== null && document.querySelector(".loading") === null);
      await page.getByRole("button", { name: "live" }).waitFor();
      assert.deepEqual(await violations(page), [], path);
      await close();
    }
  });

  test("shows the skeleton of a registration in 100 ms and all of its steps in 2 s", async () => {
    await assertSoon(view, email, 3);
  });

  test("measures the wait in the outbox from the commit's end to the producer's start", async () => {
    const { page, close } = await view("/patients?new=1");
    const trace = await register(page, "Jane Doe", email());
    await delivered(page);
    const journey = await api(`/api/journeys/${trace}`);
    const wait = journey.steps.find((step) => step.id === "outbox");
    const [commit, send] = ["insert patient", "send patient"].map((name) => journey.spans.find((span) => span.name === name));
    assert.ok(Math.abs(wait.ms - (send.start_ms - (commit.start_ms + commit.ms))) <= 0.1, JSON.stringify(wait));
    assert.match(await page.locator(".step", { hasText: "outbox wait" }).innerText(), /9\.60 ms/);
    await close();
  });

  test("draws one picture in whatever order spans arrive", async () => {
    const pictures = [];
    for (const order of [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [3, 6, 0, 5, 2, 4, 1]]) {
      services.order = order;
      const { page, close } = await view("/patients?new=1");
      await register(page, "Jane Doe", email());
      await delivered(page);
      await until(page, () => document.querySelectorAll(".step .mark").length === 6 && document.querySelectorAll("a.step").length === 5);
      pictures.push(await page.evaluate(() => [...document.querySelectorAll(".step")].map((step) => [step.textContent, ...[...step.querySelectorAll(".mark")].map((mark) => mark.className + mark.getAttribute("style"))])));
      await close();
    }
    assert.deepEqual(pictures[1], pictures[0]);
    assert.deepEqual(pictures[2], pictures[0]);
  });

  test("takes a journey for delivered by the offset when the consumer's span is lost", async () => {
    services.missing.add("consumer");
    const { page, close } = await view("/patients?new=1");
    await register(page, "Jane Doe", email());
    await delivered(page);
    await page.getByText("Analytics has passed its offset.").waitFor();
    await close();
  });

  test("opens the span of a log line, and a reload keeps it", async () => {
    const { page, close } = await view("/patients?new=1");
    await register(page, "Jane Doe", email());
    await page.getByRole("link", { name: /account opened/ }).click();
    await page.getByRole("region", { name: "The chosen span" }).getByText("billing-service, server").waitFor();
    await page.reload();
    await page.getByRole("region", { name: "The chosen span" }).getByText("billing-service, server").waitFor();
    await close();
  });

  test("lists the journey and what failed apart", async () => {
    const { page, close } = await view("/patients?new=1");
    const trace = await register(page, "Jane Doe", email());
    await delivered(page);
    await page.getByRole("link", { name: "All journeys" }).click();
    await page.locator(`a[href='/journeys/${trace}']`).waitFor();
    await page.getByRole("link", { name: "Failed" }).click();
    await until(page, (one) => document.querySelector(`a[href='/journeys/${one}']`) === null, trace);
    await close();
  });

  test("searches, pages, creates, changes and deletes, and explains a stale change", async () => {
    for (let index = 0; index < 60; index++) {
      const id = `01900000-0000-7000-8000-${String(index).padStart(12, "0")}`;
      services.patients.set(id, { id, name: `Person ${index}`, email: `person.${index}@example.org`, address: "1 Main Street", dateOfBirth: "1980-01-01", registeredDate: "2026-11-26", version: 1, entries: [] });
    }
    const { page, close } = await view("/patients?new=1", { expected: [412] });
    await register(page, "Grace Hopper", email());
    await delivered(page);
    await page.getByRole("link", { name: "The patient" }).click();
    await page.getByRole("heading", { name: "Grace Hopper" }).waitFor();
    const path = new URL(page.url()).pathname;
    const id = String(path.split("/")[2]);

    // Pages and search.
    await page.goto(`${console_.url}/patients`);
    await page.getByRole("link", { name: "Next 50" }).click();
    await until(page, () => location.search.includes("cursor=") && document.querySelectorAll("tbody tr").length < 50);
    await page.locator("#search").fill("hopper");
    await until(page, () => document.querySelectorAll("tbody tr").length === 1 && location.search.includes("q=hopper"));
    await page.getByRole("link", { name: "Grace Hopper" }).click();
    await page.getByText("v1", { exact: true }).waitFor();

    // A change that somebody else was faster with.
    await page.getByRole("link", { name: "Change…" }).click();
    await page.getByLabel("Name").fill("Grace Brewster Hopper");
    Object.assign(services.patients.get(id), { address: "2 Elsewhere", version: 2 });
    await page.getByRole("button", { name: "Save and see its journey" }).click();
    await page.getByText("Somebody has changed this patient meanwhile.").waitFor();
    await page.getByText("You began with version 1; version 2 is stored now.").waitFor();
    await page.getByText("Now stored: 2 Elsewhere").waitFor();
    assert.equal(await page.getByLabel("Name").inputValue(), "Grace Brewster Hopper");
    assert.equal(services.patients.get(id).name, "Grace Hopper", "nothing was written");
    await page.getByRole("button", { name: "Write over version 2" }).click();
    await delivered(page);
    assert.equal(services.patients.get(id).name, "Grace Brewster Hopper");
    assert.equal(services.patients.get(id).version, 3);

    await page.goto(console_.url + path);
    await page.getByRole("link", { name: "Delete…" }).click();
    await page.getByRole("button", { name: "Delete and see its journey" }).click();
    await until(page, () => location.pathname.startsWith("/journeys/"));
    await until(page, () => document.querySelector("h1")?.textContent?.startsWith("DELETE /patients/:id 20"));
    assert.equal(services.patients.has(id), false);
    await close();
  });

  test("repeats a registration whose answer was lost, and there is one patient", async () => {
    services.loseAnswers = 1;
    const mail = email();
    const { page, close } = await view("/patients?new=1", { expected: [503] });
    await register(page, "Lost Answer", mail);
    await page.getByText("Service Unavailable (503). The database cannot serve now.").waitFor();
    await page.getByRole("button", { name: "Send it again" }).click();
    await until(page, () => document.querySelector(".problem") === null);
    await page.goto(`${console_.url}/patients?q=${encodeURIComponent(mail)}`);
    await page.getByRole("link", { name: "Lost Answer" }).waitFor();
    assert.equal([...services.patients.values()].filter((one) => one.email === mail).length, 1);
    await close();
  });

  test("balances a ledger, and gives yen no decimals", async () => {
    const { page, close } = await view("/patients?new=1");
    await register(page, "Max Miller", email());
    await delivered(page);
    await page.getByRole("link", { name: "The patient" }).click();
    for (const [action, amount, currency] of [["Charge", "120", "EUR"], ["Pay", "50.00", "EUR"], ["Charge", "5000", "JPY"]]) {
      await page.getByRole("link", { name: `${action}…` }).click();
      await page.getByLabel("Amount").fill(amount);
      await page.getByLabel("Currency").selectOption(currency);
      await page.getByRole("button", { name: `${action} and see its journey` }).click();
      await page.locator(".lead", { hasText: "done after" }).waitFor();
      await page.getByRole("link", { name: "The patient" }).click();
    }
    await until(page, () => [...document.querySelectorAll(".balances > div")].map((one) => one.textContent).sort().join() === "5,000 JPY owed,70.00 EUR owed");
    const amounts = await page.locator(".panel tbody .num").allInnerTexts();
    assert.ok(["120.00 EUR", "−50.00 EUR", "5,000 JPY"].every((one) => amounts.includes(one)), amounts.join());
    await close();
  });

  test("is used by the keyboard alone", async () => {
    const { page, close } = await view("/");
    await page.keyboard.press("n");
    await page.getByLabel("Name").waitFor();
    await until(page, () => document.activeElement?.id === "f-name");
    await page.keyboard.type("Ada Lovelace");
    await page.keyboard.press("Tab");
    await page.keyboard.type(email());
    await page.keyboard.press("Tab");
    await page.keyboard.type("12 Square");
    await page.keyboard.press("Tab");
    await page.keyboard.type("10121815");
    await page.keyboard.press("Enter");
    await delivered(page);
    await page.keyboard.press("j");
    await page.keyboard.press("Enter");
    await until(page, () => location.search.includes("span=") && document.activeElement?.classList.contains("step"));
    // The focus stays although what is told goes on.
    await page.keyboard.press("Escape");
    await page.keyboard.press("3");
    await page.keyboard.press("/");
    await page.keyboard.type("lovelace");
    await until(page, () => document.querySelectorAll("tbody tr").length === 1);
    await page.keyboard.press("Enter");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Ada Lovelace" }).waitFor();
    await close();
  });

  test("shows the rate of a known load within 10 %", async () => {
    services.started = Date.now();
    services.rate = 20;
    const { page, close } = await view("/");
    // Not on its way through: for three seconds.
    const rates = await page.waitForFunction(() => {
      const seen = (/** @type {any} */ (globalThis).seen ??= []);
      seen.push(Number(/requests (\d+)\/s/.exec(document.querySelector(".map")?.textContent ?? "")?.[1]));
      const last = seen.slice(-6);
      return last.length === 6 && last.every((/** @type {number} */ rate) => rate >= 18 && rate <= 22) && last.join(" ");
    }, null, { polling: 500 });
    console.log(`map rates ${await rates.jsonValue()} of 20/s`);
    services.requests += Math.floor((services.rate * (Date.now() - services.started)) / 1000);
    services.rate = 0;
    await close();
  });

  test("shows an open breaker within 3 s", async () => {
    const { page, close } = await view("/");
    await page.locator("[data-breaker=closed]").waitFor();
    const begun = Date.now();
    services.breaker = 1;
    await page.locator("[data-breaker=open]").waitFor();
    assert.ok(Date.now() - begun < 3000, `${Date.now() - begun} ms`);
    services.breaker = 0;
    await page.locator("[data-breaker=closed]").waitFor();
    await close();
  });

  test("shows a service that was killed as down, and its values as old", async () => {
    const { page, close } = await view("/");
    const box = page.locator("a[href*='part=billing-service']");
    await box.locator("path.up").waitFor({ state: "attached" });
    await services.stop("billing-service");
    await page.locator("a.is-down.old[href*='part=billing-service']").waitFor({ state: "attached" });
    assert.match(String(await box.textContent()), /as of \d\d:\d\d:\d\d\.\d\d\d/);
    assert.equal(await box.locator("path.down").count(), 1);
    await services.start("billing-service");
    await box.locator("path.up").waitFor({ state: "attached" });
    await close();
  });

  test("says which service cannot be asked", async () => {
    const { page, close } = await view("/", { expected: [502, 503] });
    await services.stop("patient-service");
    await page.goto(`${console_.url}/patients`);
    await page.getByRole("alert").waitFor();
    assert.match(await page.getByRole("alert").innerText(), /patient-service/);
    await services.start("patient-service");
    await page.getByRole("button", { name: "Try again" }).click();
    await until(page, () => document.querySelector(".problem") === null);
    await close();
  });

  /** A request with these headers, which a browser would not let a page set. */
  function raw(path, { method = "POST", headers = {}, body = "{}" } = {}) {
    return new Promise((resolve, reject) => {
      const sent = plainRequest(console_.url + path, { method, headers }, (answer) => {
        answer.resume();
        answer.on("end", () => resolve(answer.statusCode));
      });
      sent.on("error", reject);
      sent.end(method === "GET" ? undefined : body);
    });
  }

  test("refuses what does not come from its own page, and writes nothing", async () => {
    const good = { origin: console_.url, "sec-fetch-site": "same-origin", "content-type": "application/json", "x-console": "1", "idempotency-key": "k1" };
    const body = JSON.stringify({ name: "Mallory", email: "mallory@example.org", address: "1", dateOfBirth: "1990-01-01" });
    const wrong = [
      { ...good, host: "evil.example" }, { ...good, origin: "http://evil.example" }, { ...good, origin: "null" }, { ...good, "sec-fetch-site": "cross-site" },
      { ...good, "content-type": "text/plain" }, { ...good, "content-type": "application/x-www-form-urlencoded" },
      Object.fromEntries(Object.entries(good).filter(([name]) => name !== "x-console")), Object.fromEntries(Object.entries(good).filter(([name]) => name !== "origin")),
    ];
    for (const headers of wrong) assert.equal(await raw("/api/patients", { headers, body }), 403, JSON.stringify(headers));
    assert.equal(await raw("/", { method: "GET", headers: { host: "evil.example" } }), 403);
    assert.equal([...services.patients.values()].filter((one) => one.name === "Mallory").length, 0);
    assert.equal(await raw("/api/patients", { headers: good, body }), 201, "the same request without a fault is taken");
  });

  test("takes OTLP from programs alone", async () => {
    const bytes = traces("patient-service", [{ trace: "7".repeat(32), span: "7".repeat(16), name: "GET /patients", kind: "server", start: BigInt(Date.now()) * 1_000_000n, end: BigInt(Date.now()) * 1_000_000n + 1n }]);
    assert.equal(await post(console_.url, "traces", bytes, { origin: console_.url }), 403);
    assert.equal(await post(console_.url, "traces", bytes, { "content-type": "text/plain" }), 415);
    const { page, close } = await view("/", { expected: [403] });
    const status = await page.evaluate(async () => (await fetch("/v1/traces", { method: "POST", headers: { "content-type": "application/x-protobuf" }, body: new Uint8Array([10, 0]) })).status);
    assert.equal(status, 403);
    await close();
    assert.equal(await post(console_.url, "traces", bytes), 200);
  });

  test("keeps no mark of a marked patient", async () => {
    const mark = "Zzyzx-Marker";
    const { page, close } = await view("/patients?new=1");
    const trace = await register(page, mark, "zzyzx-marker@example.org");
    await delivered(page);
    await close();
    for (const path of ["/api/map", `/api/journeys/${trace}`, "/api/journeys", "/api/logs", "/api/parts/patient-service", "/metrics"]) {
      const text = await (await fetch(console_.url + path)).text();
      assert.doesNotMatch(text, /zzyzx/i, path);
    }
    assert.doesNotMatch(console_.output, /zzyzx/i);
  });
});
