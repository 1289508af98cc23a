// Helpers for elements.

/**
 * The element with an id.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function get(id) {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`index.html has no #${id}`);
  }
  return /** @type {T} */ (found);
}

/**
 * A new element. Strings become text nodes, never markup.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string>} attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A square of a colour. @param {string} colour */
export function swatch(colour) {
  const square = create("span", { class: "swatch", "aria-hidden": "true" });
  square.style.background = colour;
  return square;
}

/**
 * Copy text. Browsers offer the clipboard only to HTTPS and localhost; elsewhere a selection is copied.
 * @param {string} text
 */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  const area = create("textarea", { readonly: "", class: "offscreen" });
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!isCopied) {
    throw new Error("The browser does not copy.");
  }
}

/**
 * Make a button copy text and confirm it.
 * @param {HTMLElement} button
 * @param {() => string} text
 */
export function copies(button, text) {
  const label = button.textContent;
  let timer = 0;
  button.addEventListener("click", async () => {
    try {
      await copy(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    // The button's own label hides its text from screen readers.
    get("status").textContent = button.textContent;
    clearTimeout(timer);
    timer = window.setTimeout(() => (button.textContent = label), 1500);
  });
}

/**
 * 2 instances, 1 instance.
 * @param {number} count
 * @param {string} noun
 */
export function formatCount(count, noun, plural = `${noun}s`) {
  return `${count} ${count === 1 ? noun : plural}`;
}

/** 12,345. @param {number} value */
export function formatNumber(value) {
  return value.toLocaleString("en");
}
