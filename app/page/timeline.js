// Records the duration of painting in the browser's performance timeline, for developer tools and tests.

// Entries that are kept; a webcam would fill the memory in a day.
const KEPT = 500;
let kept = 0;

/**
 * @param {"masks" | "focus" | "export"} what
 * @param {number} started by performance.now()
 * @param {number} instances that were painted
 */
export function took(what, started, instances) {
  if (++kept > KEPT) {
    performance.clearMeasures();
    kept = 1;
  }
  performance.measure(`maskserve:${what}`, { start: started, detail: instances });
}
