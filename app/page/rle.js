// Decodes COCO RLE into masks to paint and to point at. The format is that of cocoapi's maskApi.c: pixels in
// column-major order, alternating runs, background first, five bits to a character.

/**
 * @typedef {{size: [number, number], counts: string | number[]}} CocoRle
 * `size` is [height, width].
 */

/**
 * The lengths of the runs in a string of compressed RLE.
 * @param {string} counts
 * @returns {number[]}
 * @throws {RangeError} if the string ends within a number or has a character that the format does not use
 */
export function decompress(counts) {
  /** @type {number[]} */ const runs = [];
  for (let place = 0; place < counts.length; ) {
    let run = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const five = counts.charCodeAt(place++) - 48;
      if (!(five >= 0 && five < 64)) {
        throw new RangeError(`no COCO RLE: character ${place} of ${counts.length}`);
      }
      run |= (five & 31) << shift;
      shift += 5;
      more = (five & 32) !== 0;
      if (!more && five & 16 && shift < 32) {
        run |= -1 << shift;
      }
    }
    // From the fourth number on, each is the difference from the number two before it.
    runs.push(runs.length > 2 ? run + runs[runs.length - 2] : run);
  }
  return runs;
}

/** One instance's mask as vertical strips, each within one column of the image. */
export class Mask {
  /**
   * @param {CocoRle} segmentation
   * @throws {RangeError} if the runs do not add up to the size
   */
  constructor({ size: [height, width], counts }) {
    this.height = height;
    this.width = width;
    const runs = typeof counts === "string" ? decompress(counts) : counts;
    /** @type {number[]} */ const columns = [];
    /** @type {number[]} */ const tops = [];
    /** @type {number[]} */ const bottoms = [];
    let position = 0;
    this.area = 0;
    this.top = height;
    this.bottom = 0;
    for (let i = 0; i < runs.length; i++) {
      const end = position + runs[i];
      if (runs[i] < 0 || end > height * width) {
        throw new RangeError("the RLE does not fit a mask of this size");
      }
      if (i % 2 === 1) {
        this.area += runs[i];
        while (position < end) {
          const column = Math.floor(position / height);
          const first = column * height;
          const bottom = Math.min(end - first, height);
          columns.push(column);
          tops.push(position - first);
          bottoms.push(bottom);
          this.top = Math.min(this.top, position - first);
          this.bottom = Math.max(this.bottom, bottom);
          position = first + bottom;
        }
      }
      position = end;
    }
    if (position !== height * width) {
      throw new RangeError("the RLE does not fit a mask of this size");
    }
    /** First and one past the last column that has foreground. */
    this.left = columns.length ? columns[0] : 0;
    this.right = columns.length ? columns[columns.length - 1] + 1 : 0;
    this.tops = Int32Array.from(tops);
    // Each is one past the last row.
    this.bottoms = Int32Array.from(bottoms);
    /** Column left + i has the strips offsets[i] to offsets[i + 1]. */
    this.offsets = new Int32Array(this.right - this.left + 1);
    for (const column of columns) {
      this.offsets[column - this.left + 1]++;
    }
    for (let i = 1; i < this.offsets.length; i++) {
      this.offsets[i] += this.offsets[i - 1];
    }
  }

  /**
   * A box as a mask, for models that have no masks.
   * @param {[number, number, number, number]} bbox x, y, width, height
   * @param {{width: number, height: number}} image
   */
  static ofBox([x, y, across, down], { width, height }) {
    const within = (/** @type {number} */ value, /** @type {number} */ most) => Math.min(Math.max(value, 0), most);
    const left = within(Math.floor(x), width - 1);
    const top = within(Math.floor(y), height - 1);
    const rows = within(Math.ceil(y + down), height) - top;
    const columns = within(Math.ceil(x + across), width) - left;
    const counts = [left * height + top];
    for (let column = 0; column < columns; column++) {
      counts.push(rows, height - rows);
    }
    counts[counts.length - 1] += (width - left - columns) * height - top;
    return new Mask({ size: [height, width], counts });
  }

  /**
   * Whether a pixel of the image belongs to the mask.
   * @param {number} x
   * @param {number} y
   */
  contains(x, y) {
    if (x < this.left || x >= this.right || y < this.top || y >= this.bottom) {
      return false;
    }
    const column = Math.floor(x) - this.left;
    for (let i = this.offsets[column]; i < this.offsets[column + 1]; i++) {
      if (y >= this.tops[i] && y < this.bottoms[i]) {
        return true;
      }
    }
    return false;
  }

  /**
   * The whole mask, as pycocotools' decode returns it.
   * @returns {Uint8Array} [width × height] 0 or 1, column after column
   */
  bitmap() {
    const pixels = new Uint8Array(this.height * this.width);
    for (let column = this.left; column < this.right; column++) {
      const first = column * this.height;
      for (let i = this.offsets[column - this.left]; i < this.offsets[column - this.left + 1]; i++) {
        pixels.fill(1, first + this.tops[i], first + this.bottoms[i]);
      }
    }
    return pixels;
  }
}
