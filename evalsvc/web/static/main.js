// What every page runs. A page without JavaScript has the same content as tables and forms.

import { watch } from "./charts.js";
import { wall } from "./images.js";
import { follow } from "./live.js";
import { slide } from "./slider.js";

/** Copy buttons: hidden without JavaScript, since they would do nothing. */
function copyButtons() {
  for (const button of document.querySelectorAll("button.copy")) {
    button.removeAttribute("hidden");
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling?.textContent ?? "";
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
}

/** Show only the metrics whose name has all typed words. */
function findMetrics() {
  const field = /** @type {HTMLInputElement | null} */ (document.getElementById("find-metric"));
  field?.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const panel of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("#rest .panel"))) {
      const name = (panel.dataset.name ?? "").toLowerCase();
      panel.hidden = !words.every((word) => name.includes(word));
    }
  });
}

copyButtons();
findMetrics();
slide();
wall();
watch();
follow();
