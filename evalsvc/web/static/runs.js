// The table of runs: the bar of the chosen runs, and verdicts that take a while.

/**
 * Names of the chosen runs, which stay chosen when the table gets new content.
 * @type {Set<string>}
 */
const chosen = new Set();

/** @returns {NodeListOf<HTMLInputElement>} */
function boxes() {
  return document.querySelectorAll("input.choose");
}

/**
 * The addresses of what can be done with the chosen runs, as `RunsPage` has them.
 * @param {string[]} names
 * @param {number} most
 * @returns {Record<string, string | false>}
 */
function addresses(names, most) {
  const query = (/** @type {string[]} */ keys) => new URLSearchParams(names.map((name, i) => [keys[i] ?? "", name]));
  const [first, ...others] = names;
  const run = encodeURIComponent(first ?? "");
  return {
    Overlay: names.length > 1 && names.length <= most && `/runs/${run}?${new URLSearchParams(others.map((name) => ["with", name]))}`,
    Compare: names.length === 2 && `/compare?${query(["a", "b"])}`,
    Export: names.length > 0 && `/v1/table?${query(names.map(() => "run"))}&format=csv`,
  };
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

/** Note which boxes are checked, and say in the bar what can be done with them. */
function note() {
  for (const box of boxes()) {
    if (box.checked) chosen.add(box.value);
    else chosen.delete(box.value);
  }
  const bar = document.getElementById("select");
  const count = bar?.querySelector("output");
  if (count) count.textContent = `${chosen.size} chosen`;
  const open = addresses([...boxes()].map((box) => box.value).filter((name) => chosen.has(name)), Number(bar?.dataset.most));
  for (const link of /** @type {NodeListOf<HTMLElement>} */ (bar?.querySelectorAll("[data-act]") ?? [])) {
    const address = open[link.dataset.act ?? ""];
    if (address) link.setAttribute("href", address);
    else link.removeAttribute("href");
  }
}

/** Make the table of runs work. */
export function runs() {
  const table = document.querySelector('[data-live="runs"]');
  if (!table || !document.getElementById("select")) return;
  note();
  table.addEventListener("change", note);
  for (const [id, check] of /** @type {[string, boolean][]} */ ([["all", true], ["none", false]])) {
    document.getElementById(id)?.addEventListener("click", (event) => {
      if (!check && new URLSearchParams(location.search).has("only")) return; // leads to the page of every run
      event.preventDefault();
      for (const box of boxes()) box.checked = check;
      note();
    });
  }
  new MutationObserver(() => {
    for (const box of boxes()) box.checked = chosen.has(box.value);
    void complete();
  }).observe(table, { childList: true });
  void complete();
}
