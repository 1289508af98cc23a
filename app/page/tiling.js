// Tiles for large images: the fields that choose them, and the hint that offers them. A change asks the service again.

import { get } from "./dom.js";

/**
 * @typedef {import("./state.js").State} State
 * @typedef {import("./service.js").Model} Model
 * @typedef {import("./service.js").Tiling} Tiling
 */

// Times that an image is larger than what the model sees of it, from which on tiles are offered.
const MUCH = 4;
// Sides of a tile in pixels, as the service accepts them.
const SIDE = { least: 64, usual: 1024, most: 65535 };

/**
 * @param {State} state
 * @param {() => void} repeat sends the picture again
 */
export function setUp(state, repeat) {
  const kind = /** @type {HTMLSelectElement} */ (get("tile"));
  const side = /** @type {HTMLInputElement} */ (get("tile-side"));
  const overlap = /** @type {HTMLInputElement} */ (get("overlap"));
  const take = () => {
    const tile = kind.value === "side" ? side.value : kind.value;
    // The service's own overlap is not sent.
    const chosen = overlap.value === overlap.defaultValue ? {} : { overlap: overlap.value };
    state.set({ tiling: tile ? { tile, ...chosen } : null });
  };
  const change = () => {
    side.value = String(within(Number(side.value) || SIDE.usual));
    take();
    repeat();
  };
  for (const field of [kind, side, overlap]) {
    field.addEventListener("change", change);
  }
  overlap.addEventListener("input", take);
  get("tile-offer").addEventListener("click", () => {
    kind.value = "auto";
    change();
  });
  // Browsers keep the values of fields when a page is reloaded.
  take();
  state.on(["model"], ({ model }) => {
    if (model?.tile_overlap) {
      // Only the default is set, because a value that the user has chosen stays. It is rounded to the field's steps,
      // as the browser rounds the value itself.
      overlap.defaultValue = String(Math.round(100 * model.tile_overlap) / 100);
      take();
    }
  });
  state.on(["tiling"], ({ tiling }) => {
    get("tile-side-field").hidden = kind.value !== "side";
    get("overlap-field").hidden = tiling === null;
    get("overlap-value").textContent = `${Math.round(100 * Number(overlap.value))} %`;
  });
  state.on(["model", "picture", "tiling"], ({ model, picture, tiling }) => {
    const times = picture && model ? timesInput(picture, model) : 1;
    get("tile-hint").hidden = tiling !== null || times < MUCH;
    get("tile-times").textContent = times.toFixed(0);
  });
}

/** @param {number} side */
function within(side) {
  return Math.min(Math.max(Math.round(side), SIDE.least), SIDE.most);
}

/**
 * How many times larger an image is than the model's input.
 * @param {{width: number, height: number}} image
 * @param {Model} model
 */
export function timesInput({ width, height }, { input_size: input }) {
  if (!input) {
    return 1;
  }
  const [shorter, longer] = [Math.min(width, height), Math.max(width, height)];
  return Math.max(shorter / input.shorter_side, longer / input.longer_side_at_most);
}
