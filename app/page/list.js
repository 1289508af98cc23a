// The list of instances beside the picture, with the record of the pinned one.

import { copies, create, formatCount, formatNumber, get, swatch } from "./dom.js";
import { breathe } from "./pace.js";
import { css } from "./palette.js";
import { visible } from "./state.js";

/**
 * @typedef {import("./state.js").State} State
 * @typedef {import("./state.js").Values} Values
 * @typedef {import("./answer.js").Instance} Instance
 */

// Entries that are drawn at once; the next ones follow when the browser has drawn these.
const AT_ONCE = 200;

/**
 * One button for each instance. Pointing at it or focusing it highlights the instance; pressing it pins the instance
 * and opens its record.
 * @param {State} state
 */
export function setUp(state) {
  const place = get("instances");
  /** @type {Map<Instance, HTMLLIElement>} */ let entries = new Map();
  /** @type {Set<Instance>} */ let shown = new Set();
  /** @type {(Instance | null)[]} */ let marked = [];
  /** @type {Values["answer"]} */ let listed = null;

  const fill = async (/** @type {Instance[]} */ instances) => {
    /** @type {typeof entries} */ const own = new Map();
    entries = own;
    place.replaceChildren();
    for (let first = 0; first < instances.length; first += AT_ONCE) {
      if (first) {
        await breathe();
      }
      if (own !== entries) {
        // Another answer has come.
        return;
      }
      const some = instances.slice(first, first + AT_ONCE);
      some.forEach((instance) => own.set(instance, entry(instance, state)));
      show(some);
      place.append(...some.map((instance) => /** @type {HTMLLIElement} */ (own.get(instance))));
      mark(state.values);
    }
  };

  const show = (/** @type {Iterable<Instance>} */ some) => {
    for (const instance of some) {
      /** @type {HTMLLIElement} */ (entries.get(instance)).hidden = !shown.has(instance);
    }
  };

  const mark = (/** @type {Values} */ { hovered, pinned }) => {
    const before = marked;
    marked = [hovered, pinned];
    for (const instance of new Set([...before, ...marked])) {
      const item = instance && entries.get(instance);
      if (!item) {
        continue;
      }
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
  };

  state.on(["answer", "threshold", "hidden"], (values) => {
    shown = new Set(visible(values));
    const total = values.answer?.instances.length ?? 0;
    get("shown").textContent = total ? `${shown.size} of ${total}` : "";
    get("nothing").hidden = values.answer === null || shown.size > 0;
    get("nothing").textContent = total
      ? "Nothing at this score and in these categories. Move the slider to the left or choose more categories."
      : "Nothing was found, not even at a score of 0.05.";
    if (values.answer === listed) {
      show(entries.keys());
    } else {
      listed = values.answer;
      fill(listed?.instances ?? []);
    }
  });
  state.on(["hovered", "pinned"], mark);
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
    ["area", `${formatNumber(fields.area)} px, ${share.toFixed(share < 1 ? 2 : 1)} %`],
  ];
  if (fields.segmentation) {
    rows.push(["mask", `RLE, ${formatCount(fields.segmentation.counts.length, "character")}`]);
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
