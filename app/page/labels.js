// Captions on chips at the boxes, placed so that they overlap least, as model/images/overlay.py does.

import { css, inkOn } from "./palette.js";

/**
 * @typedef {import("./answer.js").Instance} Instance
 * @typedef {import("./painter.js").View} View
 * @typedef {{left: number, top: number, right: number, bottom: number}} Box
 */

// Share of the picture that chips may cover. Where all of them would cover more, those that are larger than their
// instance are left out first, and then those of the lowest scores.
const COVERED = 0.4;
// Letters that are shown of a long category.
const LONGEST = 64;
const FONT = "Inter, system-ui, sans-serif";

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Instance[]} instances by descending score: the first get the best places
 * @param {View} view
 * @param {number} size of the letters, canvas pixels
 */
export function drawLabels(context, instances, view, size) {
  const { width, height } = context.canvas;
  const pad = Math.max(1, Math.round(size / 4));
  const chipHeight = Math.round(size * 1.45);
  /** @type {Box[]} */ const placed = [];
  let room = width * height * COVERED;
  /** @type {boolean | undefined} */ let crowded;
  context.font = `600 ${size}px ${FONT}`;
  context.textBaseline = "middle";
  for (const instance of instances) {
    const box = boxOn(instance, view);
    if (box.right < 0 || box.bottom < 0 || box.left > width || box.top > height) {
      continue;
    }
    // A chip has four digits at least, so it is wider than high. Most of thousands need not be measured.
    if (crowded && chipHeight ** 2 > (box.right - box.left) * (box.bottom - box.top)) {
      continue;
    }
    const text = fit(context, instance, width - 2 * pad);
    const chipWidth = Math.ceil(context.measureText(text).width) + 2 * pad;
    if (text === "" || chipHeight > height) {
      continue;
    }
    // Estimated as if all chips were as large as the first.
    crowded ??= instances.length * chipWidth * chipHeight > room;
    if (crowded && chipWidth * chipHeight > (box.right - box.left) * (box.bottom - box.top)) {
      continue;
    }
    room -= chipWidth * chipHeight;
    if (room < 0) {
      return;
    }
    const { x, y } = place(box, chipWidth, chipHeight, placed, width, height);
    placed.push({ left: x, top: y, right: x + chipWidth, bottom: y + chipHeight });
    context.fillStyle = css(instance.colour);
    context.beginPath();
    context.roundRect(x, y, chipWidth, chipHeight, pad);
    context.fill();
    context.fillStyle = inkOn(instance.colour);
    context.fillText(text, x + pad, y + chipHeight / 2 + size * 0.05);
  }
}

/**
 * @param {Instance} instance
 * @param {View} view
 * @returns {Box}
 */
function boxOn({ record: { bbox } }, { scale, x, y }) {
  const [left, top, width, height] = bbox;
  return {
    left: x + left * scale,
    top: y + top * scale,
    right: x + (left + width) * scale,
    bottom: y + (top + height) * scale,
  };
}

/**
 * The caption, with its category shortened until it fits, down to the score alone or nothing.
 * @param {CanvasRenderingContext2D} context
 * @param {Instance} instance
 * @param {number} width canvas pixels
 */
function fit(context, { caption, category, score }, width) {
  const fits = (/** @type {string} */ text) => context.measureText(text).width <= width;
  if (fits(caption)) {
    return caption;
  }
  const letters = [...category].slice(0, LONGEST);
  while (letters.pop() && letters.length) {
    const text = `${letters.join("").trimEnd()}… ${score.toFixed(2)}`;
    if (fits(text)) {
      return text;
    }
  }
  return fits(score.toFixed(2)) ? score.toFixed(2) : "";
}

/**
 * The place where a chip covers no other, or else the least of them.
 * @param {Box} box
 * @param {number} width
 * @param {number} height
 * @param {Box[]} placed
 * @param {number} canvasWidth
 * @param {number} canvasHeight
 */
function place({ left, top, right, bottom }, width, height, placed, canvasWidth, canvasHeight) {
  const rows = [top - height, top, bottom, bottom - height, (top + bottom - height) / 2];
  for (const lines of [-2, 1, -3, 2, -4, 3]) {
    rows.push(top + lines * height);
  }
  const columns = [left, right - width, (left + right - width) / 2];
  let best = { x: 0, y: 0, covered: Infinity };
  for (const row of rows) {
    for (const column of columns) {
      const x = Math.round(Math.min(Math.max(column, 0), canvasWidth - width));
      const y = Math.round(Math.min(Math.max(row, 0), canvasHeight - height));
      let covered = 0;
      for (const other of placed) {
        const across = Math.min(x + width, other.right) - Math.max(x, other.left);
        const down = Math.min(y + height, other.bottom) - Math.max(y, other.top);
        covered += Math.max(0, across) * Math.max(0, down);
      }
      if (covered === 0) {
        return { x, y };
      }
      if (covered < best.covered) {
        best = { x, y, covered };
      }
    }
  }
  return best;
}
