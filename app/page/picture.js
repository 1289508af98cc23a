// Reads a file into pixels to show, with smaller copies that make scaled-down large photos quick to draw.

/** The picture on the stage. A file that the browser cannot read has no pixels, only the size that the service found. */
export class Picture {
  /**
   * @param {string} name
   * @param {Blob} file
   * @param {number} width
   * @param {number} height
   * @param {ImageBitmap[]} levels each half as wide as the one before; none if there are no pixels
   */
  constructor(name, file, width, height, levels) {
    this.name = name;
    this.file = file;
    this.width = width;
    this.height = height;
    this.levels = levels;
  }

  /**
   * The same pixels, stretched to the size that the service found: browsers do not turn every format upright.
   * @param {{width: number, height: number}} size
   */
  fitting({ width, height }) {
    const same = width === this.width && height === this.height;
    return same ? this : new Picture(this.name, this.file, width, height, this.levels);
  }

  /** Free the pixels now: a dozen photos of 12 megapixels take half a gigabyte. */
  close() {
    for (const level of this.levels) {
      level.close();
    }
    this.levels = [];
  }

  /**
   * Draw it at the place and scale of a view.
   * @param {CanvasRenderingContext2D} context
   * @param {import("./painter.js").View} view
   * @param {boolean} smooth
   */
  draw(context, { scale, x, y }, smooth = true) {
    const wanted = this.width * scale;
    const level = this.levels.findLast((bitmap) => bitmap.width >= wanted) ?? this.levels[0];
    const place = [x, y, wanted, this.height * scale];
    if (!level) {
      context.fillStyle = "#808080";
      context.fillRect(place[0], place[1], place[2], place[3]);
      return;
    }
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(level, place[0], place[1], place[2], place[3]);
  }
}

const SMALLEST = 1024; // pixels; copies are not made narrower

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Picture | null>} null if the browser cannot read the file, such as a TIFF
 */
export async function read(file, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // upright by its EXIF orientation, as the service sees it
  } catch {
    return null;
  }
  const levels = [bitmap];
  try {
    while (bitmap.width > 2 * SMALLEST && bitmap.height > 1) {
      bitmap = await createImageBitmap(bitmap, {
        resizeWidth: Math.ceil(bitmap.width / 2),
        resizeHeight: Math.ceil(bitmap.height / 2),
        resizeQuality: "medium",
      });
      levels.push(bitmap);
    }
  } catch {
    // There is no memory for smaller copies; the picture is drawn more slowly.
  }
  return new Picture(name, file, levels[0].width, levels[0].height, levels);
}
