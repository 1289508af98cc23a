// The panel beside the picture: score slider, opacity, labels, categories, and the list of instances with the record
// of the pinned one. It sends no requests.

import { copies, counted, create, get, grouped } from "./dom.js";
import { css } from "./palette.js";
import { visible } from "./state.js";

/**
 * @typedef {import("./state.js").State} State
 * @typedef {import("./state.js").Values} Values
 * @typedef {import("./answer.js").Instance} Instance
 */

/** @param {State} state */
export function setUp(state) {
  controls(state);
  categories(state);
  list(state);
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
      return; // so that a toggle stays under the finger when a video's next frame arrives
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

/**
 * One button for each instance. Pointing at it or focusing it highlights the instance; pressing it pins the instance
 * and opens its record.
 * @param {State} state
 */
function list(state) {
  const place = get("instances");
  /** @type {Map<Instance, HTMLLIElement>} */ let entries = new Map();
  state.on(["answer"], ({ answer }) => {
    entries = new Map((answer?.instances ?? []).map((instance) => [instance, entry(instance, state)]));
    place.replaceChildren(...entries.values());
  });
  state.on(["answer", "threshold", "hidden"], (values) => {
    const shown = new Set(visible(values));
    for (const [instance, item] of entries) {
      item.hidden = !shown.has(instance);
    }
    const total = values.answer?.instances.length ?? 0;
    get("shown").textContent = total ? `${shown.size} of ${total}` : "";
    get("nothing").hidden = values.answer === null || shown.size > 0;
    get("nothing").textContent = total
      ? "Nothing at this score and in these categories. Move the slider to the left or choose more categories."
      : "Nothing was found, not even at a score of 0.05.";
  });
  state.on(["hovered", "pinned", "answer"], ({ hovered, pinned }) => {
    for (const [instance, item] of entries) {
      item.classList.toggle("hovered", instance === hovered);
      const open = instance === pinned;
      const button = /** @type {HTMLButtonElement} */ (item.firstElementChild);
      if ((button.getAttribute("aria-expanded") === "true") === open) {
        continue;
      }
      button.setAttribute("aria-expanded", String(open));
      item.querySelector(".record")?.remove();
      if (open) {
        item.append(record(instance));
        scrollTo(place, item);
      }
    }
  });
}

/**
 * @param {Instance} instance
 * @param {State} state
 */
function entry(instance, state) {
  const score = create("span", { class: "score" }, instance.score.toFixed(3));
  const bar = create("span", { class: "bar" }, create("span"));
  /** @type {HTMLElement} */ (bar.firstElementChild).style.width = `${instance.score * 100}%`;
  const button = create(
    "button",
    { type: "button", "aria-expanded": "false" },
    swatch(css(instance.colour)),
    create("span", { class: "name" }, instance.category),
    bar,
    score,
  );
  const hover = () => state.set({ hovered: instance });
  const leave = () => state.values.hovered === instance && state.set({ hovered: null });
  button.addEventListener("pointerenter", hover);
  button.addEventListener("focus", hover);
  button.addEventListener("pointerleave", leave);
  button.addEventListener("blur", leave);
  button.addEventListener("click", () =>
    state.set({ pinned: state.values.pinned === instance ? null : instance }),
  );
  return create("li", {}, button);
}

/** @param {Instance} instance */
function record({ record: fields, mask }) {
  const share = (100 * fields.area) / (mask.width * mask.height);
  /** @type {[string, string][]} */
  const rows = [
    ["category_id", String(fields.category_id)],
    ["score", String(fields.score)],
    ["bbox", fields.bbox.join(", ")],
    ["area", `${grouped(fields.area)} px, ${share.toFixed(share < 1 ? 2 : 1)} %`],
  ];
  if (fields.segmentation) {
    rows.push(["mask", `RLE, ${counted(fields.segmentation.counts.length, "character")}`]);
  }
  if (fields.keypoints) {
    rows.push(["keypoints", String(fields.keypoints.length / 3)]);
  }
  const button = create("button", { type: "button", class: "small" }, "Copy record");
  copies(button, () => JSON.stringify(fields));
  return create(
    "div",
    { class: "record" },
    create("dl", {}, ...rows.flatMap(([name, value]) => [create("dt", {}, name), create("dd", {}, value)])),
    button,
  );
}

/** @param {string} colour */
function swatch(colour) {
  const square = create("span", { class: "swatch", "aria-hidden": "true" });
  square.style.background = colour;
  return square;
}

/**
 * Scroll a list, but not the page, until one of its entries is visible.
 * @param {HTMLElement} box
 * @param {HTMLElement} item
 */
function scrollTo(box, item) {
  const outer = box.getBoundingClientRect();
  const inner = item.getBoundingClientRect();
  if (inner.top < outer.top) {
    box.scrollTop += inner.top - outer.top;
  } else if (inner.bottom > outer.bottom) {
    box.scrollTop += Math.min(inner.bottom - outer.bottom, inner.top - outer.top);
  }
}
