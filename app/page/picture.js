// A file → pixels to show, with smaller copies so that large photos are drawn quickly when they are scaled down.

/** What is looked at. Where the browser cannot read a file there are no pixels, only the size that was answered. */
export class Picture {
  /**
   * @param {string} name
   * @param {Blob} file
   * @param {number} width
   * @param {number} height
   * @param {ImageBitmap[]} levels each half as long as the one before; none where there are no pixels
   */
  constructor(name, file, width, height, levels) {
    this.name = name;
    this.file = file;
    this.width = width;
    this.height = height;
    this.levels = levels;
  }

  /**
   * The same pixels, stretched to the size that the service saw: not every browser turns every format upright.
   * @param {{width: number, height: number}} size
   */
  fitting({ width, height }) {
    const same = width === this.width && height === this.height;
    return same ? this : new Picture(this.name, this.file, width, height, this.levels);
  }

  /** Free the pixels at once; a dozen photos of 12 megapixels are half a gigabyte. */
  close() {
    for (const level of this.levels) {
      level.close();
    }
    this.levels = [];
  }

  /**
   * Draw it where a view has it.
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

const SMALLEST = 1024; // no copies are made of what is shorter

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Picture | null>} null where the browser cannot read the file; TIFF is an example
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
    // No memory for smaller copies: it is drawn all the same, only slower.
  }
  return new Picture(name, file, levels[0].width, levels[0].height, levels);
}
