// The top of the page: the model, the length of the queue, and the theme.

import { create, formatCount, get } from "./dom.js";
import { model, Problem, queue } from "./service.js";

/** @typedef {import("./service.js").Model} Model */

// Milliseconds until a service that is not ready is asked again.
const AGAIN = 2000;
const QUEUE_EVERY = 3000;
const THEME = "maskserve-theme";
// The name of the bundled model.
const DEMONSTRATION = "shapes";

/**
 * Ask for the model until the service is ready.
 * @param {(model: Model) => void} known
 * @param {(problem: Problem) => void} refused the service requires a key
 */
export async function showModel(known, refused) {
  for (;;) {
    try {
      const found = await model();
      describe(found);
      known(found);
      return;
    } catch (error) {
      // What is no Problem is a description that broke off, or another server's.
      get("model").textContent = error instanceof Problem ? error.detail : "The model's description cannot be read.";
      if (error instanceof Problem && error.status === 401) {
        refused(error);
        return;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

/** @param {Model} found */
function describe(found) {
  const ap = Object.entries(found.ap)
    .filter(([kind]) => kind === "box" || kind === "mask")
    .map(([kind, value]) => `${kind} AP ${(100 * value).toFixed(1)}`);
  const rest = [
    `${found.device}, ${found.precision}`,
    formatCount(found.categories.length, "category", "categories"),
    ...ap,
  ];
  get("model").replaceChildren(create("strong", {}, found.name), ` · ${rest.join(" · ")}`);
  get("model").title = `sha256 ${found.sha256}`;
  const demonstration = found.name === DEMONSTRATION;
  const notice = get("notice");
  notice.hidden = !demonstration && !found.notice;
  get("notice-title").hidden = !demonstration;
  const text =
    found.notice ?? `It knows ${formatCount(found.categories.length, "kind")} of drawn shapes and nothing else.`;
  // Backticks enclose commands.
  get("notice-text").replaceChildren(...text.split("`").map((part, i) => (i % 2 ? create("code", {}, part) : part)));
  const names = new Set(found.categories.map((category) => category.name));
  // Examples are useless for a model that was trained on something else.
  const lists = [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("#examples ul"))];
  for (const list of lists) {
    list.hidden = !(list.dataset.categories ?? "").split(" ").some((one) => names.has(one));
  }
  get("examples").hidden = lists.every((list) => list.hidden);
}

let watching = false;

/** Show the length of the queue while the tab is visible, until the service refuses to tell it. */
export async function watchQueue() {
  if (watching) {
    return;
  }
  watching = true;
  while (await showQueue()) {
    await new Promise((resolve) => setTimeout(resolve, QUEUE_EVERY));
  }
  watching = false;
}

/** @returns {Promise<boolean>} whether to ask again */
async function showQueue() {
  if (document.visibilityState !== "visible") {
    return true;
  }
  try {
    const state = await queue();
    if (!state) {
      return false;
    }
    const { requests, limit } = state;
    get("queue").hidden = false;
    get("queue").textContent = `queue ${requests}${limit === null ? "" : ` of ${limit}`}`;
    get("queue").classList.toggle("full", limit !== null && requests >= limit);
    return true;
  } catch (error) {
    get("queue").hidden = true;
    // After a status of 4xx the metrics are missing or need a key.
    return !(error instanceof Problem && error.status >= 400 && error.status < 500);
  }
}

/** Make the button switch between light and dark; the browser remembers the choice. */
export function setUpTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem(THEME);
    } catch {
      // Storage is disabled.
      return null;
    }
  };
  const show = (/** @type {string | null} */ theme) => {
    if (theme === "light" || theme === "dark") {
      root.dataset.theme = theme;
    } else {
      delete root.dataset.theme;
    }
    const isDark = theme ? theme === "dark" : dark.matches;
    get("theme").setAttribute("aria-label", isDark ? "Use light colours" : "Use dark colours");
    get("theme").classList.toggle("dark", isDark);
  };
  get("theme").addEventListener("click", () => {
    const next = get("theme").classList.contains("dark") ? "light" : "dark";
    show(next);
    try {
      localStorage.setItem(THEME, next);
    } catch {
      // Storage is disabled; the choice lasts as long as the page.
    }
  });
  dark.addEventListener("change", () => show(stored()));
  show(stored());
}
