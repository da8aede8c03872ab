// Each view looks as it did: in both themes, at 1440 and 320 px, on fixed answers. UPDATE_SCREENSHOTS=1 takes the pictures
// anew, those of the README too.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { launch, open, until } from "./browser.mjs";
import { JOURNEYS, PATIENTS, TRACES, startFixture } from "./fixture.mjs";
import { difference, encode, pixels } from "./pictures.mjs";

const FOLDER = fileURLToPath(new URL("screenshots/", import.meta.url));
const README = fileURLToPath(new URL("../../docs/console/", import.meta.url));
const UPDATE = process.env.UPDATE_SCREENSHOTS === "1";
/** The share of pixels that may differ: times that go on are some digits. */
const TOLERANCE = 0.005;

const VIEWS = [
  ["map", "/", "up"],
  ["map-fault", "/?part=billing-service", "billing-killed"],
  ["journeys", "/journeys", "up"],
  ["journey", `/journeys/${TRACES.delivered}?span=${JOURNEYS[0].steps[2].span}`, "up"],
  ["journey-waits", `/journeys/${TRACES.waiting}`, "kafka-down"],
  ["patients", "/patients", "up"],
  ["patient", `/patients/${PATIENTS[1].id}`, "up"],
  ["register", "/patients?new=1", "up"],
  ["lab", "/lab", "up"],
  ["dead-letters", "/dead-letters", "up"],
];

let browser;
let fixture;

before(async () => {
  [browser, fixture] = await Promise.all([launch(), startFixture()]);
});
after(async () => {
  await browser?.close();
  await fixture?.close();
});

async function show(page, path, scenario) {
  fixture.scenario = scenario;
  await page.goto(fixture.url + path);
  await until(page, () => document.querySelector("main h1") !== null && document.querySelector(".loading") === null && document.querySelector(".tools .up") !== null);
  if (scenario !== "unknown" && path.startsWith("/?") || path === "/") await until(page, () => document.querySelector(".chart path[d^=M]") !== null);
}

/** Widths of a text in the fonts of this machine: with others, every picture is another one. */
function fonts(page) {
  return page.evaluate(() => {
    const context = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
    return ["14px system-ui", "600 14px system-ui", "12px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"].map((font) => {
      context.font = font;
      return Math.round(context.measureText("Patient Management 0123456789 שרה محمد").width * 10) / 10;
    });
  });
}

for (const [theme, width, height, scale] of [["light", 1440, 900, 0.5], ["dark", 1440, 900, 0.5], ["light", 320, 640, 1], ["dark", 320, 640, 1]]) {
  test(`every view looks as it did: ${theme}, ${width} px`, async (context) => {
    const { page, close } = await open(browser, fixture.url, { theme, width, height, scale });
    const blank = await page.context().newPage();
    const known = `${FOLDER}fonts.json`;
    const here = await fonts(page);
    mkdirSync(FOLDER, { recursive: true });
    if (UPDATE) writeFileSync(known, `${JSON.stringify(here)}\n`);
    if (JSON.stringify(here) !== JSON.stringify(JSON.parse(readFileSync(known, "utf8")))) {
      console.error("SKIPPED: the pictures of tests/console, because this machine has other fonts");
      context.skip("other fonts");
      return close();
    }
    for (const [name, path, scenario] of VIEWS) {
      await show(page, path, scenario);
      const now = await pixels(blank, await page.screenshot());
      const file = `${FOLDER}${name}-${theme}-${width}.png`;
      if (UPDATE) {
        const before = existsSync(file) ? await pixels(blank, readFileSync(file)) : null;
        // What looks the same stays the same file.
        if (!before || difference(now, before) > TOLERANCE / 10) writeFileSync(file, encode(now));
        continue;
      }
      const differ = difference(now, await pixels(blank, readFileSync(file)));
      if (differ > TOLERANCE) {
        const seen = fileURLToPath(new URL(`../../target/${name}-${theme}-${width}.png`, import.meta.url));
        mkdirSync(new URL("../../target/", import.meta.url), { recursive: true });
        writeFileSync(seen, encode(now));
        assert.fail(`${name}: ${(differ * 100).toFixed(2)} % of the pixels differ; what is seen now is in ${seen}`);
      }
    }
    await close();
  });
}

test("the pictures of the README are taken", { skip: UPDATE ? false : "only with UPDATE_SCREENSHOTS=1" }, async () => {
  mkdirSync(README, { recursive: true });
  for (const [name, theme] of [["map", "light"], ["map-fault", "dark"], ["journey", "light"], ["journey-waits", "dark"], ["patient", "light"], ["lab", "dark"]]) {
    const [, path, scenario] = VIEWS.find(([view]) => view === name) ?? [];
    const { page, close } = await open(browser, fixture.url, { theme, width: 1200, height: 750 });
    const blank = await page.context().newPage();
    await show(page, path, scenario);
    writeFileSync(`${README}${name}.png`, encode(await pixels(blank, await page.screenshot())));
    await close();
  }
});
