// The values that the parts of the page share, and the listeners for their changes.

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {import("./answer.js").Instance} Instance
 * @typedef {import("./picture.js").Picture} Picture
 * @typedef {import("./service.js").Problem} Problem
 * @typedef {import("./service.js").Model} Model
 * @typedef {import("./service.js").Tiling} Tiling
 * @typedef {import("./service.js").TileCount} TileCount
 *
 * @typedef {object} Values
 * @property {Model | null} model once it is known
 * @property {Picture | null} picture on the stage
 * @property {Answer | null} answer the instances in it
 * @property {boolean} busy whether a request is in progress
 * @property {TileCount | null} tiles how far it is, if its image is cut into tiles
 * @property {Problem | null} problem why there is no answer
 * @property {number} threshold instances below this score are left out
 * @property {ReadonlySet<number>} hidden ids of categories that are left out
 * @property {number} opacity of a mask's inside, 0 to 1
 * @property {Tiling | null} tiling how the service is asked to cut images, if it is
 * @property {boolean} labels whether categories and scores are written on the picture
 * @property {Instance | null} hovered
 * @property {Instance | null} pinned
 */

export class State {
  /** @param {Values} values */
  constructor(values) {
    this.values = values;
    /** @type {{names: (keyof Values)[], listener: (values: Values) => void}[]} */
    this.listeners = [];
  }

  /**
   * Call a listener now, and whenever one of these values changes.
   * @param {(keyof Values)[]} names
   * @param {(values: Values) => void} listener
   */
  on(names, listener) {
    this.listeners.push({ names, listener });
    listener(this.values);
  }

  /** @param {Partial<Values>} changes */
  set(changes) {
    const names = /** @type {(keyof Values)[]} */ (Object.keys(changes));
    const changed = new Set(names.filter((name) => changes[name] !== this.values[name]));
    Object.assign(this.values, changes);
    for (const entry of this.listeners) {
      if (entry.names.some((name) => changed.has(name))) {
        entry.listener(this.values);
      }
    }
  }
}

/**
 * The instances that the slider and the toggles let through, by descending score.
 * @param {Values} values
 * @returns {Instance[]}
 */
export function visible({ answer, threshold, hidden }) {
  return (answer?.instances ?? []).filter((one) => one.score >= threshold && !hidden.has(one.categoryId));
}
