// Paints masks on a canvas at any scale, tinted inside and outlined along the edge. The work grows with the visible
// area of the boxes, not with instances × image.

/**
 * @typedef {import("./answer.js").Instance} Instance
 * @typedef {import("./rle.js").Mask} Mask
 *
 * @typedef {object} View where the image lies on a canvas: pixel (u, v) of the image is at (x + u·scale, y + v·scale)
 * @property {number} scale
 * @property {number} x
 * @property {number} y
 *
 * @typedef {object} Style
 * @property {number} opacity of the inside, 0 to 1
 * @property {number} line width of the outline in canvas pixels
 * @property {boolean} [smooth] whether to round off the steps of enlarged masks
 * @property {number} [linesPerObject] narrows the outline of a small object: its shorter side in outline widths
 */

const OPAQUE = 255;
const EDGE = 1;
const INSIDE = 2;
// How far corners are rounded, in image pixels; lines that are one pixel wide are kept.
const ROUNDING = 0.75;

/** Canvas pixels, composed in memory and drawn at once. */
export class Layer {
  /**
   * @param {number} width
   * @param {number} height
   */
  constructor(width, height) {
    this.image = new ImageData(width, height);
    // Alpha, blue, green, red from the highest byte down.
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  /**
   * Paint only these instances, the largest first, so that small ones stay visible.
   * @param {Instance[]} instances
   * @param {View} view
   * @param {Style} style
   */
  paint(instances, view, style) {
    this.pixels.fill(0);
    const order = [...instances].sort((a, b) => b.mask.area - a.mask.area);
    for (const { mask, colour, boxed } of order) {
      const side = Math.min(mask.right - mask.left, mask.bottom - mask.top) * view.scale;
      const most = style.linesPerObject ? Math.max(1, Math.floor(side / style.linesPerObject)) : style.line;
      const line = Math.min(style.line, most);
      const cut = rasterise(mask, view, this.image.width, this.image.height, line, style.smooth);
      if (cut) {
        blend(this.pixels, this.image.width, cut, colour, boxed ? 0 : Math.round(style.opacity * OPAQUE));
      }
    }
    divide(this.pixels);
  }
}

/**
 * Blend a cut over the pixels, in premultiplied alpha (Porter and Duff, 1984). All four channels below then have the
 * same weight, and one multiplication handles two of them.
 * @param {Uint32Array} pixels
 * @param {number} canvasWidth
 * @param {Cut} cut
 * @param {import("./palette.js").Colour} colour
 * @param {number} tint alpha of the inside, 0 to 255
 */
function blend(pixels, canvasWidth, { left, top, width, height, margin, rows, kinds }, [red, green, blue], tint) {
  const line = ((OPAQUE << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const part = (/** @type {number} */ channel) => Math.round((channel * tint) / OPAQUE);
  const fill = ((tint << 24) | (part(blue) << 16) | (part(green) << 8) | part(red)) >>> 0;
  // The weight of the pixel below, in 256ths, so that a shift divides.
  const rest = Math.floor(((OPAQUE - tint) * 256) / OPAQUE);
  for (let row = 0; row < height; row++) {
    let place = (top + row) * canvasWidth + left;
    let source = margin * rows + margin + row;
    for (let column = 0; column < width; column++, place++, source += rows) {
      const kind = kinds[source];
      if (kind === INSIDE && tint) {
        const below = pixels[place];
        if (below === 0) {
          pixels[place] = fill;
        } else {
          const even = (((below & 0xff00ff) * rest) >>> 8) & 0xff00ff;
          const odd = (((below >>> 8) & 0xff00ff) * rest) & 0xff00ff00;
          pixels[place] = fill + even + odd;
        }
      } else if (kind === EDGE) {
        pixels[place] = line;
      }
    }
  }
}

/**
 * Convert premultiplied colours to those of a canvas.
 * @param {Uint32Array} pixels
 */
function divide(pixels) {
  for (let i = 0; i < pixels.length; i++) {
    const pixel = pixels[i];
    const alpha = pixel >>> 24;
    if (alpha !== 0 && alpha !== OPAQUE) {
      const factor = OPAQUE / alpha;
      const red = Math.min(OPAQUE, (pixel & 255) * factor + 0.5);
      const green = Math.min(OPAQUE, ((pixel >>> 8) & 255) * factor + 0.5);
      const blue = Math.min(OPAQUE, ((pixel >>> 16) & 255) * factor + 0.5);
      pixels[i] = (alpha << 24) | (blue << 16) | (green << 8) | red;
    }
  }
}

/**
 * @typedef {object} Cut the part of one mask that a canvas shows
 * @property {number} left
 * @property {number} top
 * @property {number} width
 * @property {number} height
 * @property {number} margin columns and rows of `kinds` around the part
 * @property {number} rows of `kinds`: a multiple of four, because four pixels are handled at once
 * @property {Uint8Array} kinds column after column: 0 outside the mask, 1 at its edge, 2 inside
 */

/**
 * A mask at a scale; each canvas pixel has the value of the image pixel under its centre.
 * @param {Mask} mask
 * @param {View} view
 * @param {number} canvasWidth
 * @param {number} canvasHeight
 * @param {number} line width of the outline, which lies inside the mask
 * @param {boolean} smooth whether to round off the steps that enlarged pixels make
 * @returns {Cut | null} null if none of it is on the canvas
 */
export function rasterise(mask, { scale, x, y }, canvasWidth, canvasHeight, line, smooth = false) {
  // The first canvas pixel whose centre is not before the edge of an image pixel.
  const column = (/** @type {number} */ u) => Math.ceil(x + u * scale - 0.5);
  const row = (/** @type {number} */ v) => Math.ceil(y + v * scale - 0.5);
  const left = Math.max(0, column(mask.left));
  const top = Math.max(0, row(mask.top));
  const width = Math.min(canvasWidth, column(mask.right)) - left;
  const height = Math.min(canvasHeight, row(mask.bottom)) - top;
  if (width <= 0 || height <= 0) {
    return null;
  }
  const radius = smooth && scale > 1 ? Math.round(scale * ROUNDING) : 0;
  const margin = line + radius;
  const columns = width + 2 * margin;
  const rows = Math.ceil((height + 2 * margin) / 4) * 4;
  const kinds = new Uint8Array(columns * rows);
  let filled = 0;
  for (let i = 0; i < columns; i++) {
    const u = Math.floor((left - margin + i + 0.5 - x) / scale) - mask.left;
    if (u < 0 || u >= mask.right - mask.left) {
      continue;
    }
    const first = i * rows;
    for (let strip = mask.offsets[u]; strip < mask.offsets[u + 1]; strip++) {
      const begin = Math.max(0, row(mask.tops[strip]) - top + margin);
      const end = Math.min(rows, row(mask.bottoms[strip]) - top + margin);
      if (begin < end) {
        kinds.fill(1, first + begin, first + end);
        filled += end - begin;
      }
    }
  }
  if (filled === kinds.length) {
    // The canvas lies within the mask, far from its edge.
    kinds.fill(INSIDE);
    return { left, top, width, height, margin, rows, kinds };
  }
  if (radius) {
    round(kinds, columns, rows, radius);
  }
  const fours = new Uint32Array(kinds.buffer);
  const inside = new Uint32Array(erode(kinds, rows, line).buffer);
  for (let i = 0; i < fours.length; i++) {
    fours[i] += inside[i];
  }
  return { left, top, width, height, margin, rows, kinds };
}

/**
 * Set each pixel to 1 if at least half of the square around it is 1, else to 0.
 * @param {Uint8Array} bitmap column after column; changed in place
 * @param {number} columns
 * @param {number} rows
 * @param {number} radius half the side of the square
 */
function round(bitmap, columns, rows, radius) {
  const window = 2 * radius + 1;
  // Sums of the window in the column.
  const sums = new Uint16Array(bitmap.length);
  for (let first = 0; first < bitmap.length; first += rows) {
    let sum = 0;
    for (let row = 0; row < rows + radius; row++) {
      sum += row < rows ? bitmap[first + row] : 0;
      sum -= row >= window ? bitmap[first + row - window] : 0;
      if (row >= radius) {
        sums[first + row - radius] = sum;
      }
    }
  }
  const half = (window * window) / 2;
  // Sums of the windows in the columns around this one.
  const across = new Uint32Array(rows);
  for (let column = 0; column < columns + radius; column++) {
    const entering = column * rows;
    const leaving = (column - window) * rows;
    const middle = (column - radius) * rows;
    for (let row = 0; row < rows; row++) {
      across[row] += (column < columns ? sums[entering + row] : 0) - (column >= window ? sums[leaving + row] : 0);
      if (column >= radius) {
        bitmap[middle + row] = across[row] > half ? 1 : 0;
      }
    }
  }
}

/**
 * Erode: keep the pixels that have `distance` foreground pixels on every side.
 * @param {Uint8Array} bitmap column after column
 * @param {number} rows
 * @param {number} distance
 */
function erode(bitmap, rows, distance) {
  const kept = new Uint8Array(bitmap.length);
  for (let first = 0; first < bitmap.length; first += rows) {
    // Only this column: a search in the whole bitmap would go on past the column's end.
    const column = bitmap.subarray(first, first + rows);
    let begin = column.indexOf(1);
    while (begin >= 0) {
      const found = column.indexOf(0, begin);
      const end = found < 0 ? rows : found;
      if (begin + distance < end - distance) {
        kept.fill(1, first + begin + distance, first + end - distance);
      }
      begin = end < rows ? column.indexOf(1, end) : -1;
    }
  }
  narrow(kept, rows, distance);
  return kept;
}

/**
 * Keep the pixels that have `distance` foreground columns on either side. The window doubles with each step.
 * @param {Uint8Array} bitmap column after column, a buffer of its own, changed in place
 * @param {number} rows a multiple of four
 * @param {number} distance
 */
function narrow(bitmap, rows, distance) {
  const window = 2 * distance + 1;
  const fours = new Uint32Array(bitmap.buffer);
  for (let size = 1; size < window; ) {
    const step = Math.min(size, window - size);
    const ahead = (step * rows) / 4;
    const last = fours.length - ahead;
    for (let i = 0; i < last; i++) {
      fours[i] &= fours[i + ahead];
    }
    size += step;
  }
  // Each value now describes the columns that begin at it; move it to their middle.
  bitmap.copyWithin(distance * rows, 0, bitmap.length - distance * rows);
}
