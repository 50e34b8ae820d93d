// The bar of every page: what is found by the typed words, and what runs now.

/** Milliseconds without typing until the service is asked, between two questions for what runs, and at most between two. */
const [PAUSE, BETWEEN, LONGEST] = [150, 10_000, 60_000];

/** When something new came or the reader did something last, and whether something runs. */
const last = { news: 0, running: false };

/** Note that there is something new, so that open pages ask often again. */
export function noteNews() {
  last.news = performance.now();
}

/**
 * Do something again and again while the page is visible: as often as given while evaluations run, else the more rarely
 * the longer there was nothing new, and at once when the reader is back.
 * @param {() => Promise<void>} look
 * @param {number} least
 */
export function repeat(look, least) {
  let timer = 0; // -1 during a look
  const wait = () => {
    const quiet = last.running ? 0 : (performance.now() - last.news) ** 2 / LONGEST; // a minute after a minute
    timer = setTimeout(turn, Math.min(Math.max(least, quiet), LONGEST));
  };
  const turn = async () => {
    if (timer < 0) return;
    clearTimeout(timer);
    timer = 0;
    if (document.visibilityState !== "visible") return;
    timer = -1;
    await look().finally(wait);
  };
  const wake = () => {
    const slept = performance.now() - last.news > 2 * least;
    noteNews();
    if (slept) void turn();
  };
  for (const kind of ["keydown", "pointermove", "scroll"]) document.addEventListener(kind, wake, { passive: true });
  document.addEventListener("visibilitychange", turn);
  wait();
}

/** Show how many evaluations run and wait, and how long they take. */
export function pill() {
  const place = document.getElementById("pill");
  const look = async () => {
    if (!place) return;
    const answer = await fetch("/v1/status", { cache: "no-cache" }).catch(() => null);
    if (!answer?.ok) return;
    const { running, queued, seconds_left: left } = (await answer.json()).queue;
    const time = left < 5400 ? `${Math.ceil(left / 60)} min left` : `${Math.round(left / 3600)} h left`;
    last.running = Boolean(running || queued);
    place.hidden = !last.running;
    const text = [`${running} running`, queued && `${queued} waiting`, left && time].filter(Boolean).join(" · ");
    if (place.textContent !== text) place.textContent = text;
  };
  if (place) void look().finally(() => repeat(look, BETWEEN));
}

/** Show what is found below the field as one types. Ctrl-K leads to the field, and Tab through the list. */
export function find() {
  const field = /** @type {HTMLInputElement | null} */ (document.getElementById("find"));
  const place = document.getElementById("hits");
  if (!field || !place) return;
  let asked = 0;
  field.addEventListener("input", async () => {
    const own = ++asked;
    await new Promise((done) => setTimeout(done, PAUSE));
    if (own !== asked) return;
    const answer = await fetch(`/find?${new URLSearchParams({ q: field.value })}`).catch(() => null);
    const list = new DOMParser().parseFromString((await answer?.text()) ?? "", "text/html").querySelector(".found");
    if (own !== asked) return;
    const count = list?.childElementCount ?? 0;
    place.replaceChildren(...(list && count ? [document.adoptNode(list)] : []));
    place.hidden = !count;
    const told = document.getElementById("live");
    if (told) told.textContent = field.value.trim() ? `${count || "nothing"} found` : "";
  });
  document.addEventListener("keydown", (event) => {
    const isFind = event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey);
    if (!isFind && (event.key !== "Escape" || place.hidden)) return;
    event.preventDefault();
    place.hidden = true;
    field.focus();
    if (isFind) field.select();
  });
  field.form?.addEventListener("focusout", ({ relatedTarget }) => {
    if (!(relatedTarget instanceof Node && field.form?.contains(relatedTarget))) place.hidden = true;
  });
}
