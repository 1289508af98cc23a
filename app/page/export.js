// Files to save: the picture with its instances at full size, and the instances as a COCO file.

import { drawLabels } from "./labels.js";
import { breathe } from "./pace.js";
import { Layer } from "./painter.js";
import { drawSkeletons } from "./skeleton.js";
import { took } from "./timeline.js";

/**
 * @typedef {import("./answer.js").Instance} Instance
 * @typedef {import("./picture.js").Picture} Picture
 */

// The shorter side of the picture in line widths and in font sizes, as in the overlay that the service draws.
const LINES_PER_SIDE = 300;
// Without this limit the lines of a large picture would hide its small objects.
const LINES_PER_OBJECT = 8;
const LETTERS_PER_SIDE = 40;
const SMALLEST_LETTERS = 9;
// Pixels that are painted at once: a large picture is never copied as a whole, and the page stays responsive.
const BAND_PIXELS = 1 << 20;

/**
 * The picture at full size with instances drawn on it, band by band.
 * @param {Picture} picture
 * @param {Instance[]} instances
 * @param {{opacity: number, labels: boolean, model: import("./service.js").Model | null}} style
 * @returns {Promise<Blob>}
 * @throws {Error} where the browser has no memory for it
 */
export async function png(picture, instances, { opacity, labels, model }) {
  const { width, height } = picture;
  const rows = Math.min(height, Math.max(1, Math.floor(BAND_PIXELS / width)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const band = Object.assign(document.createElement("canvas"), { width, height: rows });
  const [below, above] = [canvas, band].map((one) => one.getContext("2d", { willReadFrequently: true }));
  if (!below || !above) {
    throw new Error("no canvas");
  }
  const started = performance.now();
  const view = { scale: 1, x: 0, y: 0 };
  const side = Math.min(width, height);
  const layer = new Layer(width, rows);
  const line = Math.max(1, Math.round(side / LINES_PER_SIDE));
  picture.draw(below, view);
  for (let top = 0; top < height; top += rows) {
    layer.paint(instances, { ...view, y: -top }, { opacity, line, linesPerObject: LINES_PER_OBJECT });
    // On a canvas of its own: putImageData replaces pixels and does not blend them.
    above.putImageData(layer.image, 0, 0);
    below.drawImage(band, 0, top);
    await breathe();
  }
  drawSkeletons(below, instances, view, line, model);
  if (labels) {
    drawLabels(below, instances, view, Math.max(SMALLEST_LETTERS, Math.round(side / LETTERS_PER_SIDE)));
  }
  took("export", started, instances.length);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no PNG"))), "image/png");
  });
}

/**
 * A COCO dataset of one image, for `pycocotools.coco.COCO` and labelling tools.
 * @param {Picture} picture
 * @param {Instance[]} instances
 * @param {import("./service.js").Model["categories"]} categories
 */
export function coco(picture, instances, categories) {
  return {
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories,
    annotations: instances.map(({ record }, index) => ({
      id: index + 1,
      image_id: 1,
      category_id: record.category_id,
      bbox: record.bbox,
      area: record.area,
      segmentation: record.segmentation,
      iscrowd: 0,
      score: record.score,
      ...labelKeypoints(record),
    })),
  };
}

/**
 * The keypoints of a record in the form of a label: all of them visible (2). Nothing where it has none.
 * @param {import("./answer.js").InstanceRecord} record
 */
function labelKeypoints({ keypoints }) {
  if (!keypoints) {
    return {};
  }
  return { keypoints: keypoints.map((value, i) => (i % 3 === 2 ? 2 : value)), num_keypoints: keypoints.length / 3 };
}

/**
 * Save a file with the browser.
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // Some browsers read the link after the click.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A file name without its folder and suffix. @param {string} name */
export function stem(name) {
  return (name.split(/[\\/]/).pop() ?? "").replace(/\.[^.]*$/, "") || "image";
}
