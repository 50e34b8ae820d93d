// New values without a reload: the page asks small addresses, and takes the new content where one has changed.

import { refresh } from "./charts.js";

const SECONDS = 5;

/** Tags of the watched addresses. @type {Map<string, string | null>} */
const tags = new Map();

/** @param {string} address @returns {Promise<boolean>} Whether the content of an address has changed. */
async function changed(address) {
  const known = tags.get(address);
  const headers = known ? { "If-None-Match": known } : undefined;
  const answer = await fetch(address, { cache: "no-store", headers });
  if (answer.status === 304 || !answer.ok) return false;
  const tag = answer.headers.get("etag") ?? (await answer.text());
  tags.set(address, tag);
  return known !== undefined && known !== tag;
}

/** Replace the content of the elements with `data-live` by that of the newest page. */
async function replace() {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const element of document.querySelectorAll("[data-live]")) {
    const name = element.getAttribute("data-live") ?? "";
    const newer = page.querySelector(`[data-live="${CSS.escape(name)}"]`);
    if (newer && newer.innerHTML !== element.innerHTML) element.replaceChildren(...newer.childNodes);
  }
}

/** @param {string} text */
function say(text) {
  const place = document.getElementById("live");
  if (place && place.textContent !== text) place.textContent = text;
}

async function look() {
  if (document.visibilityState !== "visible") return;
  const watched = (document.body.dataset.watched ?? "").split(" ").filter(Boolean);
  try {
    const results = await Promise.all(watched.map(changed));
    if (results.some(Boolean)) {
      await Promise.all([replace(), refresh()]);
      say(`new values at ${new Date().toLocaleTimeString()}`);
    } else if (document.getElementById("live")?.textContent?.startsWith("the service")) {
      say("");
    }
  } catch {
    say("the service does not answer; trying again");
  }
}

/** Look for new values every few seconds while the page is visible. */
export function follow() {
  if (!document.body.dataset.watched) return;
  void look();
  setInterval(look, SECONDS * 1000);
  document.addEventListener("visibilitychange", look);
}
