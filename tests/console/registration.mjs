// Registering a patient on the page, as a person does.

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

/** Sends the form; gives the milliseconds until the skeleton of the journey and until all of its steps. Measured in the page: what
 *  the person waits for, without what the test costs. */
export function sendAndMeasure(page) {
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
