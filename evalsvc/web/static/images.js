// The image wall: two samples over each other with a wipe, the slider over steps, and the size of the images.

import { watch } from "./charts.js";
import { remember } from "./slider.js";

/** Keys of the dialog: the button's sign and words, and how far they move along the steps and the prompts. */
const WAYS = /** @type {const} */ ({
  ArrowLeft: ["←", "Step before", -1, 0],
  ArrowRight: ["→", "Step after", 1, 0],
  ArrowUp: ["↑", "Prompt before", 0, -1],
  ArrowDown: ["↓", "Prompt after", 0, 1],
});

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
  image.alt = link.dataset.label ?? "";
  return image;
}

/** @param {HTMLAnchorElement} link @returns {Record<string, string>} */
const details = (link) => JSON.parse(link.dataset.details ?? "{}");

/** @param {Element | null | undefined} row @returns {HTMLAnchorElement[]} Samples of one prompt, by step. */
function samples(row) {
  const links = [.../** @type {NodeListOf<HTMLAnchorElement>} */ (row?.querySelectorAll("a.sample") ?? [])];
  return links.sort((one, other) => Number(one.dataset.step) - Number(other.dataset.step));
}

/** @param {HTMLAnchorElement} link @returns {HTMLAnchorElement[]} Samples of the same prompt and run, by step. */
const overSteps = (link) => samples(link.closest("tr")).filter((other) => other.dataset.run === link.dataset.run);

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

/** @type {HTMLAnchorElement[]} The samples to the left and to the right of the wipe. */
let pair = [];

/**
 * Show two samples over each other, or one that has no other.
 * @param {HTMLDialogElement} place
 * @param {HTMLAnchorElement} left
 * @param {HTMLAnchorElement} right
 */
function show(place, left, right) {
  pair = [left, right];
  const focused = document.activeElement?.id;
  const [stack, side, moves, list] = [element("div"), element("div"), element("p"), element("dl")];
  [stack.className, side.className] = ["stack", "side"];
  stack.append(picture(left));
  const close = element("button", "Close");
  close.addEventListener("click", () => place.close());
  side.append(close, moves);
  for (const [key, [sign, words, across, down]] of Object.entries(WAYS)) {
    const way = element("button", sign);
    [way.id, way.title, way.ariaLabel] = [key, words, words];
    way.addEventListener("click", () => move(place, across, down));
    moves.append(way);
  }
  if (left !== right) {
    const over = picture(right);
    const range = /** @type {HTMLInputElement} */ (element("input"));
    range.type = "range";
    range.value = place.querySelector("input")?.value ?? "50";
    range.ariaLabel = "Share of the second image";
    const wipe = () => (over.style.clipPath = `inset(0 0 0 ${100 - Number(range.value)}%)`);
    range.addEventListener("input", wipe);
    wipe();
    stack.append(over, range);
  }
  const all = samples(right.closest("tr"));
  for (const name of all.length > 1 ? ["Left", "Right"] : []) {
    const [label, select] = [element("label", `${name} `), /** @type {HTMLSelectElement} */ (element("select"))];
    select.id = `wipe-${name}`;
    select.append(...all.map((link) => element("option", link.dataset.label)));
    select.selectedIndex = all.indexOf(name === "Left" ? left : right);
    select.addEventListener("change", () => {
      const link = all[select.selectedIndex];
      if (link) show(place, name === "Left" ? link : left, name === "Left" ? right : link);
    });
    label.append(select);
    side.append(label);
  }
  if (left !== right) side.append(element("p", difference(left, right)));
  const prompt = right.closest("tr")?.dataset.prompt ?? "";
  for (const [name, value] of Object.entries({ prompt, checkpoint: right.dataset.label ?? "", ...details(right) })) {
    const text = element("dd", value);
    text.dir = "auto";
    list.append(element("dt", name), text);
  }
  side.append(list);
  place.replaceChildren(stack, side);
  if (!place.open) place.showModal();
  (focused && place.contains(document.getElementById(focused)) ? document.getElementById(focused) : close)?.focus();
}

/**
 * Move to another step of the right sample, or to another prompt of both.
 * @param {HTMLDialogElement} place @param {number} across @param {number} down
 */
function move(place, across, down) {
  const [left, right] = pair;
  if (!left || !right) return;
  const rows = [...document.querySelectorAll("#wall tr[data-prompt]")];
  const there = samples(rows[rows.findIndex((row) => row.contains(right)) + down]);
  const [one, other] = [left, right].map((link) => there.find((each) => each.dataset.label === link.dataset.label));
  const own = overSteps(right);
  const next = down ? other : own[own.indexOf(right) + across];
  if (next) show(place, (down && one) || left, next);
}

/** Have the slider ask for the images of one step, or of all. A step without images says so, and shows none. */
function slideWall() {
  const slider = /** @type {HTMLInputElement | null} */ (document.getElementById("wall-step"));
  const output = document.getElementById("wall-step-shown");
  const play = document.getElementById("wall-play");
  if (!slider || !output || !play) return;
  const steps = (slider.dataset.steps ?? "").split(" ");
  const shown = new Set((slider.dataset.shown ?? "").split(" "));
  const chosen = () => steps[Number(slider.value)] ?? "";
  const tell = () => {
    const text = chosen() ? Number(chosen()).toLocaleString("en") + (shown.has(chosen()) ? "" : ": no images") : "All steps";
    output.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  slider.value = String(steps.indexOf(slider.dataset.at ?? ""));
  tell();
  let asked = 0;
  const ask = async () => {
    tell();
    remember("at", chosen());
    remember("page", "");
    const own = ++asked;
    const answer = await fetch(location.href);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const wall = page.getElementById("wall");
    if (!wall || own !== asked) return;
    document.getElementById("wall")?.replaceWith(document.adoptNode(wall));
    watch([wall]);
    const field = /** @type {HTMLInputElement | null} */ (slider.form?.elements.namedItem("at"));
    if (field) field.value = chosen();
  };
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶ Play";
  };
  const next = () => steps.findIndex((step, index) => index > Number(slider.value) && shown.has(step));
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (next() < 0) slider.value = "0";
    play.textContent = "■ Stop";
    timer = setInterval(() => {
      if (next() < 0) return stop();
      slider.value = String(next());
      ask();
    }, 1000);
  });
  slider.addEventListener("input", tell);
  slider.addEventListener("change", ask);
  const size = /** @type {HTMLInputElement | null} */ (document.getElementById("wall-size"));
  size?.addEventListener("input", () => document.documentElement.style.setProperty("--side", `${size.value}px`));
  slider.closest(".slider")?.removeAttribute("hidden");
}

/** Make the image wall work: a click lays a sample over that of the first step, Shift and a click over the one before. */
export function wall() {
  slideWall();
  const place = /** @type {HTMLDialogElement | null} */ (document.getElementById("wipe"));
  /** @type {HTMLAnchorElement | undefined} */
  let last;
  place?.addEventListener("keydown", (event) => {
    const way = WAYS[/** @type {keyof typeof WAYS} */ (event.key)];
    if (!way || (event.target instanceof Element && event.target.matches("input, select"))) return;
    event.preventDefault();
    move(place, way[2], way[3]);
  });
  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target.closest("a.sample") : null;
    if (!place || !target || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const link = /** @type {HTMLAnchorElement} */ (target);
    const [first = link, second = link] = overSteps(link).length > 1 ? overSteps(link) : samples(link.closest("tr"));
    if (event.shiftKey && last?.isConnected) show(place, last, link);
    else show(place, first, first === link ? second : link);
    last = link;
  });
}
