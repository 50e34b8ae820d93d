// Two images of the same prompt and seed over each other, with a wipe between them; and a sample at full size.

/**
 * The links of the chosen samples, at most two.
 * @type {HTMLAnchorElement[]}
 */
let chosen = [];

/** @param {string} tag @param {string} [text] */
function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

/** @param {HTMLAnchorElement} link */
function picture(link) {
  const image = /** @type {HTMLImageElement} */ (element("img"));
  image.src = link.href;
  image.alt = link.querySelector("img")?.alt ?? "";
  return image;
}

/** Show the chosen samples: one at full size with its parameters, or two over each other. */
function show() {
  const place = /** @type {HTMLDialogElement | null} */ (document.getElementById("wipe"));
  if (!place) return;
  place.replaceChildren();
  const [first, second] = chosen;
  if (!first) return;
  const stack = element("div");
  stack.className = "stack";
  stack.append(picture(first));
  const close = element("button", "Close");
  close.addEventListener("click", () => place.close());
  if (second) {
    const over = picture(second);
    over.className = "over";
    stack.append(over);
    const range = /** @type {HTMLInputElement} */ (element("input"));
    range.type = "range";
    range.setAttribute("aria-label", "Share of the second image");
    const wipe = () => (over.style.clipPath = `inset(0 0 0 ${100 - Number(range.value)}%)`);
    range.addEventListener("input", wipe);
    wipe();
    place.append(stack, range, element("p", `left: ${picture(first).alt}. right: ${over.alt}.`), close);
  } else {
    const list = element("dl");
    for (const [name, value] of Object.entries(JSON.parse(first.dataset.details ?? "{}"))) {
      list.append(element("dt", name), element("dd", typeof value === "string" ? value : JSON.stringify(value)));
    }
    place.append(stack, list, element("p", "Choose a second image with Shift to lay both over each other."), close);
  }
  place.showModal();
}

/** Make the image wall of the page work: a click shows a sample, Shift and a click lays it over the one before. */
export function wall() {
  for (const link of /** @type {NodeListOf<HTMLAnchorElement>} */ (document.querySelectorAll("a.sample"))) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      chosen = event.shiftKey && chosen[0] ? [chosen[0], link] : [link];
      show();
    });
  }
}
