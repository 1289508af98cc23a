// Reads a file into pixels to show: in pieces, each with smaller copies of itself. What a drawing takes follows the
// part of a picture that is seen, not the size of the picture.

import { breathe } from "./pace.js";

/**
 * @typedef {object} Piece
 * @property {number} left pixels of the file's picture
 * @property {number} top
 * @property {number} width
 * @property {number} height
 * @property {ImageBitmap[]} levels each half as wide and as high as the one before
 */

/** The picture on the stage. A file that the browser cannot read has no pixels, only the size that the service found. */
export class Picture {
  /**
   * @param {string} name
   * @param {Blob} file
   * @param {number} width
   * @param {number} height
   * @param {Piece[]} pieces row by row; none if there are no pixels
   */
  constructor(name, file, width, height, pieces) {
    this.name = name;
    this.file = file;
    this.width = width;
    this.height = height;
    this.pieces = pieces;
  }

  /**
   * The same pixels, stretched to the size that the service found: browsers do not turn every format upright.
   * @param {{width: number, height: number}} size
   */
  fitting({ width, height }) {
    const same = width === this.width && height === this.height;
    return same ? this : new Picture(this.name, this.file, width, height, this.pieces);
  }

  /** Free the pixels now: a dozen photos of 12 megapixels take half a gigabyte. */
  close() {
    for (const level of this.pieces.flatMap(({ levels }) => levels)) {
      level.close();
    }
    this.pieces = [];
  }

  /**
   * Draw what the canvas shows of it, at the place and scale of a view.
   * @param {CanvasRenderingContext2D} context
   * @param {import("./painter.js").View} view
   * @param {boolean} smooth
   */
  draw(context, { scale, x, y }, smooth = true) {
    const last = this.pieces.at(-1);
    if (!last) {
      context.fillStyle = "#808080";
      context.fillRect(x, y, this.width * scale, this.height * scale);
      return;
    }
    context.imageSmoothingEnabled = smooth;
    // "high" takes 100 ms for a large piece.
    context.imageSmoothingQuality = this.pieces.length > 1 ? "low" : "high";
    // Canvas pixels for each pixel of the copy.
    const across = (this.width * scale) / (last.left + last.width);
    const down = (this.height * scale) / (last.top + last.height);
    const { width, height } = context.canvas;
    for (const piece of this.pieces) {
      const [left, right] = ends(piece.left, piece.width, last.left + last.width, x, across);
      const [top, bottom] = ends(piece.top, piece.height, last.top + last.height, y, down);
      if (right > 0 && bottom > 0 && left < width && top < height) {
        const level = piece.levels.findLast((bitmap) => bitmap.width >= right - left) ?? piece.levels[0];
        context.drawImage(level, left, top, right - left, bottom - top);
      }
    }
  }
}

/**
 * Where a piece begins and ends on the canvas. Neighbours meet between two of its pixels: one that both covered in part
 * would let the ground shine through.
 * @param {number} first pixel of the piece, along one side
 * @param {number} length
 * @param {number} whole length of the picture
 * @param {number} origin of the picture on the canvas
 * @param {number} scale
 */
function ends(first, length, whole, origin, scale) {
  const place = (/** @type {number} */ pixel) => {
    const exact = origin + pixel * scale;
    return pixel === 0 || pixel === whole ? exact : Math.round(exact);
  };
  return [place(first), place(first + length)];
}

// Side of a piece in pixels: 16 MB, which the browser copies at once.
const PIECE = 2048;
// Width in pixels below which no more copies of a picture are made.
const SMALLEST = 1024;

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Picture | null>} null if the browser cannot read the file, such as a TIFF
 */
export async function read(file, name) {
  let bitmap;
  try {
    // Upright by its EXIF orientation, as the service sees it.
    bitmap = await createImageBitmap(file);
  } catch {
    return null;
  }
  const { width, height } = bitmap;
  const picture = new Picture(name, file, width, height, []);
  try {
    await cut(bitmap, picture.pieces);
  } catch {
    // There is no memory for pieces; the picture is drawn more slowly.
    picture.close();
    picture.pieces = [{ left: 0, top: 0, width, height, levels: [bitmap] }];
  }
  return picture;
}

/**
 * Cut a picture into pieces. The browser does each step at once, so they are small, and the page responds between them.
 * @param {ImageBitmap} whole is closed at the end, unless it is the only piece
 * @param {Piece[]} pieces gets them
 */
async function cut(whole, pieces) {
  const { width, height } = whole;
  const single = Math.max(width, height) <= PIECE;
  for (let top = 0; top < height; top += PIECE) {
    for (let left = 0; left < width; left += PIECE) {
      const size = { width: Math.min(PIECE, width - left), height: Math.min(PIECE, height - top) };
      const own = single ? whole : await createImageBitmap(whole, left, top, size.width, size.height);
      const piece = { left, top, ...size, levels: [own] };
      pieces.push(piece);
      for (let wide = Math.max(width, height); wide > 2 * SMALLEST; wide /= 2) {
        await breathe();
        piece.levels.push(await halve(piece.levels[piece.levels.length - 1]));
      }
      await breathe();
    }
  }
  if (!single) {
    whole.close();
  }
}

/** @param {ImageBitmap} bitmap */
function halve(bitmap) {
  return createImageBitmap(bitmap, {
    resizeWidth: Math.ceil(bitmap.width / 2),
    resizeHeight: Math.ceil(bitmap.height / 2),
    // The mean of four pixels, which is all that half the size needs.
    resizeQuality: "low",
  });
}
