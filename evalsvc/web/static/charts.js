// Charts: each is drawn when it comes near the viewport, and gets new values without losing its zoom.

/**
 * A chart that is drawn. `shape` is its spec without data: a chart with another shape is drawn anew.
 * @typedef {{view: any, address: string, shape: string, marks: boolean}} Drawn
 */

/**
 * Charts that are drawn, by their element.
 * @type {Map<Element, Drawn>}
 */
export const drawn = new Map();

/**
 * Charts that came near the viewport and had no values.
 * @type {Set<Element>}
 */
const empty = new Set();

/**
 * Charts that the service gave no answer for.
 * @type {Set<Element>}
 */
const unanswered = new Set();

/** Number of marks above which a canvas is faster than SVG. */
const MANY = 2000;

/** How far from the viewport a chart is drawn. Those of the headline fill the cells of the legend too. */
const LEAD = { headline: "4000px", others: "600px" };

/** Vega's level for errors alone: a chart without gaps or lines has empty layers, of which Vega warns. */
const ERRORS = 1;

/** @returns {Record<string, unknown>} Colours of the page for Vega's configuration. */
function colours() {
  const ink = getComputedStyle(document.body).color;
  const line = getComputedStyle(document.querySelector("footer") ?? document.body).borderTopColor;
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line },
    legend: { labelColor: ink, titleColor: ink },
    text: { color: ink },
    rule: { color: ink },
    view: { stroke: line },
  };
}

/**
 * Return the spec of a chart, from the page itself in a copy, else from the service; null without values, and undefined
 * if the service does not answer.
 * @param {string} address
 */
async function specOf(address) {
  const inline = document.querySelector(`script[type="application/json"][data-spec="${CSS.escape(address)}"]`);
  if (inline) return JSON.parse(inline.textContent ?? "null");
  try {
    const answer = await fetch(address, { cache: "no-cache" });
    return answer.ok ? await answer.json() : undefined;
  } catch {
    return undefined;
  }
}

/** @param {any} spec */
function shapeOf(spec) {
  return JSON.stringify({ ...spec, datasets: null, description: null });
}

/** @param {Element} element */
async function draw(element) {
  const address = element.getAttribute("data-spec") ?? "";
  await put(element, address, await specOf(address));
}

/** @param {Element} element @param {string} address @param {any} spec */
async function put(element, address, spec) {
  drawn.get(element)?.view.finalize();
  drawn.delete(element);
  empty.delete(element);
  unanswered.delete(element);
  if (!spec?.datasets) {
    (spec === undefined ? unanswered : empty).add(element);
    element.textContent = spec === undefined ? "The service did not answer; trying again." : "No values to draw.";
    return;
  }
  const { view } = await /** @type {any} */ (window).vegaEmbed(element, spec, {
    ast: true,
    actions: false,
    logLevel: ERRORS,
    defaultStyle: false,
    renderer: spec.datasets.points.length > MANY ? "canvas" : "svg",
    tooltip: { disableDefaultStyle: true },
    // The page's own legend, if there is one, is that of all its charts.
    patch: (/** @type {any} */ vega) => (document.getElementById("legend") ? { ...vega, legends: [] } : vega),
    config: colours(),
  });
  const marks = (spec.params ?? []).some((/** @type {any} */ param) => param.name === "at");
  drawn.set(element, { view, address, shape: shapeOf(spec), marks });
  element.setAttribute("aria-label", spec.description);
  element.dispatchEvent(new CustomEvent("embedded", { bubbles: true }));
  element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
}

/** @param {Element} element @param {Drawn} chart */
async function renew(element, chart) {
  const spec = await specOf(chart.address);
  if (spec === undefined) return;
  if (!spec || shapeOf(spec) !== chart.shape) return put(element, chart.address, spec);
  for (const [name, rows] of Object.entries(spec.datasets)) chart.view.data(name, rows);
  await chart.view.runAsync();
  element.setAttribute("aria-label", spec.description);
  element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
}

/**
 * Tell whether more than the edge of an element is in the viewport.
 * @param {Element} element
 */
function inView(element) {
  const { top, bottom, height } = element.getBoundingClientRect();
  return bottom > height / 3 && top < innerHeight - height / 3;
}

/** Ask again for the charts that the service gave no answer for. */
export async function askAgain() {
  await Promise.all([...unanswered].map(draw));
}

/** Give every drawn chart the newest values. The view keeps its signals, and so zoom and mark. */
export async function refresh() {
  const again = [...empty].map(draw);
  await Promise.all([...again, ...[...drawn].map(([element, chart]) => renew(element, chart))]);
}

/**
 * Draw the charts below some elements as they come near the viewport: first those in it, since all share a processor.
 * @param {Iterable<ParentNode>} places
 */
export function watch(places) {
  if (!(/** @type {any} */ (window).vegaEmbed)) return;
  const observer = (/** @type {string} */ lead) => new IntersectionObserver(
    async (entries, own) => {
      const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
      for (const element of near) own.unobserve(element);
      const seen = near.filter(inView);
      await Promise.all(seen.map(draw));
      for (const element of near) if (!seen.includes(element)) await draw(element);
    },
    { rootMargin: lead },
  );
  const [headline, others] = [observer(LEAD.headline), observer(LEAD.others)];
  for (const place of places) {
    for (const element of place.querySelectorAll(".chart")) (element.closest("#headline") ? headline : others).observe(element);
  }
}

/** Draw the charts again when the colours of the page change. */
export function followColours() {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const element of [...drawn.keys()]) void draw(element);
  });
}
