// New values without a reload: the page asks small addresses, and takes the new content where one has changed.

import { noteNews, repeat } from "./bar.js";
import { askAgain, refresh, watch } from "./charts.js";

const SECONDS = 3;

/**
 * Tags of the watched addresses.
 * @type {Map<string, string | null>}
 */
const tags = new Map();

/** @typedef {"same" | "unknown" | "new"} News */

/**
 * Tell whether the content of an address has changed since the last call; at the first call nobody knows.
 * @param {string} address
 * @returns {Promise<News>}
 */
async function newsOf(address) {
  const known = tags.get(address);
  const headers = known ? { "If-None-Match": known } : undefined;
  const answer = await fetch(address, { cache: "no-store", headers });
  if (answer.status === 401) location.reload(); // the session has ended, and the page leads to the sign-in
  if (answer.status === 304 || !answer.ok) return "same";
  const tag = answer.headers.get("etag") ?? (await answer.text());
  tags.set(address, tag);
  return known === undefined ? "unknown" : known === tag ? "same" : "new";
}

/** Replace the content of the elements with `data-live` by that of the newest page. */
export async function replace() {
  const answer = await fetch(location.href, { cache: "no-cache" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const element of document.querySelectorAll("[data-live]")) {
    const name = element.getAttribute("data-live") ?? "";
    const newer = page.querySelector(`[data-live="${CSS.escape(name)}"]`);
    if (!newer || newer.innerHTML === element.innerHTML) continue;
    const chosen = [...element.querySelectorAll("input:checked")].map((box) => CSS.escape(box.getAttribute("aria-label") ?? ""));
    element.replaceChildren(...newer.childNodes);
    for (const label of chosen) /** @type {HTMLInputElement | null} */ (element.querySelector(`[type=radio][aria-label="${label}"]`))?.click();
  }
  for (const place of document.querySelectorAll("#rest, .panels[id]")) append(place, page);
}

/**
 * Append the panels of metrics that are measured for the first time.
 * @param {Element} place
 * @param {Document} page
 */
function append(place, page) {
  const known = new Set([...place.children].map((panel) => panel.getAttribute("data-name")));
  const newer = page.getElementById(place.id)?.children ?? [];
  const added = [...newer].filter((panel) => !known.has(panel.getAttribute("data-name")));
  if (!added.length) return;
  place.append(...added);
  place.closest("section")?.removeAttribute("hidden");
  watch(added);
}

/** @param {string} text */
function say(text) {
  const place = document.getElementById("live");
  if (place && place.textContent !== text) place.textContent = text;
}

async function look() {
  const watched = (document.body.dataset.watched ?? "").split(" ").filter(Boolean);
  try {
    const news = await Promise.all(watched.map(newsOf));
    await askAgain();
    if (news.some((each) => each !== "same")) {
      await Promise.all([replace(), refresh()]);
      if (news.includes("new")) noteNews();
      if (news.includes("new")) say(`new values at ${new Date().toLocaleTimeString()}`);
    } else if (document.getElementById("live")?.textContent?.startsWith("the service")) {
      say("");
    }
  } catch {
    say("the service does not answer; trying again");
  }
}

/** Look for new values while the page is visible. */
export function follow() {
  if (!document.body.dataset.watched) return;
  // The first look is for values that came while the page loaded.
  repeat(look, SECONDS * 1000);
}
