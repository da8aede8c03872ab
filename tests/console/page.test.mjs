// What depends on the page alone, on fixed answers.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { gzipSync } from "node:zlib";

import { launch, open, overflow, until, violations } from "./browser.mjs";
import { ASSETS, JOURNEYS, NOW, PATIENTS, TRACES, startFixture, summary } from "./fixture.mjs";

let browser;
let fixture;

before(async () => {
  [browser, fixture] = await Promise.all([launch(), startFixture()]);
});
after(async () => {
  await browser?.close();
  await fixture?.close();
});

/** Opens a view of the fixture in a scenario and waits until it is drawn. */
async function view(path, options = {}) {
  fixture.scenario = options.scenario ?? "up";
  const opened = await open(browser, fixture.url + path, options);
  await until(opened.page, isDrawn);
  return opened;
}

/** Whether a view shows what it has to show. */
function isDrawn() {
  return document.querySelector("main h1") !== null && document.querySelector(".loading") === null;
}

describe("assets", () => {
  const files = readdirSync(ASSETS).map((name) => ({ name, text: readFileSync(join(ASSETS, name), "utf8") }));

  test("take less than 60 KB together, each compressed by itself", () => {
    const bytes = files.reduce((sum, { text }) => sum + gzipSync(text, { level: 6 }).length, 0);
    console.log(`assets: ${bytes} bytes gzip in ${files.length} files`);
    assert.ok(bytes < 60_000, `${bytes} bytes`);
  });

  test("have no address of another origin and nothing inline", () => {
    for (const { name, text } of files) {
      const foreign = (text.match(/https?:\/\/[^"'`\s)]+/g) ?? []).filter((url) => url !== "http://www.w3.org/2000/svg");
      assert.deepEqual(foreign, [], name);
      if (name.endsWith(".html")) assert.doesNotMatch(text, /\sstyle=|<style|\son\w+=|<script>/, name);
    }
  });

  test("load every module in one round", () => {
    const html = files.find(({ name }) => name === "index.html")?.text ?? "";
    for (const { name } of files) {
      if (name.endsWith(".js") && name !== "app.js" && name !== "theme.js" && name !== "login.js") assert.ok(html.includes(`modulepreload" href="/assets/${name}"`), name);
    }
  });

  test("have the types that they say", () => {
    const tsc = join(process.env.CONSOLE_TEST_PACKAGES ?? "", "node_modules/typescript/bin/tsc");
    try {
      const options = ["--checkJs", "--noEmit", "--strict", "--noUncheckedIndexedAccess", "--noUnusedLocals", "--noUnusedParameters", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler", "--lib", "es2023,dom,dom.iterable", "--types", ""];
      execFileSync(process.execPath, [tsc, "--ignoreConfig", ...options, ...files.filter(({ name }) => name.endsWith(".js")).map(({ name }) => join(ASSETS, name))], { encoding: "utf8" });
    } catch (error) {
      assert.fail(/** @type {any} */ (error).stdout);
    }
  });
});

const VIEWS = [
  ["map", "/", "up"],
  ["map with a part that is down", "/?part=billing-service", "billing-killed"],
  ["map of which nothing is known", "/", "unknown"],
  ["journeys", "/journeys", "up"],
  ["journeys without any", "/journeys", "empty"],
  ["journey that is delivered", `/journeys/${TRACES.delivered}?span=${JOURNEYS[0].steps[1].span}`, "up"],
  ["journey with tries", `/journeys/${TRACES.retried}`, "up"],
  ["journey that failed", `/journeys/${TRACES.failed}`, "up"],
  ["journey that waits", `/journeys/${TRACES.waiting}`, "kafka-down"],
  ["journey that is not known", `/journeys/${"0".repeat(32)}`, "up"],
  ["patients", "/patients", "up"],
  ["patients without any", "/patients", "empty"],
  ["patients that cannot be asked for", "/patients", "unreachable"],
  ["patient", `/patients/${PATIENTS[3].id}`, "up"],
  ["patient that is registered", "/patients?new=1", "up"],
  ["patient that is changed", `/patients/${PATIENTS[1].id}?edit=1`, "up"],
  ["patient that is charged", `/patients/${PATIENTS[1].id}?tx=CHARGE`, "up"],
  ["patient that is deleted", `/patients/${PATIENTS[1].id}?delete=1`, "up"],
  ["lab", "/lab", "up"],
  ["lab without an agent", "/lab", "no-agent"],
  ["dead letters", "/dead-letters", "up"],
  ["dead letters without an agent", "/dead-letters", "no-agent"],
  ["dead letters without any", "/dead-letters", "empty"],
  ["keys", "/?help=1", "up"],
  ["address without a view", "/nowhere", "up"],
];

describe("every view is accessible, fits, makes no error and asks nobody else", () => {
  for (const [theme, width] of [["light", 1440], ["dark", 1440], ["light", 320], ["dark", 320]]) {
    test(`${theme}, ${width} px`, async () => {
      const { page, close } = await view("/", { theme, width, height: 640, expected: [502] });
      for (const [name, path, scenario] of VIEWS) {
        fixture.scenario = scenario;
        await page.goto(fixture.url + path);
        await until(page, isDrawn);
        assert.deepEqual(await violations(page), [], name);
        assert.equal(await overflow(page), 0, `${name} is wider than ${width} px`);
      }
      await close();
    });
  }
});

describe("values", () => {
  test("that are not known are dashes and never 0", async () => {
    const { page, close } = await view("/", { scenario: "unknown" });
    const text = await page.locator("main").innerText();
    assert.match(text, /–\/s/);
    assert.match(text, /outbox –, oldest –/);
    assert.doesNotMatch(text, /\b0\b/);
    await close();
  });

  test("that are old are grey and have their time", async () => {
    const { page, close } = await view("/", { scenario: "billing-killed" });
    const box = page.locator("a.old", { hasText: "billing-service" });
    assert.match(await box.textContent(), /as of 12:02:56\.112/);
    const colours = await page.evaluate(() => {
      const fill = (/** @type {string} */ selector) => getComputedStyle(/** @type {Element} */ (document.querySelector(selector))).fill;
      return { old: fill("a.old .name"), muted: fill(".map .sub"), fresh: fill("a:not(.old) .name") };
    });
    assert.equal(colours.old, colours.muted);
    assert.notEqual(colours.old, colours.fresh);
    // The state has a shape besides its colour: a square for what is down.
    assert.ok(await box.locator("path.down[d^='M1.5 1.5']").count());
    assert.equal(await page.locator("[data-breaker=open]").textContent(), "◆ open");
    await close();
  });

  test("are times of here with milliseconds, and ISO in the title", async () => {
    const { page, close } = await view("/journeys");
    const time = page.locator("tbody time").first();
    assert.equal(await time.textContent(), "12:02:59.112");
    assert.equal(await time.getAttribute("title"), new Date(NOW - 5000).toISOString());
    await close();
  });

  test("of money have the decimals of their currency", async () => {
    const { page, close } = await view(`/patients/${PATIENTS[0].id}`);
    await page.getByText("70.00 EUR").waitFor();
    await page.getByText("5,000 JPY").first().waitFor();
    assert.ok(await page.getByText("−50.00 EUR").count(), "a payment is subtracted");
    await page.getByRole("link", { name: "Charge…" }).click();
    await page.getByLabel("Currency").selectOption("JPY");
    await page.getByLabel("Amount").fill("1.5");
    await page.getByRole("button", { name: "Charge and see its journey" }).click();
    await page.getByText("JPY has no decimals").waitFor();
    await until(page, () => document.activeElement?.id === "f-amount");
    await close();
  });
});

describe("a journey", () => {
  test("hatches its waits, outlines its failures and folds its tries into one row", async () => {
    const { page, close } = await view(`/journeys/${TRACES.retried}`);
    const wait = page.locator(".step", { hasText: "outbox wait" }).locator(".mark");
    assert.match(await wait.evaluate((mark) => getComputedStyle(mark).backgroundImage), /repeating-linear-gradient/);
    const send = page.locator(".step", { hasText: "send to Kafka" });
    assert.equal(await page.locator(".step").count(), 6);
    assert.equal(await send.locator(".mark").count(), 3);
    assert.equal(await send.locator(".mark.failed").first().evaluate((mark) => getComputedStyle(mark).borderStyle), "dashed");
    assert.match(await send.innerText(), /3 tries: timeout after 1\.00 s, unavailable after 1\.00 s, answered after 12\.0 ms/);
    await close();
  });

  test("says what each missing step waits for, and counts on", async () => {
    const { page, close } = await view(`/journeys/${TRACES.waiting}`);
    await page.getByText("Waits for Kafka, which does not answer.").waitFor();
    assert.match(await page.locator(".step", { hasText: "apply" }).innerText(), /waits for the event/);
    const before = await page.locator(".lead").textContent();
    await until(page, (text) => document.querySelector(".lead")?.textContent !== text, before);
    assert.equal(await page.locator("[data-proof][data-state=pending]").count(), 3);
    await close();
  });

  test("is delivered by the offset although the consumer's span is missing", async () => {
    const { page, close } = await view(`/journeys/${TRACES.offset}`);
    assert.match(await page.locator(".verdict").innerText(), /delivered\s+Analytics has passed its offset/);
    await close();
  });

  test("opens the span of a log line, and a reload keeps it", async () => {
    const { page, close } = await view(`/journeys/${TRACES.delivered}`);
    await page.getByRole("link", { name: /account opened/ }).click();
    await page.getByRole("region", { name: "The chosen span" }).getByRole("heading", { name: "BillingService/CreateBillingAccount" }).waitFor();
    await page.reload();
    await page.getByRole("region", { name: "The chosen span" }).getByText("billing-service, server").waitFor();
    assert.equal(await page.locator(".logs li.chosen").count(), 1);
    await page.keyboard.press("Escape");
    await until(page, () => !location.search.includes("span"));
    await close();
  });

  test("is there when it begins to be told of", async () => {
    const trace = "9".repeat(32);
    const { page, close } = await view(`/journeys/${trace}`);
    await page.getByText("This journey is not known").waitFor();
    fixture.say({ journey: { ...JOURNEYS[0], trace } });
    await page.getByText("delivered after 28.0 ms").waitFor();
    await close();
  });
});

describe("keys", () => {
  test("lead to every view, search, register, help and pause", async () => {
    const { page, close } = await view("/");
    for (const [key, path] of [["2", "/journeys"], ["3", "/patients"], ["4", "/lab"], ["5", "/dead-letters"], ["1", "/"]]) {
      await page.keyboard.press(key);
      assert.equal(new URL(page.url()).pathname, path);
    }
    await page.keyboard.press("/");
    assert.equal(new URL(page.url()).pathname, "/patients");
    assert.equal(await page.evaluate(() => document.activeElement?.id), "search");
    await page.keyboard.type("3 is no key here");
    assert.equal(await page.locator("#search").inputValue(), "3 is no key here");
    await page.keyboard.press("Escape");
    await page.keyboard.press("n");
    await page.getByRole("heading", { name: "Register a patient" }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement?.id), "f-name");
    await page.keyboard.press("Escape");
    await until(page, () => document.querySelector("dialog") === null);
    await page.keyboard.press("?");
    await page.getByRole("heading", { name: "Keys" }).waitFor();
    await page.keyboard.press("Escape");
    await until(page, () => document.querySelector("dialog") === null);
    await page.keyboard.press(" ");
    await page.getByRole("button", { name: "paused" }).waitFor();
    await page.keyboard.press(" ");
    await page.getByRole("button", { name: "live" }).waitFor();
    await close();
  });

  test("move through rows, open one and lead back", async () => {
    const { page, close } = await view("/journeys");
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("k");
    assert.equal(await page.evaluate(() => document.activeElement?.getAttribute("href")), `/journeys/${TRACES.retried}`);
    await page.keyboard.press("Enter");
    await page.getByText("delivered after 3.54 s").waitFor();
    await page.keyboard.press("Escape");
    await until(page, () => location.pathname === "/journeys");
    await close();
  });

  test("can be switched off", async () => {
    const { page, close } = await view("/?help=1");
    await page.getByLabel("Single keys work").uncheck();
    await page.keyboard.press("Escape");
    await until(page, () => document.querySelector("dialog") === null);
    await page.keyboard.press("2");
    assert.equal(new URL(page.url()).pathname, "/");
    await page.reload();
    await page.keyboard.press("2");
    assert.equal(new URL(page.url()).pathname, "/");
    await close();
  });

  test("do everything that the mouse does: from the map to a charge", async () => {
    const { page, close } = await view("/patients");
    await page.keyboard.press("j");
    await page.keyboard.press("Enter");
    await page.getByRole("link", { name: "Charge…" }).focus();
    await page.keyboard.press("Enter");
    await page.getByLabel("Amount").waitFor();
    assert.equal(await page.evaluate(() => document.activeElement?.id), "f-amount");
    await page.keyboard.press("Escape");
    await until(page, () => document.querySelector("dialog") === null);
    await close();
  });
});

describe("an update", () => {
  const another = (/** @type {number} */ number) => ({ ...summary(JOURNEYS[0]), trace: String(number).padStart(32, "0"), started: new Date(NOW + number * 1000).toISOString() });

  test("keeps focus, although the row moves", async () => {
    const { page, close } = await view("/journeys");
    const row = page.locator(`a[href='/journeys/${TRACES.failed}']`);
    await row.focus();
    const element = await row.elementHandle();
    // Newer ones come above, and the row itself becomes the newest.
    fixture.say({ journeys: [another(1), another(2)] });
    await until(page, () => document.querySelectorAll("tbody tr").length === 7);
    fixture.say({ journeys: [{ ...summary(JOURNEYS[2]), started: new Date(NOW + 9000).toISOString() }] });
    await until(page, (trace) => document.querySelector("tbody a")?.getAttribute("href") === `/journeys/${trace}`, TRACES.failed);
    assert.ok(await page.evaluate((one) => document.activeElement === one, element));
    await close();
  });

  test("keeps what is typed and marked, and the scroll", async () => {
    const { page, close } = await view("/patients?new=1", { height: 480, width: 1000 });
    const name = page.getByLabel("Name");
    await name.fill("Jane Doe");
    await name.evaluate((input) => /** @type {HTMLInputElement} */ (input).setSelectionRange(2, 5));
    fixture.say({ map: null });
    fixture.say({});
    // Two drawings later.
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    assert.deepEqual(await name.evaluate((/** @type {HTMLInputElement} */ input) => [input.value, input.selectionStart, input.selectionEnd]), ["Jane Doe", 2, 5]);
    await page.keyboard.press("Escape");
    await page.mouse.move(300, 400);
    await page.mouse.wheel(0, 300);
    await until(page, () => scrollY > 200);
    const at = await page.evaluate(() => scrollY);
    fixture.say({});
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    assert.equal(await page.evaluate(() => scrollY), at);
    await close();
  });

  test("waits while the person has paused", async () => {
    const { page, close } = await view("/journeys");
    await page.getByRole("button", { name: "live" }).click();
    fixture.say({ journeys: [another(3)] });
    fixture.say({ journeys: [another(4)] });
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    assert.equal(await page.locator("tbody tr").count(), 5);
    await page.getByRole("button", { name: "paused" }).click();
    await until(page, () => document.querySelectorAll("tbody tr").length === 7);
    await close();
  });

  test("of 1,000 journeys draws in time", async () => {
    const { page, close } = await view("/journeys");
    fixture.say({ journeys: Array.from({ length: 1000 }, (_, index) => another(index + 10)) });
    await until(page, () => document.querySelectorAll("tbody tr").length === 1005);
    const longest = await page.evaluate(async () => {
      let longest = 0;
      for (let round = 0; round < 20; round++) {
        const begun = performance.now();
        dispatchEvent(new Event("resize"));
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
        longest = Math.max(longest, performance.now() - begun);
      }
      return longest;
    });
    assert.ok(longest < 1000, `${longest} ms for one drawing`);
    await close();
  });
});

describe("the connection", () => {
  test("that is lost is told, and found again", async () => {
    const { page, close } = await view("/", { expected: [503] });
    fixture.refuses = true;
    fixture.dropStreams();
    await page.getByRole("button", { name: "no connection" }).waitFor();
    await page.getByText("The console does not answer.").waitFor();
    await page.locator("a.old", { hasText: "patient-service" }).waitFor({ state: "attached" });
    fixture.refuses = false;
    await page.getByRole("button", { name: "live" }).waitFor();
    assert.equal(await page.locator(".notice").count(), 0);
    await close();
  });

  test("is one for a tab, and closed while the tab is hidden", async () => {
    const { page, close } = await view("/");
    const streams = () => fixture.asked.filter((one) => one.includes("/api/stream")).length;
    const hide = (/** @type {boolean} */ hidden) => page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { value, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
    const begun = streams();
    await hide(true);
    fixture.asked.length = 0;
    await hide(false);
    await page.getByRole("button", { name: "live" }).waitFor();
    assert.equal(streams(), 1);
    assert.ok(begun >= 1);
    await close();
  });
});

describe("motion", () => {
  test("is there, stops with the pause, and is not there for who wants none", async () => {
    const name = (/** @type {any} */ page) => page.locator(".flow").first().evaluate((/** @type {Element} */ path) => getComputedStyle(path).animationName);
    const moving = await view("/", { motion: "no-preference" });
    await moving.page.locator(".flow").first().waitFor({ state: "attached" });
    assert.equal(await name(moving.page), "flow");
    await moving.page.keyboard.press(" ");
    await moving.page.getByRole("button", { name: "paused" }).waitFor();
    assert.equal(await moving.page.locator(".flow").first().evaluate((path) => getComputedStyle(path).animationPlayState), "paused");
    await moving.close();
    const still = await view("/");
    await still.page.locator(".flow").first().waitFor({ state: "attached" });
    assert.equal(await name(still.page), "none");
    await still.close();
  });
});

describe("the theme", () => {
  test("follows the system until the person chooses, and is kept", async () => {
    const { page, close } = await view("/", { theme: "dark" });
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(await ground(), "rgb(16, 19, 24)");
    await page.getByRole("button", { name: /Theme/ }).click();
    assert.equal(await ground(), "rgb(255, 255, 255)");
    await page.reload();
    assert.equal(await ground(), "rgb(255, 255, 255)");
    await close();
  });
});

describe("a dead letter", () => {
  test("that is sent again says what became of it, and without an agent the command", async () => {
    const { page, close } = await view("/dead-letters");
    await page.getByRole("button", { name: "Resend partition 1, offset 93" }).click();
    await page.getByText("dead again: no event").waitFor();
    await page.getByRole("button", { name: "Resend outbox-3" }).waitFor();
    fixture.scenario = "no-agent";
    await page.reload();
    await page.getByText("./justw dead-letters").first().waitFor();
    assert.equal(await page.getByRole("button", { name: /Resend/ }).count(), 0);
    await close();
  });
});

describe("a form", () => {
  test("that is refused comes back with what was wrong and what was typed", async () => {
    const { page, close } = await view("/patients?new=1", { expected: [409] });
    await page.getByRole("button", { name: "Register and see its journey" }).click();
    await page.getByText("Write a name").waitFor();
    await page.getByLabel("Name").fill("Jane Doe");
    await page.getByLabel("Email").fill("jane@example.org");
    await page.getByLabel("Address").fill("1 Main Street");
    await page.getByLabel("Date of birth").fill("1990-12-31");
    await page.getByRole("button", { name: "Register and see its journey" }).click();
    await page.getByText("A patient with this email already exists").waitFor();
    assert.equal(await page.getByLabel("Name").inputValue(), "Jane Doe");
    await until(page, () => document.activeElement?.id === "f-email");
    assert.equal(await page.getByLabel("Email").getAttribute("aria-invalid"), "true");
    await close();
  });
});
