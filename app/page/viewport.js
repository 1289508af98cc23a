// Zoom and pan: the part of the picture that the stage shows, in CSS pixels. stage.js handles the events.

/** @typedef {import("./painter.js").View} View */

// Most CSS pixels per image pixel.
const MOST = 40;
// CSS pixels per image pixel to which small pictures are enlarged at first.
const LARGEST_FIT = 3;

export class Viewport {
  constructor() {
    // The size of the stage.
    this.width = 1;
    this.height = 1;
    this.imageWidth = 1;
    this.imageHeight = 1;
    /** @type {View} */ this.view = { scale: 1, x: 0, y: 0 };
    this.fitted = true;
  }

  /** The scale at which the whole picture just fits. */
  get fitScale() {
    return Math.min(this.width / this.imageWidth, this.height / this.imageHeight, LARGEST_FIT);
  }

  /**
   * @param {number} width
   * @param {number} height
   */
  resize(width, height) {
    this.width = width;
    this.height = height;
    this.settle();
  }

  /**
   * Show a picture of this size; if the size has not changed, keep the view.
   * @param {number} width
   * @param {number} height
   */
  open(width, height) {
    if (width !== this.imageWidth || height !== this.imageHeight) {
      this.imageWidth = width;
      this.imageHeight = height;
      this.fitted = true;
    }
    this.settle();
  }

  fit() {
    this.fitted = true;
    this.settle();
  }

  /**
   * @param {number} factor
   * @param {number} x the point that stays in its place
   * @param {number} y
   */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const { scale } = this.view;
    const wanted = Math.min(Math.max(scale * factor, this.fitScale), Math.max(MOST, this.fitScale));
    this.fitted = wanted <= this.fitScale * 1.0001;
    this.view = {
      scale: wanted,
      x: x - ((x - this.view.x) * wanted) / scale,
      y: y - ((y - this.view.y) * wanted) / scale,
    };
    this.settle();
  }

  /**
   * @param {number} dx
   * @param {number} dy
   */
  pan(dx, dy) {
    this.view = { ...this.view, x: this.view.x + dx, y: this.view.y + dy };
    this.settle();
  }

  /** Keep the picture on the stage: centred if it is smaller, without gaps at the edges if it is larger. */
  settle() {
    // The stage may have grown.
    this.fitted ||= this.view.scale <= this.fitScale;
    const scale = this.fitted ? this.fitScale : Math.max(this.view.scale, this.fitScale);
    const along = (/** @type {number} */ start, /** @type {number} */ stage, /** @type {number} */ image) =>
      image <= stage ? (stage - image) / 2 : Math.min(0, Math.max(start, stage - image));
    this.view = {
      scale,
      x: along(this.view.x, this.width, this.imageWidth * scale),
      y: along(this.view.y, this.height, this.imageHeight * scale),
    };
  }

  /**
   * The image coordinates of a point of the stage.
   * @param {number} x
   * @param {number} y
   */
  toImage(x, y) {
    return { x: (x - this.view.x) / this.view.scale, y: (y - this.view.y) / this.view.scale };
  }
}
