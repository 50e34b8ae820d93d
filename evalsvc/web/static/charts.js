// Charts: each is drawn when it comes near the viewport, and gets new values without losing its zoom.

/** @typedef {{view: any, address: string}} Drawn */

/** Charts that are drawn, by their element. @type {Map<Element, Drawn>} */
export const drawn = new Map();

/** Number of marks above which a canvas is faster than SVG. */
const MANY = 2000;

const LEAD = "600px";

/** Vega's level for errors alone: a chart without gaps or baselines has empty layers, of which Vega warns. */
const ERRORS = 1;

/** @returns {Record<string, unknown>} Colours of the page for Vega's configuration. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
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
 * Return the spec of a chart: from the page itself in a copy, else from the service.
 * @param {string} address
 */
async function specOf(address) {
  const inline = document.querySelector(`script[type="application/json"][data-spec="${CSS.escape(address)}"]`);
  if (inline) return JSON.parse(inline.textContent ?? "null");
  const answer = await fetch(address, { cache: "no-cache" });
  return answer.ok ? await answer.json() : null;
}

/** @param {Element} element */
async function draw(element) {
  const address = element.getAttribute("data-spec") ?? "";
  const spec = await specOf(address);
  if (!spec || !spec.datasets) {
    element.textContent = "No values to draw.";
    return;
  }
  const many = spec.datasets.points.length > MANY;
  const { view } = await /** @type {any} */ (window).vegaEmbed(element, spec, {
    ast: true,
    actions: false,
    logLevel: ERRORS,
    defaultStyle: false,
    renderer: many ? "canvas" : "svg",
    tooltip: { disableDefaultStyle: true },
    config: colours(),
  });
  drawn.set(element, { view, address });
  element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
}

/** Give every drawn chart the newest values. The view keeps its signals, and so zoom and mark. */
export async function refresh() {
  for (const [element, { view, address }] of drawn) {
    if (!element.isConnected) {
      view.finalize();
      drawn.delete(element);
      continue;
    }
    const spec = await specOf(address);
    if (!spec) continue;
    for (const [name, rows] of Object.entries(spec.datasets)) view.data(name, rows);
    await view.runAsync();
    element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  }
}

/** Draw the charts of the page as they come near the viewport. */
export function watch() {
  if (!(/** @type {any} */ (window).vegaEmbed)) return;
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        void draw(target);
      }
    },
    { rootMargin: LEAD },
  );
  for (const element of document.querySelectorAll(".chart")) observer.observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const element of [...drawn.keys()]) {
      drawn.get(element)?.view.finalize();
      drawn.delete(element);
      void draw(element);
    }
  });
}
