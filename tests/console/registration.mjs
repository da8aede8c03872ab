// Registering a patient on the page, as a person does.

import assert from "node:assert/strict";

import { until } from "./browser.mjs";

/** Fills the form of a new patient. */
export async function fill(page, name, email) {
  await page.getByLabel("Name").fill(name);
  await page.getByLabel("Email").fill(email);
  await page.getByLabel("Address").fill("1 Main Street");
  await page.getByLabel("Date of birth").fill("1990-12-31");
}

/** Fills the form of a new patient and sends it; gives the trace. */
export async function register(page, name, email) {
  await fill(page, name, email);
  await page.getByRole("button", { name: "Register and see its journey" }).click();
  await until(page, () => location.pathname.startsWith("/journeys/"));
  return String(new URL(page.url()).pathname.split("/")[2]);
}

/** Registers a patient up to `rounds` times, and asserts that one of them had its skeleton in 100 ms and all of its steps in 2 s:
 *  others may keep the processors busy. */
export async function assertSoon(view, email, rounds) {
  let best = { skeleton: Infinity, steps: Infinity };
  for (let round = 0; round < rounds && (best.skeleton >= 100 || best.steps >= 2000); round++) {
    const { page, close } = await view("/patients?new=1");
    await fill(page, "Jane Doe", email());
    const took = await sendAndMeasure(page);
    best = { skeleton: Math.min(best.skeleton, took.skeleton), steps: Math.min(best.steps, took.steps) };
    await close();
  }
  console.log(`skeleton after ${best.skeleton.toFixed(0)} ms, all steps after ${best.steps.toFixed(0)} ms`);
  assert.ok(best.skeleton < 100, `skeleton after ${best.skeleton} ms`);
  assert.ok(best.steps < 2000, `all steps after ${best.steps} ms`);
}

/** Sends the form; gives the milliseconds until the skeleton of the journey and until all of its steps. Measured in the page: what
 *  the person waits for, without what the test costs. */
function sendAndMeasure(page) {
  return page.evaluate(async () => {
    const begun = performance.now();
    const seen = { skeleton: Infinity, steps: Infinity };
    /** @type {HTMLElement} */ (document.querySelector("dialog button[type=submit]")).click();
    while (performance.now() - begun < 10_000 && seen.steps === Infinity) {
      await new Promise((resolve) => requestAnimationFrame(resolve));
      if (seen.skeleton === Infinity && document.querySelectorAll(".step").length === 6) seen.skeleton = performance.now() - begun;
      if (document.querySelectorAll(".step .mark").length === 6 && document.querySelector(".lead")?.textContent?.includes("delivered")) seen.steps = performance.now() - begun;
    }
    return seen;
  });
}
