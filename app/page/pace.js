// Long work in short steps, between which the page answers its user.

// Milliseconds of work in a step: with a frame's own work it stays below what a hand feels.
const STEP = 12;

/** Let the browser do what waits: input, a frame, other steps. @returns {Promise<void>} */
export function breathe() {
  return new Promise((resolve) => {
    // A timer would take 4 ms from the fifth one on.
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** Tells when a step has taken long enough. */
export class Pace {
  constructor() {
    this.end = 0;
    this.begin();
  }

  /** A step begins. */
  begin() {
    this.end = performance.now() + STEP;
  }

  get isOver() {
    return performance.now() >= this.end;
  }
}
