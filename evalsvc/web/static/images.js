// The image wall: a sample at full size, two samples over each other with a wipe, and the slider over steps.

import { watch } from "./charts.js";
import { remember } from "./slider.js";

/**
 * @param {string} tag
 * @param {string} [text]
 */
function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

/** @param {HTMLAnchorElement} link */
function picture(link) {
  const image = /** @type {HTMLImageElement} */ (element("img"));
  image.src = link.href;
  image.alt = link.querySelector("img")?.alt ?? "";
  return image;
}

/** @param {HTMLAnchorElement} link @returns {Record<string, string>} */
function details(link) {
  return JSON.parse(link.dataset.details ?? "{}");
}

/** @param {HTMLAnchorElement} link @returns {HTMLAnchorElement[]} */
function sameRow(link) {
  return [.../** @type {NodeListOf<HTMLAnchorElement>} */ (link.closest("tr")?.querySelectorAll("a.sample") ?? [])];
}

/**
 * Say in which parameters two samples differ: only with the same seed and prompt does a wipe show what was learned.
 * @param {HTMLAnchorElement} first
 * @param {HTMLAnchorElement} second
 */
function difference(first, second) {
  const [one, other] = [details(first), details(second)];
  const names = [...new Set([...Object.keys(one), ...Object.keys(other)])].filter((name) => one[name] !== other[name]);
  const parts = names.map((name) => `${name} ${one[name] ?? "–"} and ${other[name] ?? "–"}`);
  const rows = first.closest("tr") === second.closest("tr") ? [] : ["the prompts"];
  const all = [...rows, ...parts].join(", ");
  return all ? `These differ: ${all}.` : "Same prompt, seed and parameters.";
}

/**
 * Show a sample at full size with its parameters, or two over each other.
 * @param {HTMLDialogElement} place
 * @param {HTMLAnchorElement} first
 * @param {HTMLAnchorElement | undefined} second
 */
function show(place, first, second) {
  const stack = element("div");
  stack.className = "stack";
  stack.append(picture(first));
  const parts = [stack];
  if (second) {
    const over = picture(second);
    stack.append(over);
    const range = /** @type {HTMLInputElement} */ (element("input"));
    range.type = "range";
    range.setAttribute("aria-label", "Share of the second image");
    const wipe = () => (over.style.clipPath = `inset(0 0 0 ${100 - Number(range.value)}%)`);
    range.addEventListener("input", wipe);
    wipe();
    const names = element("p", `Left: ${first.dataset.label}. Right: ${second.dataset.label}.`);
    parts.push(range, names, element("p", difference(first, second)));
  }
  const list = element("dl");
  const prompt = first.closest("tr")?.dataset.prompt ?? "";
  const pairs = Object.entries({ prompt, checkpoint: first.dataset.label ?? "", ...details(first) });
  for (const [name, value] of pairs) {
    const text = element("dd", value);
    text.dir = "auto";
    list.append(element("dt", name), text);
  }
  const close = element("button", "Close");
  close.addEventListener("click", () => place.close());
  place.replaceChildren(...parts, ...choice(place, first, second), list, close);
  if (!place.open) place.showModal();
  const next = /** @type {HTMLElement | null} */ (place.querySelector("input, select, button"));
  next?.focus();
}

/**
 * Return the choice of an image of the same row to lay over the first.
 * @param {HTMLDialogElement} place
 * @param {HTMLAnchorElement} first
 * @param {HTMLAnchorElement | undefined} second
 */
function choice(place, first, second) {
  const others = sameRow(first).filter((link) => link !== first);
  if (!others.length) return [];
  const label = element("label", "Lay over it: ");
  const select = /** @type {HTMLSelectElement} */ (element("select"));
  select.append(element("option", "nothing"), ...others.map((link) => element("option", link.dataset.label)));
  select.selectedIndex = second ? others.indexOf(second) + 1 : 0;
  select.addEventListener("change", () => show(place, first, others[select.selectedIndex - 1]));
  label.append(select);
  return [label];
}

/** Have the slider ask for the images of one step. A step without images says so, and shows none. */
function slideWall() {
  const slider = /** @type {HTMLInputElement | null} */ (document.getElementById("wall-step"));
  const output = document.getElementById("wall-step-shown");
  if (!slider || !output) return;
  const steps = (slider.dataset.steps ?? "").split(" ");
  const shown = new Set((slider.dataset.shown ?? "").split(" "));
  const at = slider.dataset.at ?? "";
  const tell = () => {
    const step = steps[Number(slider.value)] ?? "";
    const text = Number(step).toLocaleString("en") + (shown.has(step) ? "" : ": no images");
    output.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  slider.value = String(at ? steps.indexOf(at) : steps.length - 1);
  tell();
  if (!at) output.textContent = "several";
  slider.addEventListener("input", tell);
  let asked = 0;
  slider.addEventListener("change", async () => {
    remember("at", steps[Number(slider.value)] ?? "");
    remember("page", "");
    const own = ++asked;
    const answer = await fetch(location.href);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const wall = page.getElementById("wall");
    if (wall && own === asked) {
      document.getElementById("wall")?.replaceWith(document.adoptNode(wall));
      watch([wall]);
    }
    const field = /** @type {HTMLInputElement | null} */ (slider.form?.elements.namedItem("at"));
    if (field) field.value = steps[Number(slider.value)] ?? "";
  });
  slider.closest(".slider")?.removeAttribute("hidden");
}

/** Make the image wall of the page work: a click shows a sample, Shift and a click lays it over the one before. */
export function wall() {
  slideWall();
  const place = /** @type {HTMLDialogElement | null} */ (document.getElementById("wipe"));
  /** @type {HTMLAnchorElement | undefined} */
  let last;
  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target.closest("a.sample") : null;
    if (!place || !target || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const link = /** @type {HTMLAnchorElement} */ (target);
    const laid = event.shiftKey && last?.isConnected ? last : undefined;
    if (laid && laid !== link) show(place, laid, link);
    else show(place, link, undefined);
    last = link;
  });
}
