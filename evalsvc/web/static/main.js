// What every page runs. A page without JavaScript has the same content as tables and forms.

import { find, pill } from "./bar.js";
import { followColours, watch } from "./charts.js";
import { followEvents } from "./events.js";
import { wall } from "./images.js";
import { follow } from "./live.js";
import { runs } from "./runs.js";
import { remember, slide } from "./slider.js";

/** Copy buttons: hidden without JavaScript, since they would do nothing. */
function copyButtons() {
  for (const button of document.querySelectorAll("button.copy")) button.removeAttribute("hidden");
  document.addEventListener("click", async ({ target }) => {
    const button = target instanceof Element ? target.closest("button.copy") : null;
    if (!button) return;
    await navigator.clipboard.writeText(button.previousElementSibling?.textContent ?? "");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

/** Sections that a search opens. */
const MOST_OPEN = 2;

/** Show only the metrics whose name has all typed words; companions of other metrics only if words are typed. */
function findMetrics() {
  const field = /** @type {HTMLInputElement | null} */ (document.getElementById("find-metric"));
  const find = () => {
    const words = (field?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    for (const panel of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("#rest .panel"))) {
      const name = (panel.dataset.name ?? "").toLowerCase();
      const asked = words.length > 0 || panel.dataset.companion === undefined;
      panel.hidden = !asked || !words.every((word) => name.includes(word));
    }
    const sections = document.querySelectorAll("#rest > details:has(.panel:not([hidden]))");
    if (words.length) sections.forEach((section, at) => section.toggleAttribute("open", at < MOST_OPEN));
    remember("find", words.join(" "));
  };
  field?.addEventListener("input", find);
}

/** Forms that only choose what a page shows: short addresses, and no button for a choice of one of several. */
function chooseViews() {
  for (const form of /** @type {NodeListOf<HTMLFormElement>} */ (document.querySelectorAll("form.controls"))) {
    form.addEventListener("formdata", ({ formData }) => {
      for (const name of new Set(formData.keys())) if (formData.get(name) === "") formData.delete(name);
    });
    for (const choice of form.querySelectorAll("select:not([multiple]), .toolbar :is([type=checkbox], [type=radio])")) {
      choice.addEventListener("change", () => form.requestSubmit());
    }
  }
}

find();
pill();
copyButtons();
findMetrics();
chooseViews();
slide();
wall();
runs();
watch([document]);
followColours();
follow();
followEvents();
