// Turns mouse, touch and keys on the stage into zoom, pan, hover and pin.

/**
 * @typedef {import("./stage.js").Stage} Stage
 *
 * @typedef {object} Actions on the instances
 * @property {(x: number, y: number) => void} hover the pointer is at a pixel of the image
 * @property {() => void} leave the pointer has left the image
 * @property {(x: number, y: number) => void} pin a pixel was clicked
 * @property {(step: 1 | -1) => void} next highlights the next or the previous instance
 * @property {() => void} keep pins what is highlighted
 * @property {() => void} release unpins
 */

// CSS pixels that the pointer may move during a click.
const STILL = 5;
// CSS pixels that an arrow key pans.
const STEP = 60;
// Factor by which one key press zooms.
const ZOOM = 1.4;

/**
 * @param {Stage} stage
 * @param {Actions} actions
 */
export function listen(stage, actions) {
  const { element } = stage;
  pointers(stage, actions);
  element.addEventListener(
    "wheel",
    (event) => {
      // The wheel scrolls the page unless the stage has the focus or Ctrl is pressed; browsers report a pinch on a
      // touch pad as the wheel with Ctrl.
      if (stage.scene.picture && (event.ctrlKey || event.metaKey || document.activeElement === element)) {
        event.preventDefault();
        const { x, y } = placeOn(element, event);
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
        const speed = event.ctrlKey ? 0.01 : 0.002;
        stage.move((viewport) => viewport.zoom(Math.exp(-event.deltaY * lines * speed), x, y));
      }
    },
    { passive: false },
  );
  /** @type {Record<string, () => void>} */
  const keys = {
    "+": () => stage.move((viewport) => viewport.zoom(ZOOM)),
    "=": () => stage.move((viewport) => viewport.zoom(ZOOM)),
    "-": () => stage.move((viewport) => viewport.zoom(1 / ZOOM)),
    0: () => stage.move((viewport) => viewport.fit()),
    ArrowLeft: () => stage.move((viewport) => viewport.pan(STEP, 0)),
    ArrowRight: () => stage.move((viewport) => viewport.pan(-STEP, 0)),
    ArrowUp: () => stage.move((viewport) => viewport.pan(0, STEP)),
    ArrowDown: () => stage.move((viewport) => viewport.pan(0, -STEP)),
    n: () => actions.next(1),
    p: () => actions.next(-1),
    Enter: actions.keep,
    " ": actions.keep,
    Escape: actions.release,
  };
  element.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (act && stage.scene.picture && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      act();
    }
  });
}

/**
 * One pointer hovers, drags or clicks; two pointers pinch.
 * @param {Stage} stage
 * @param {Actions} actions
 */
function pointers(stage, actions) {
  const { element } = stage;
  /** @type {Map<number, {x: number, y: number}>} */ const down = new Map();
  let wandered = 0;

  element.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && stage.scene.picture) {
      // A gesture with two fingers is never a click.
      wandered = down.size ? Infinity : 0;
      down.set(event.pointerId, placeOn(element, event));
      element.setPointerCapture(event.pointerId);
    }
  });

  element.addEventListener("pointermove", (event) => {
    const now = placeOn(element, event);
    const before = down.get(event.pointerId);
    if (!before) {
      if (event.pointerType !== "touch") {
        const { x, y } = stage.viewport.toImage(now.x, now.y);
        actions.hover(x, y);
      }
      return;
    }
    const [other] = [...down].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    wandered += Math.hypot(now.x - before.x, now.y - before.y);
    if (other) {
      const spread = distance(now, other) / Math.max(1, distance(before, other));
      stage.move((viewport) => viewport.zoom(spread, (now.x + other.x) / 2, (now.y + other.y) / 2));
      stage.move((viewport) => viewport.pan((now.x - before.x) / 2, (now.y - before.y) / 2));
    } else if (wandered > STILL) {
      element.classList.add("dragged");
      stage.move((viewport) => viewport.pan(now.x - before.x, now.y - before.y));
    }
    if (other || wandered > STILL) {
      down.set(event.pointerId, now);
    }
  });

  const up = (/** @type {PointerEvent} */ event) => {
    const place = down.get(event.pointerId);
    down.delete(event.pointerId);
    element.classList.remove("dragged");
    if (place && event.type === "pointerup" && wandered <= STILL) {
      const { x, y } = stage.viewport.toImage(place.x, place.y);
      actions.pin(x, y);
    }
  };
  element.addEventListener("pointerup", up);
  element.addEventListener("pointercancel", up);
  element.addEventListener("pointerleave", () => actions.leave());
  element.addEventListener("dblclick", (event) => {
    const { x, y } = placeOn(element, event);
    stage.move((viewport) => viewport.zoom(2, x, y));
  });
}

/**
 * @param {HTMLElement} element
 * @param {MouseEvent} event
 */
function placeOn(element, event) {
  const { left, top } = element.getBoundingClientRect();
  return { x: event.clientX - left - element.clientLeft, y: event.clientY - top - element.clientTop };
}

/**
 * @param {{x: number, y: number}} one
 * @param {{x: number, y: number}} other
 */
function distance(one, other) {
  return Math.hypot(one.x - other.x, one.y - other.y);
}
