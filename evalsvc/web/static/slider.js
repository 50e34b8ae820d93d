// The slider over steps: it moves a mark through all charts, and shows the values at its step.

import { drawn } from "./charts.js";

/** @type {number | null} */
let at = null;

/** @param {Element} element */
function mark(element) {
  const view = drawn.get(element)?.view;
  if (!view || at === null) return;
  view.signal("at", at).run();
  const output = element.closest(".panel")?.querySelector(".at-step");
  if (!output) return;
  const here = view.data("points").filter((/** @type {any} */ row) => row.x === at);
  output.textContent = here
    .map((/** @type {any} */ row) => {
      const error = row.stderr === null ? "" : ` ± ${Number(row.stderr.toPrecision(2))}`;
      return `${here.length > 1 ? `${row.run} ` : ""}${row.shown}${error}`;
    })
    .join(" · ") || `no value at step ${at.toLocaleString()}`;
}

/** Make the slider of the page work. */
export function slide() {
  const slider = /** @type {HTMLInputElement | null} */ (document.getElementById("step"));
  if (!slider) return;
  const steps = (slider.dataset.steps ?? "").split(" ").map(Number);
  const shown = document.getElementById("step-shown");
  const move = () => {
    at = steps[Number(slider.value)] ?? null;
    if (shown) shown.textContent = at === null ? "" : at.toLocaleString();
    slider.setAttribute("aria-valuetext", at === null ? "" : `step ${at}`);
    for (const element of drawn.keys()) mark(element);
    const url = new URL(location.href);
    url.searchParams.set("step", String(at));
    history.replaceState(null, "", url);
  };
  const asked = slider.dataset.at ? steps.indexOf(Number(slider.dataset.at)) : -1;
  if (asked >= 0) slider.value = String(asked);
  slider.closest(".slider")?.removeAttribute("hidden");
  slider.addEventListener("input", move);
  document.addEventListener("drawn", (event) => mark(/** @type {Element} */ (event.target)));
  if (asked >= 0) move();
}
