// A browser for tests, and what is watched in every page: errors, requests that leave the origin, accessibility.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.CONSOLE_TEST_PACKAGES ?? process.cwd(), "/"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** How long a condition may take to come true, in milliseconds: others may keep the processors busy. */
export const DEADLINE = 30_000;

export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"] });
}

/**
 * A page at an address, with what it did that it must not do. `expected` are statuses of answers that a test provokes:
 * the browser itself reports them as errors.
 */
export async function open(browser, url, { theme = "light", width = 1440, height = 900, expected = [], scale = 1, motion = "reduce" } = {}) {
  const context = await browser.newContext({
    colorScheme: theme,
    viewport: { width, height },
    reducedMotion: motion,
    timezoneId: "UTC",
    locale: "en-GB",
    deviceScaleFactor: scale,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE);
  const origin = new URL(url).origin;
  const wrong = [];
  page.on("console", (message) => {
    const text = message.text();
    const provoked = expected.some((status) => text.includes(`status of ${status}`));
    if (["error", "warning"].includes(message.type()) && !provoked) wrong.push(`console: ${text} (${message.location().url})`);
  });
  page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== origin) wrong.push(`request to ${request.url()}`);
  });
  await page.goto(url);
  return {
    page,
    wrong,
    async close() {
      await context.close();
      assert.deepEqual(wrong, [], "the page did nothing that it must not do");
    },
  };
}

/** Every violation of WCAG 2.2 A and AA and of axe's good practices, in words. */
export async function violations(page) {
  // Through the debugger: a script in the page would break its content security policy.
  await page.evaluate(axe);
  const results = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return results.violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 160)} ${node.failureSummary.replaceAll("\n", " ")}`));
}

/** Whether something is wider than the page. */
export function overflow(page) {
  return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
}

/** Waits until a function of the page returns something true. */
export function until(page, condition, argument) {
  return page.waitForFunction(condition, argument, { timeout: DEADLINE });
}
