// The panel beside the picture: score slider, opacity, labels and categories. It sends no requests.

import { create, get, swatch } from "./dom.js";
import { css } from "./palette.js";

/** @typedef {import("./state.js").State} State */

/** @param {State} state */
export function setUp(state) {
  controls(state);
  categories(state);
}

/** @param {State} state */
function controls(state) {
  const threshold = /** @type {HTMLInputElement} */ (get("threshold"));
  const opacity = /** @type {HTMLInputElement} */ (get("opacity"));
  const labels = /** @type {HTMLInputElement} */ (get("labels"));
  // Browsers keep the values of fields when a page is reloaded.
  const take = () =>
    state.set({ threshold: Number(threshold.value), opacity: Number(opacity.value), labels: labels.checked });
  for (const field of [threshold, opacity, labels]) {
    field.addEventListener("input", take);
  }
  take();
  state.on(["threshold", "opacity"], (values) => {
    get("threshold-value").textContent = values.threshold.toFixed(2);
    get("opacity-value").textContent = `${Math.round(values.opacity * 100)} %`;
  });
}

/**
 * One toggle for each category in the answer.
 * @param {State} state
 */
function categories(state) {
  const place = get("categories");
  /** @type {Map<number, {button: HTMLButtonElement, count: HTMLElement}>} */ let toggles = new Map();
  const toggle = (/** @type {number} */ id) => {
    const hidden = new Set(state.values.hidden);
    if (!hidden.delete(id)) {
      hidden.add(id);
    }
    state.set({ hidden });
  };
  get("all").addEventListener("click", () => state.set({ hidden: new Set() }));
  get("none").addEventListener("click", () => state.set({ hidden: new Set(toggles.keys()) }));
  state.on(["answer"], ({ answer }) => {
    const found = answer?.categories() ?? [];
    if (found.length && found.length === toggles.size && found.every(({ id }) => toggles.has(id))) {
      // So that a toggle stays under the finger when a video's next frame arrives.
      return;
    }
    toggles = new Map(
      found.map(({ id, name }) => {
        const [{ colour }] = (answer?.instances ?? []).filter((one) => one.categoryId === id);
        const count = create("span", { class: "count" });
        const button = create("button", { type: "button", class: "toggle" }, swatch(css(colour)), name, " ", count);
        button.addEventListener("click", () => toggle(id));
        return [id, { button, count }];
      }),
    );
    place.replaceChildren(...[...toggles.values()].map(({ button }) => create("li", {}, button)));
  });
  state.on(["answer", "hidden", "threshold"], ({ answer, hidden, threshold }) => {
    for (const [id, { button, count }] of toggles) {
      const all = (answer?.instances ?? []).filter((one) => one.categoryId === id);
      const left = all.filter(({ score }) => score >= threshold).length;
      count.textContent = String(left);
      button.classList.toggle("without", left === 0);
      button.setAttribute("aria-pressed", String(!hidden.has(id)));
    }
  });
}
