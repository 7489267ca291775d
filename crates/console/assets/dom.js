// Making elements. Text always becomes a text node, so nothing that a website sends is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

const fill = (element, properties, children) => {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

/** An HTML element. Properties that are functions listen (`onclick`), the others are attributes. */
export const h = (name, properties, ...children) => fill(document.createElement(name), properties, children);

/** An SVG element. */
export const s = (name, properties, ...children) => fill(document.createElementNS(SVG, name), properties, children);

/** Replaces the children of an element, unless they are the same text. */
export const put = (element, ...children) => {
  const kept = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  if (kept.length === 1 && typeof kept[0] === "string") {
    if (element.textContent !== kept[0] || element.childElementCount) element.textContent = kept[0];
    return;
  }
  element.replaceChildren(...kept);
};

/**
 * A table. Each column: `{ title, of(row), number?, class? }`; `of` returns text or an element.
 * @param {{ title: string, of: (row: any) => any, number?: boolean, class?: string }[]} columns
 * @param {any[]} rows
 * @param {{ caption?: string, empty?: string }} texts
 */
export const table = (columns, rows, { caption, empty = "Nothing yet." } = {}) => {
  const cell = (column) => [column.number && "number", column.class].filter(Boolean).join(" ") || undefined;
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      {},
      caption && h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: cell(column) }, column.title)))),
      h(
        "tbody",
        {},
        rows.length
          ? rows.map((row) => h("tr", {}, columns.map((column) => h("td", { class: cell(column) }, column.of(row)))))
          : h("tr", {}, h("td", { class: "empty", colspan: columns.length }, empty)),
      ),
    ),
  );
};

/** A panel with a heading. */
export const panel = (title, properties, ...children) =>
  h("section", { ...properties, class: `panel ${properties?.class ?? ""}` }, h("h2", {}, title), ...children);

/** A text that can be copied with a button. */
export const copyable = (text, label) => {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Without a secure context there is no clipboard: the text is selected for the person to copy.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2_000);
  });
  const code = h("code", {}, text);
  return h("div", { class: "copyable" }, h("pre", { tabindex: 0 }, code), button);
};

/** Replaces everything below the heading of a panel, and keeps the scrolling position of its table. */
export const replaceBody = (place, ...children) => {
  const left = place.querySelector(".scroll")?.scrollLeft ?? 0;
  const focused = document.activeElement && place.contains(document.activeElement) && document.activeElement.classList.contains("scroll");
  const heading = place.firstElementChild;
  place.replaceChildren(heading, ...children.flat(Infinity).filter(Boolean));
  const scroll = place.querySelector(".scroll");
  if (scroll && left) scroll.scrollLeft = left;
  if (scroll && focused) scroll.focus({ preventScroll: true });
};
