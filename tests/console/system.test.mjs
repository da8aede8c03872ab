// The page on the whole system, as a person has it after `up`: real services, PostgreSQL and broker, and the stack's agent.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { DEADLINE, launch, open, until, violations } from "./browser.mjs";
import { assertSoon, register } from "./registration.mjs";
import { NO_SYSTEM, startSystem } from "./system.mjs";

describe("the whole system", { skip: NO_SYSTEM }, () => {
  let browser;
  /** @type {Awaited<ReturnType<typeof startSystem>>} */
  let system;

  before(async () => {
    [browser, system] = await Promise.all([launch(), startSystem()]);
    // The first event may have to wait for its topic.
    await system.stack("seed", "1");
    await eventually("the first event is counted", async () => (await api("/api/map")).counts?.created === 1);
    await eventually("the agent asks for work", async () => (await api("/api/lab")).agent);
  });
  after(async () => {
    await browser?.close();
    await system?.stop();
  });

  const view = (/** @type {string} */ path, options = {}) => open(browser, system.url + path, options);
  const api = async (/** @type {string} */ path) => (await fetch(system.url + path)).json();
  const delivered = (page) => page.locator(".lead", { hasText: "delivered" }).waitFor();
  let people = 0;
  const email = () => `jane.${++people}@example.org`;

  async function eventually(what, condition) {
    const end = Date.now() + DEADLINE;
    while (!(await condition())) {
      assert.ok(Date.now() < end, `it has not happened: ${what}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** Has the lab break a part for some seconds. */
  async function breakPart(page, part, verb, seconds) {
    await page.goto(`${system.url}/lab`);
    await page.getByLabel("1. Part").selectOption(part);
    await page.getByLabel("2. What happens to it").selectOption(verb);
    await page.getByLabel("3. For how long").selectOption(String(seconds));
    await page.getByRole("button", { name: "Break it" }).click();
    await until(page, () => location.pathname.startsWith("/lab/"));
    const run = String(new URL(page.url()).pathname.split("/")[2]);
    await eventually("the fault is in force", async () => (await api(`/api/lab/runs/${run}`)).state !== "waiting");
    return run;
  }
  /** Waits until a run is over, and every expectation was met. */
  async function untilHealed(page, run) {
    await page.goto(`${system.url}/lab/${run}`);
    await eventually("the run is over", async () => ["ended", "failed"].includes((await api(`/api/lab/runs/${run}`)).state));
    const over = await api(`/api/lab/runs/${run}`);
    assert.equal(over.state, "ended", JSON.stringify(over));
    const wrong = over.verdicts.filter((verdict) => verdict.state !== "ok");
    assert.deepEqual(wrong, []);
    await until(page, (count) => document.querySelectorAll("[data-verdict][data-state=ok]").length === count, over.verdicts.length);
    await eventually("nothing waits", async () => {
      const map = await api("/api/map");
      return map.outbox.pending === 0 && map.tasks.pending === 0 && map.lag === 0 && map.parts.every((part) => part.state === "up");
    });
  }

  test("is led to by the link that up prints", async () => {
    assert.ok(system.printed.includes(`See it at work: ${system.url}/\n`), system.printed);
    const { page, close } = await view("/");
    for (const id of ["patient-service", "billing-service", "analytics-service"]) await page.locator(`a[href*='part=${id}'] path.up`).waitFor({ state: "attached" });
    assert.deepEqual(await violations(page), []);
    await close();
  });

  test("shows the skeleton of a registration in 100 ms and all of its steps in 2 s", async () => {
    await assertSoon(view, email, 5);
  });

  test("proves the arrival of an event: its partition and offset are those of the record in the broker", async () => {
    const { page, close } = await view("/patients?new=1");
    const trace = await register(page, "Jane Doe", email());
    await delivered(page);
    await until(page, () => document.querySelectorAll("[data-proof][data-state=ok]").length === 3);
    const journey = await api(`/api/journeys/${trace}`);
    const broker = journey.proofs.find((proof) => proof.id === "broker");
    assert.match(await page.locator("[data-proof=broker]").innerText(), new RegExp(`partition ${broker.partition}, offset ${broker.offset}\\b`));
    assert.equal(await system.keyOf(broker.partition, broker.offset), journey.patient);
    // The wait is what lies between the end of the commit and the start of the sending.
    const of = (step) => journey.spans.find((span) => span.step === step);
    const wait = journey.steps.find((step) => step.id === "outbox");
    assert.ok(Math.abs(wait.ms - (of("send").start_ms - (of("commit").start_ms + of("commit").ms))) <= 0.1, JSON.stringify(journey));
    await close();
  });

  test("shows what a journey waits for while the broker stands still, and then its tries in one row", async () => {
    const { page, close } = await view("/patients?new=1");
    // Not by the lab: its own patients would be sent first, and the event wait until all is well.
    const wake = system.freeze("broker/broker");
    try {
      const trace = await register(page, "Waits For Kafka", email());
      await page.getByText(/^Waits for Kafka, which does not answer/).waitFor();
      await page.locator(".step", { hasText: "send to Kafka" }).filter({ hasText: "waits for Kafka" }).waitFor();
      // The broker stands still for as long as the first try takes.
      await eventually("a try has failed", async () => (await api(`/api/journeys/${trace}`)).spans.some((span) => span.step === "send" && span.error));
      wake();
      await delivered(page);
      const send = page.locator(".step", { hasText: "send to Kafka" });
      assert.equal(await page.locator(".step").count(), 6, "the tries are folded");
      assert.match(await send.innerText(), /\d+ tries: .* after .*, answered after/);
      assert.ok((await send.locator(".mark.failed").count()) >= 1);
      const { tries } = (await api(`/api/journeys/${trace}`)).steps.find((step) => step.id === "send");
      assert.ok(tries.length >= 2 && tries.slice(0, -1).every((one) => one.error) && !tries.at(-1).error, JSON.stringify(tries));
    } finally {
      wake();
    }
    await close();
  });

  test("breaks the broker in the lab, and everything is as docs/failures.md says", async () => {
    const { page, close } = await view("/");
    await untilHealed(page, await breakPart(page, "kafka", "pause", 5));
    await close();
  });

  test("shows the open breaker and what is degraded within 3 s when billing stands still", async () => {
    let best = Infinity;
    // The best of three: others may keep the processors busy.
    for (let round = 0; round < 3 && best >= 3000; round++) {
      const [map, lab] = [await view("/"), await view("/lab")];
      await map.page.locator("[data-breaker=closed]").waitFor();
      await lab.page.getByRole("combobox", { name: "Registrations" }).selectOption("50");
      await lab.page.getByLabel("For", { exact: true }).selectOption("10");
      await lab.page.getByRole("button", { name: "Go" }).click();
      const seen = map.page.evaluate(async () => {
        const [breaker, triangle] = ["[data-breaker=open]", "a.is-degraded[href*='part=patient-service'] path.degraded"];
        while (!document.querySelector(breaker) || !document.querySelector(triangle)) await new Promise((resolve) => requestAnimationFrame(resolve));
        return Date.now();
      });
      const run = await breakPart(lab.page, "billing-service", "pause", 5);
      // The agent says when it ends the fault; so it is known when that began.
      const begun = Date.parse((await api(`/api/lab/runs/${run}`)).ends) - 5000;
      best = Math.min(best, (await seen) - begun);
      console.log(`breaker and triangle after ${(await seen) - begun} ms`);
      await untilHealed(lab.page, run);
      await map.page.locator("[data-breaker=closed]").waitFor();
      await lab.close();
      await map.close();
    }
    assert.ok(best < 3000, `${best} ms`);
  });

  test("searches, pages, creates, changes and deletes, and explains a stale change", async () => {
    await system.stack("seed", "60");
    const { page, close } = await view("/patients?new=1", { expected: [412] });
    await register(page, "Grace Hopper", email());
    await delivered(page);
    await page.getByRole("link", { name: "The patient" }).click();
    await page.getByRole("heading", { name: "Grace Hopper" }).waitFor();
    const path = new URL(page.url()).pathname;
    const id = String(path.split("/")[2]);

    await page.goto(`${system.url}/patients`);
    await until(page, () => document.querySelectorAll("tbody tr").length === 50);
    await page.getByRole("link", { name: "Next 50" }).click();
    await until(page, () => location.search.includes("cursor=") && document.querySelectorAll("tbody tr").length > 0);
    await page.locator("#search").fill("hopper");
    await until(page, () => document.querySelectorAll("tbody tr").length === 1 && location.search.includes("q=hopper"));
    await page.getByRole("link", { name: "Grace Hopper" }).click();
    await page.getByText("v1", { exact: true }).waitFor();

    // A change that somebody else was faster with.
    await page.getByRole("link", { name: "Change…" }).click();
    await page.getByLabel("Name").fill("Grace Brewster Hopper");
    const stored = await (await fetch(`${system.patients}/patients/${id}`)).json();
    const { name, email: mail, dateOfBirth } = stored;
    const changed = await fetch(`${system.patients}/patients/${id}`, { method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify({ name, email: mail, dateOfBirth, address: "2 Elsewhere" }) });
    assert.equal(changed.status, 200);
    await page.getByRole("button", { name: "Save and see its journey" }).click();
    await page.getByText("Somebody has changed this patient meanwhile.").waitFor();
    await page.getByText("You began with version 1; version 2 is stored now.").waitFor();
    await page.getByText("Now stored: 2 Elsewhere").waitFor();
    assert.equal((await (await fetch(`${system.patients}/patients/${id}`)).json()).name, "Grace Hopper", "nothing was written");
    await page.getByRole("button", { name: "Write over version 2" }).click();
    await delivered(page);
    const now = await fetch(`${system.patients}/patients/${id}`);
    assert.equal(now.headers.get("etag"), '"3"');
    assert.equal((await now.json()).name, "Grace Brewster Hopper");

    await page.goto(system.url + path);
    await page.getByRole("link", { name: "Delete…" }).click();
    await page.getByRole("button", { name: "Delete and see its journey" }).click();
    await until(page, () => location.pathname.startsWith("/journeys/"));
    await delivered(page);
    assert.equal((await fetch(`${system.patients}/patients/${id}`)).status, 404);
    await close();
  });

  test("balances a ledger, and gives yen no decimals", async () => {
    const { page, close } = await view("/patients?new=1");
    await register(page, "Max Miller", email());
    await delivered(page);
    await page.getByRole("link", { name: "The patient" }).click();
    for (const [action, amount, currency] of [["Charge", "120", "EUR"], ["Pay", "50.00", "EUR"], ["Charge", "5000", "JPY"]]) {
      await page.getByRole("link", { name: `${action}…` }).click();
      await page.getByLabel("Amount").fill(String(amount));
      await page.getByLabel("Currency").selectOption(String(currency));
      await page.getByRole("button", { name: `${action} and see its journey` }).click();
      await page.locator(".lead", { hasText: "done after" }).waitFor();
      await page.getByRole("link", { name: "The patient" }).click();
    }
    await until(page, () => [...document.querySelectorAll(".balances > div")].map((one) => one.textContent).sort().join() === "5,000 JPY owed,70.00 EUR owed");
    const amounts = await page.locator(".panel tbody .num").allInnerTexts();
    assert.ok(["120.00 EUR", "−50.00 EUR", "5,000 JPY"].every((one) => amounts.includes(one)), amounts.join());
    await close();
  });

  test("keeps no mark of a marked patient", async () => {
    const { page, close } = await view("/patients?new=1");
    const trace = await register(page, "Zzyzx-Marker", "zzyzx-marker@example.org");
    await delivered(page);
    await page.getByRole("link", { name: "The patient" }).click();
    await page.getByRole("heading", { name: "Zzyzx-Marker" }).waitFor();
    const { pathname } = new URL(page.url());
    await page.goto(`${system.url}/patients?q=zzyzx`);
    await until(page, () => document.querySelectorAll("tbody tr").length === 1);
    await page.goto(`${system.url}${pathname}?tx=CHARGE`);
    await page.getByLabel("Amount").fill("1");
    await page.getByRole("button", { name: "Charge and see its journey" }).click();
    await page.locator(".lead", { hasText: "done after" }).waitFor();
    await close();
    const told = ["/api/map", "/api/map/history", `/api/journeys/${trace}`, "/api/journeys?limit=1000", "/api/logs?limit=1000", "/api/lab", "/api/dead-letters", "/metrics"];
    for (const part of ["patient-service", "billing-service", "analytics-service", "patient-db", "kafka"]) told.push(`/api/parts/${part}`);
    for (const path of told) {
      const answer = await fetch(system.url + path);
      assert.equal(answer.status, 200, path);
      assert.doesNotMatch(await answer.text(), /zzyzx/i, path);
    }
    assert.doesNotMatch(system.log("console"), /zzyzx/i);
    assert.doesNotMatch(system.log("agent"), /zzyzx/i);
  });
});
