// The slider over steps, and the pointer over charts: both mark a place in all charts and show the values there.

import { drawn } from "./charts.js";

/**
 * Steps, or numbers of tokens, that a chart has a value or a gap at, ascending.
 * @type {number[]}
 */
let places = [];

/**
 * The place that is kept; null for the newest values.
 * @type {number | null}
 */
let kept = null;

/**
 * The place that the pointer is at.
 * @type {number | null}
 */
let pointed = null;

/** Pixels that a pointer moves during a click, at most. */
const STILL = 4;

/**
 * Keep a state of the page in its address.
 * @param {string} name
 * @param {string} state
 */
export function remember(name, state) {
  const url = new URL(location.href);
  if (state) url.searchParams.set(name, state);
  else url.searchParams.delete(name);
  try {
    history.replaceState(null, "", url);
  } catch {
    // a page on a disk has one address
  }
}

/** @param {any} view @param {string} name @returns {any[]} */
function rows(view, name) {
  try {
    return view.data(name);
  } catch {
    return []; // this chart has no such data
  }
}

/** @param {any} row */
function value(row) {
  const two = { minimumSignificantDigits: 2, maximumSignificantDigits: 2 };
  const error = row.stderr > 0 ? row.stderr.toLocaleString("en", two) : "";
  const places = Math.min(error.split(".")[1]?.length ?? 0, 20);
  const digits = error ? { minimumFractionDigits: places, maximumFractionDigits: places } : { maximumSignificantDigits: 5 };
  const shown = row.word ?? (row.y ?? row.shown).toLocaleString("en", digits).replace("-", "−");
  return shown + (error && ` ± ${error}`);
}

/**
 * Values of the curves of a chart at a place; without a place, the newest values. `more` has what a legend has no room for.
 * @param {any} view
 * @param {number | null} at
 */
function values(view, at) {
  const points = rows(view, "points").filter((row) => row.run !== undefined);
  return [...new Set(points.map((row) => row.series))].map((series) => {
    const own = points.filter((row) => row.series === series);
    const here = at === null ? own.at(-1) : own.find((row) => row.x === at);
    const gap = here ? null : rows(view, "gaps").find((row) => row.x === at && row.run === own[0].run);
    const shown = here ? value(here) : gap ? `no value, ${gap.why}` : "no value";
    const where = at === null ? ` at ${here.x.toLocaleString("en")}` : here ? "" : gap ? `: ${gap.message}` : ` at ${at.toLocaleString("en")}`;
    const more = `${shown}${where}${here?.next ? ` (${here.next})` : ""}`;
    return { run: own[0].run, colour: view.scale("color")(own[0].run), shown, more };
  });
}

/** @param {string} tag @param {string} colour @param {string} text */
function dotted(tag, colour, text) {
  const [element, dot] = [document.createElement(tag), document.createElement("i")];
  dot.style.color = colour;
  element.append(dot, text);
  return element;
}

/** @param {Element} element */
function mark(element) {
  const chart = drawn.get(element);
  if (!chart?.marks) return;
  const at = pointed ?? kept;
  if (chart.view.signal("at") !== at) chart.view.signal("at", at).runAsync();
  const output = element.closest(".panel")?.querySelector(".at-step");
  output?.replaceChildren(
    ...values(chart.view, at).map(({ run, colour, more }) => Object.assign(dotted("span", colour, more), { title: `${run}: ${more}` })),
  );
}

/** Fill the one legend of the headline charts: a row per curve with its values at the place, a column per chart. */
function tell() {
  const heads = [...document.querySelectorAll("#legend [data-metric]")];
  const shown = heads.map((head) => {
    const name = CSS.escape(head.getAttribute("data-metric") ?? "");
    const chart = document.querySelector(`#headline [data-name="${name}"] .chart`);
    return chart && drawn.has(chart) ? values(drawn.get(chart)?.view, pointed ?? kept) : [];
  });
  const runs = new Map(shown.flat().map(({ run, colour }) => [run, colour]));
  const lines = [...runs].map(([run, colour]) => {
    const line = document.createElement("tr");
    const cells = shown.map((found, column) => {
      const own = found.find((each) => each.run === run);
      const cell = Object.assign(document.createElement("td"), { textContent: own?.shown ?? "", title: own?.more ?? "" });
      cell.setAttribute("data-label", heads[column]?.textContent ?? "");
      return cell;
    });
    line.append(dotted("th", colour, run), ...cells);
    return line;
  });
  document.querySelector("#legend tbody")?.replaceChildren(...lines);
}

function markAll() {
  for (const element of drawn.keys()) mark(element);
  place();
}

/** Have the slider and the legend show the place that is marked. */
function place() {
  tell();
  const slider = /** @type {HTMLInputElement | null} */ (document.getElementById("step"));
  const shown = document.getElementById("step-shown");
  if (!slider || !shown) return;
  const at = pointed ?? kept;
  slider.value = String(at === null ? places.length - 1 : places.indexOf(at));
  const text = at === null ? "newest" : at.toLocaleString("en");
  shown.textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

/** Most ticks below the slider. */
const MOST_TICKS = 20;

/** @param {number | null} at */
function keep(at) {
  kept = at;
  markAll();
  remember("step", String(at ?? ""));
  const field = /** @type {HTMLInputElement | null} */ (document.querySelector("#controls [name=step]"));
  if (field) field.value = String(at ?? "");
}

/**
 * Take the places of a chart that was drawn, or got new values, into the slider.
 * @param {Element} element
 */
function extend(element) {
  const view = drawn.get(element)?.view;
  if (!drawn.get(element)?.marks) return;
  const own = [...rows(view, "points"), ...rows(view, "gaps")].map((row) => row.x);
  const all = new Set([...places, ...own, ...(kept === null ? [] : [kept])]);
  const slider = /** @type {HTMLInputElement | null} */ (document.getElementById("step"));
  if (!slider) return;
  if (all.size !== places.length) {
    places = [...all].sort((one, other) => one - other);
    const every = Math.ceil(places.length / MOST_TICKS);
    const ticks = places.flatMap((_, at) => (at % every ? [] : [Object.assign(document.createElement("option"), { value: at })]));
    slider.list?.replaceChildren(...ticks);
  }
  slider.max = String(places.length - 1);
  const box = slider.closest(".slider");
  if (box && (places.length > 1 || document.querySelectorAll("#legend tbody tr").length > 1)) box.removeAttribute("hidden");
}

/**
 * Return the place of a chart's points that is nearest to the pointer.
 * @param {Element} element @param {PointerEvent} event
 */
function nearest(element, event) {
  const view = drawn.get(element)?.view;
  const box = element.querySelector("svg, canvas")?.getBoundingClientRect();
  if (!box) return null;
  const across = event.clientX - box.left - view.origin()[0];
  if (across < 0 || across > view.width()) return null;
  const scale = view.scale("x");
  let best = null;
  let least = Infinity;
  for (const { x } of [...rows(view, "points"), ...rows(view, "gaps")]) {
    const distance = Math.abs(scale(x) - across);
    if (distance < least) [best, least] = [x, distance];
  }
  return best;
}

/** @param {Element} element Chart whose pointer events move the mark. */
function followPointer(element) {
  if (element.hasAttribute("data-pointed")) return;
  element.setAttribute("data-pointed", "");
  let waiting = false;
  let pressed = [0, 0];
  const chart = /** @type {HTMLElement} */ (element);
  chart.addEventListener("pointermove", (event) => {
    if (waiting || event.pointerType !== "mouse") return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const at = nearest(element, event);
      if (at === pointed) return;
      pointed = at;
      markAll();
    });
  });
  chart.addEventListener("pointerleave", () => {
    // After a frame that a movement asked for.
    requestAnimationFrame(() => {
      pointed = null;
      markAll();
    });
  });
  // On the way down: Vega stops events of its own marks on the way up.
  chart.addEventListener("pointerdown", (event) => {
    pressed = [event.clientX, event.clientY];
    const isPlain = event.pointerType === "mouse" && event.button === 0 && !event.shiftKey;
    if (isPlain && zooms(drawn.get(element)?.view)) boxFrom(chart, event);
  }, true);
  chart.addEventListener("click", (event) => {
    const moved = Math.hypot(event.clientX - (pressed[0] ?? 0), event.clientY - (pressed[1] ?? 0));
    if (moved < STILL) keep(nearest(element, /** @type {PointerEvent} */ (event)));
  }, true);
}

/**
 * Have a box follow the pointer until its button is released. All charts then show the box's part of training, and this
 * chart the box's values too if the box is high.
 * @param {HTMLElement} chart @param {PointerEvent} start
 */
function boxFrom(chart, start) {
  const box = document.createElement("div");
  box.className = "box";
  const follow = (/** @type {PointerEvent} */ event) => {
    const [x, y] = [event.clientX - start.clientX, event.clientY - start.clientY];
    if (Math.hypot(x, y) >= STILL) document.body.append(box);
    const [left, top] = [Math.min(x, 0) + start.clientX, Math.min(y, 0) + start.clientY];
    Object.assign(box.style, { left: `${left}px`, top: `${top}px`, width: `${Math.abs(x)}px`, height: `${Math.abs(y)}px` });
  };
  addEventListener("pointermove", follow);
  addEventListener("pointerup", () => {
    removeEventListener("pointermove", follow);
    const view = drawn.get(chart)?.view;
    const frame = chart.querySelector("svg, canvas")?.getBoundingClientRect();
    const { left, right, top, bottom, height } = box.getBoundingClientRect();
    if (!box.isConnected || !view || !frame) return;
    box.remove();
    const [x, y] = [frame.left + view.origin()[0], frame.top + view.origin()[1]];
    const [width, most] = [view.width(), view.height()];
    const across = [left, right].map((at) => view.scale("x").invert(Math.min(Math.max(at - x, 0), width)));
    const ends = height > 6 * STILL ? [bottom, top] : [Infinity, 0];
    const up = ends.map((at) => view.scale("y").invert(Math.min(Math.max(at - y, 0), most)));
    view.signal("zoom_x", across).signal("zoom_y", up).runAsync();
  }, { once: true });
}

/** @param {any} view */
const zooms = (view) => Object.keys(view.getState().signals).includes("zoom_x");

/**
 * The part of training that all charts show; null for the whole.
 * @type {number[] | null}
 */
let part = null;

/** @param {any} view Chart that gets the part that all charts show. Vega takes a part only with a range of values. */
function zoom(view) {
  view.signal("zoom_x", part).signal("zoom_y", part && (view.signal("zoom_y") ?? view.scale("y").domain())).runAsync();
}

/**
 * Have all charts, and the fields From and To, follow the zoom of a chart along training.
 * @param {Element} element
 */
function followZoom(element) {
  const view = drawn.get(element)?.view;
  if (!zooms(view)) return;
  if (part) zoom(view);
  const [from, to] = ["from", "to"].map(
    (name) => /** @type {HTMLInputElement | null} */ (document.querySelector(`#controls [name=${name}]`)),
  );
  view.addSignalListener("zoom_x", (/** @type {string} */ _, /** @type {number[] | null} */ range) => {
    const now = range?.length ? [...range] : null;
    if (String(now) === String(part)) return;
    part = now;
    for (const [other, chart] of drawn) if (other !== element && zooms(chart.view)) zoom(chart.view);
    if (from) from.value = now ? String(Math.max(0, Math.floor(Math.min(...now)))) : "";
    if (to) to.value = now ? String(Math.max(0, Math.ceil(Math.max(...now)))) : "";
    document.getElementById("whole")?.toggleAttribute("hidden", !now);
  });
}

/**
 * Forget places of the other axis.
 * @param {HTMLElement} form
 */
function clear(form) {
  for (const field of /** @type {NodeListOf<HTMLInputElement>} */ (form.querySelectorAll("[name=step], [name=from], [name=to]"))) {
    field.value = "";
  }
}

/** Make the slider and the charts of the page mark places. */
export function slide() {
  const slider = /** @type {HTMLInputElement | null} */ (document.getElementById("step"));
  if (slider?.dataset.at) kept = Number(slider.dataset.at);
  slider?.addEventListener("input", () => keep(places[Number(slider.value)] ?? null));
  const form = document.getElementById("controls");
  form?.addEventListener("change", ({ target }) => target instanceof HTMLSelectElement && target.name === "x" && clear(form), true);
  document.getElementById("whole")?.addEventListener("click", () => {
    const first = [...drawn.values()].find(({ view }) => zooms(view)); // which tells the others
    first?.view.signal("zoom_x", null).signal("zoom_y", null).runAsync();
  });
  document.getElementById("step-clear")?.addEventListener("click", () => keep(null));
  document.addEventListener("drawn", (event) => {
    const element = /** @type {Element} */ (event.target);
    extend(element);
    followPointer(element);
    mark(element);
    place();
  });
  document.addEventListener("embedded", (event) => followZoom(/** @type {Element} */ (event.target)));
}
