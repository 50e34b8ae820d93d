// The table of runs: the button that draws the chosen runs over each other, and verdicts that take a while.

/**
 * Names of the chosen runs, which stay chosen when the table gets new content.
 * @type {Set<string>}
 */
const chosen = new Set();

/** Runs that one chart has colours for. */
const MOST = 8;

/** @returns {NodeListOf<HTMLInputElement>} */
function boxes() {
  return document.querySelectorAll("input.choose");
}

/**
 * Enable the button if a chart can show the chosen runs.
 * @param {HTMLButtonElement} button
 */
function enable(button) {
  button.disabled = chosen.size < 2 || chosen.size > MOST;
  button.title = chosen.size > MOST ? `at most ${MOST} runs` : "";
}

/** Fetch the page with all verdicts, if this one was made without some of them. */
async function complete() {
  const link = /** @type {HTMLAnchorElement | null} */ (document.getElementById("all-verdicts"));
  if (!link) return;
  const answer = await fetch(link.href, { cache: "no-cache" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const name of ["runs", "open"]) {
    const newer = page.querySelector(`[data-live="${name}"]`);
    if (newer) document.querySelector(`[data-live="${name}"]`)?.replaceChildren(...newer.childNodes);
  }
}

/** Note which boxes are checked. */
function note() {
  for (const box of boxes()) {
    if (box.checked) chosen.add(box.value);
    else chosen.delete(box.value);
  }
}

/** Make the table of runs work. */
export function runs() {
  const table = document.querySelector('[data-live="runs"]');
  const button = /** @type {HTMLButtonElement | null} */ (document.getElementById("overlay"));
  if (!table || !button) return;
  button.hidden = false;
  note();
  enable(button);
  table.addEventListener("change", () => {
    note();
    enable(button);
  });
  button.addEventListener("click", () => {
    const [first, ...others] = [...boxes()].map((box) => box.value).filter((name) => chosen.has(name));
    const query = new URLSearchParams(others.map((name) => ["with", name]));
    location.assign(`/runs/${encodeURIComponent(first ?? "")}?${query}`);
  });
  new MutationObserver(() => {
    for (const box of boxes()) box.checked = chosen.has(box.value);
    void complete();
  }).observe(table, { childList: true });
  void complete();
}
