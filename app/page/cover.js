// What covers the stage: the welcome text, the progress of a request, or a problem and its remedies.

import { get } from "./dom.js";
import { key } from "./service.js";

// The service refused the file itself; sending it again would change nothing.
const REFUSED = [400, 413, 415, 422];

/**
 * @param {import("./state.js").State} state
 * @param {object} actions
 * @param {() => boolean} actions.canRepeat whether there is a file to try again
 * @param {() => void} actions.repeat
 * @param {() => void} actions.cancel
 * @param {() => void} actions.enter called once there is a key: repeats what was refused
 */
export function setUp(state, { canRepeat, repeat, cancel, enter }) {
  state.on(["picture", "busy", "problem", "answer"], ({ picture, busy, problem, answer }) => {
    get("welcome").hidden = picture !== null || busy || problem !== null;
    get("busy").hidden = !busy;
    get("problem").hidden = problem === null;
    get("hint").hidden = picture === null;
    get("stage").tabIndex = picture ? 0 : -1;
    for (const id of ["zoom-in", "zoom-out", "fit"]) {
      /** @type {HTMLButtonElement} */ (get(id)).disabled = picture === null;
    }
    for (const id of ["save-png", "save-coco"]) {
      /** @type {HTMLButtonElement} */ (get(id)).disabled = answer === null;
    }
    get("panel").classList.toggle("empty", answer === null);
  });
  let tenths = -1;
  state.on(["tiles"], ({ tiles }) => {
    get("tiles").hidden = tiles === null;
    const before = tenths;
    tenths = tiles ? Math.floor((10 * tiles.done) / tiles.total) : -1;
    if (tiles) {
      const bar = /** @type {HTMLProgressElement} */ (get("tiles-done"));
      const text = `Tile ${tiles.done} of ${tiles.total}`;
      bar.max = tiles.total;
      bar.value = tiles.done;
      bar.setAttribute("aria-valuetext", text);
      get("tiles-text").textContent = text;
      if (tenths !== before) {
        // Screen readers would read out four lines a second.
        get("status").textContent = text;
      }
    }
  });
  state.on(["problem"], ({ problem }) => {
    get("problem-title").textContent = problem?.title ?? "";
    get("problem-detail").textContent = problem?.detail ?? "";
    const facts = [problem?.status && `status ${problem.status}`, problem?.requestId && `request ${problem.requestId}`];
    get("problem-facts").textContent = facts.filter(Boolean).join(" · ");
    const refused = problem !== null && REFUSED.includes(problem.status);
    get("key-form").hidden = problem?.status !== 401;
    get("another").hidden = !refused;
    get("try-again").hidden = refused || problem?.status === 401 || !canRepeat();
    // Screen readers read out the alert itself.
    get("status").textContent = "";
  });
  // Buttons that hide themselves would leave the keyboard's focus nowhere.
  const act = (/** @type {string} */ id, /** @type {() => void} */ action) =>
    get(id).addEventListener("click", () => {
      action();
      get("stage").focus({ preventScroll: true });
    });
  act("try-again", repeat);
  act("dismiss", () => state.set({ problem: null }));
  act("cancel", cancel);
  const field = /** @type {HTMLInputElement} */ (get("key"));
  field.addEventListener("input", () => field.setCustomValidity(""));
  get("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = field.value.trim();
    if (!/^[!-~]*$/.test(value)) {
      field.setCustomValidity("A key has only letters, digits and signs of ASCII, without spaces.");
      field.reportValidity();
    } else if (value) {
      key.set(value);
      field.value = "";
      state.set({ problem: null });
      enter();
      get("stage").focus({ preventScroll: true });
    }
  });
  get("forget-key").addEventListener("click", () => {
    key.forget();
    get("forget-key").hidden = true;
    state.set({ problem: null });
  });
}
