// Keypoints of instances, and lines between those that belong together, as model/images/skeleton.py draws them.

import { css } from "./palette.js";

/**
 * @typedef {import("./answer.js").Instance} Instance
 * @typedef {import("./painter.js").View} View
 * @typedef {import("./service.js").Model} Model
 */

// Radius of a dot, in outline widths.
const RADIUS = 2;
// Width of a line, in outline widths.
const LIMB = 2;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Instance[]} instances
 * @param {View} view
 * @param {number} line width of an outline, canvas pixels
 * @param {Model | null} model which keypoints are shown, and which are joined
 */
export function drawSkeletons(context, instances, view, line, model) {
  const from = model?.keypoints?.shown_from ?? 0;
  context.lineCap = "round";
  for (const { keypoints, colour, categoryId } of instances) {
    const places = keypoints.map(({ x, y, score }) =>
      score >= from ? { x: view.x + x * view.scale, y: view.y + y * view.scale } : null,
    );
    const category = model?.categories.find(({ id }) => id === categoryId);
    context.strokeStyle = css(colour);
    context.lineWidth = LIMB * line;
    for (const [first, second] of category?.skeleton ?? []) {
      // COCO counts keypoints from 1.
      const [a, b] = [places[first - 1], places[second - 1]];
      if (a && b) {
        context.beginPath();
        context.moveTo(a.x, a.y);
        context.lineTo(b.x, b.y);
        context.stroke();
      }
    }
    context.fillStyle = css(colour);
    context.strokeStyle = "white";
    context.lineWidth = line / 2;
    for (const place of places) {
      if (place) {
        context.beginPath();
        context.arc(place.x, place.y, RADIUS * line, 0, 2 * Math.PI);
        context.fill();
        context.stroke();
      }
    }
  }
}
