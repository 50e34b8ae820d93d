// The events of the evaluation that a page shows: progress as it comes, and new content when a state changes.

import { replace } from "./live.js";

const CHANGES = ["state", "task", "interim", "end"];

/** Milliseconds to wait for further events: those of the past come all at once. */
const GATHER = 300;

/** Milliseconds until the page is read again after the stream was refused. */
const REFUSED = 15_000;

/** @typedef {{done: number, total: number | null, unit: string | null, per_second: number | null, seconds_left: number | null}} Progress */

/** @param {number} value */
const rounded = (value) => Number(value.toPrecision(3)).toLocaleString("en");

/** @param {string} task @param {Progress} progress */
function showProgress(task, progress) {
  const bar = /** @type {HTMLProgressElement | null} */ (document.querySelector(`[data-task="${CSS.escape(task)}"]`));
  const text = document.querySelector(`[data-progress="${CSS.escape(task)}"]`);
  if (!bar || !text || progress.total === null) return;
  bar.max = progress.total;
  bar.value = progress.done;
  const pace = progress.per_second ? `, ${rounded(progress.per_second)} a second` : "";
  const left = progress.seconds_left === null ? "" : `, about ${rounded(Math.ceil(progress.seconds_left))} s left`;
  const unit = progress.unit ? ` ${progress.unit}` : "";
  text.textContent = `${progress.done.toLocaleString("en")} of ${progress.total.toLocaleString("en")}${unit}${pace}${left}`;
}

/** Follow the events of the evaluation on this page, if there is one that is not over. */
export function followEvents() {
  const address = /** @type {HTMLElement | null} */ (document.querySelector("[data-events]"))?.dataset.events;
  if (!address) return;
  const source = new EventSource(address);
  let waiting = 0;
  for (const kind of CHANGES) {
    source.addEventListener(kind, () => {
      clearTimeout(waiting);
      waiting = setTimeout(replace, GATHER);
    });
  }
  source.addEventListener("progress", (event) => {
    for (const [task, progress] of Object.entries(JSON.parse(event.data).tasks)) showProgress(task, progress);
  });
  source.addEventListener("end", () => source.close());
  source.addEventListener("error", () => {
    // A connection that was lost comes back by itself; one that was refused does not: the session may have ended.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), REFUSED);
  });
}
