// The bar of every page: what is found by the typed words, and what runs now.

/** Milliseconds without typing until the service is asked, and between two questions for what runs. */
const [PAUSE, BETWEEN] = [150, 10_000];

/** Show how many evaluations run and wait, and how long they take. */
export function pill() {
  const place = document.getElementById("pill");
  const look = async () => {
    if (!place || document.visibilityState !== "visible") return;
    const answer = await fetch("/v1/status", { cache: "no-cache" }).catch(() => null);
    if (!answer?.ok) return;
    const { running, queued, seconds_left: left } = (await answer.json()).queue;
    const time = left < 5400 ? `${Math.ceil(left / 60)} min left` : `${Math.round(left / 3600)} h left`;
    place.hidden = !(running || queued);
    const text = [`${running} running`, queued && `${queued} waiting`, left && time].filter(Boolean).join(" · ");
    if (place.textContent !== text) place.textContent = text;
  };
  if (place) setInterval(look, BETWEEN);
  void look();
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
