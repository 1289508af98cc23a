// The picture with its instances, on three canvases: pixels, masks, and the highlighted instance.

import { drawLabels } from "./labels.js";
import { Layer } from "./painter.js";
import { drawSkeletons } from "./skeleton.js";
import { took } from "./timeline.js";
import { Viewport } from "./viewport.js";

/**
 * @typedef {import("./answer.js").Instance} Instance
 * @typedef {import("./picture.js").Picture} Picture
 *
 * @typedef {object} Scene
 * @property {Picture | null} picture
 * @property {Instance[]} instances
 * @property {number} opacity
 * @property {boolean} labels
 * @property {Instance | null} focus
 * @property {import("./service.js").Model | null} model
 */

// CSS pixels per image pixel from which on pixels are drawn as squares.
const PIXELS_FROM = 6;
// The shorter side of the stage in outline widths.
const LINES_PER_SIDE = 300;
// Bounds of an outline's width, in CSS pixels.
const LINE = { thinnest: 1.25, thickest: 2 };
// Width of the highlighted outline, relative to the others.
const FOCUS = 1.5;
const LETTERS = { small: 11, usual: 12 };
// Captions are smaller on a stage that is narrower, in CSS pixels.
const SMALL_STAGE = 480;
// Longest side of a canvas, in its pixels; some phones refuse more.
const MOST_SIDE = 8192;

export class Stage {
  /**
   * @param {HTMLElement} element with the canvases `.pixels`, `.masks` and `.focus` in it
   * @param {(view: import("./painter.js").View) => void} onView called whenever the zoom or the position changes
   */
  constructor(element, onView) {
    this.element = element;
    this.onView = onView;
    this.viewport = new Viewport();
    const canvas = (/** @type {string} */ name) =>
      /** @type {HTMLCanvasElement} */ (element.querySelector(`canvas.${name}`));
    this.pixels = canvas("pixels");
    this.masks = canvas("masks");
    this.focus = canvas("focus");
    /** @type {Layer} */ this.layer = new Layer(1, 1);
    /** @type {Scene} */
    this.scene = { picture: null, instances: [], opacity: 0.4, labels: true, focus: null, model: null };
    this.awaited = new Set();
    new ResizeObserver(() => this.resize()).observe(element);
    this.watchDensity();
  }

  /** Make new canvases when the window moves to a screen of another density; its own size stays. */
  watchDensity() {
    const changed = () => {
      this.resize();
      this.watchDensity();
    };
    matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`).addEventListener("change", changed, { once: true });
  }

  /** Canvas pixels per CSS pixel of the picture. */
  get density() {
    return Math.min(window.devicePixelRatio, MOST_SIDE / Math.max(this.viewport.width, this.viewport.height, 1));
  }

  /** Canvas pixels per CSS pixel of the masks: at least two, so that scaling down smooths their edges. */
  get fineness() {
    return this.density < 1.5 ? this.density * 2 : this.density;
  }

  /** Whether masks are smoothed: up to the scale at which the image's pixels become visible. */
  get smooth() {
    return this.viewport.view.scale < PIXELS_FROM;
  }

  /** Width of outlines, in pixels of the masks' canvas. */
  get line() {
    const wanted = Math.min(this.viewport.width, this.viewport.height) / LINES_PER_SIDE;
    return Math.round(Math.min(Math.max(wanted, LINE.thinnest), LINE.thickest) * this.fineness);
  }

  /** Font size of captions, in pixels of the masks' canvas. */
  get letters() {
    return (this.viewport.width < SMALL_STAGE ? LETTERS.small : LETTERS.usual) * this.fineness;
  }

  resize() {
    const { clientWidth, clientHeight } = this.element;
    this.viewport.resize(Math.max(1, clientWidth), Math.max(1, clientHeight));
    for (const [canvas, density] of /** @type {const} */ ([
      [this.pixels, this.density],
      [this.masks, this.fineness],
      [this.focus, this.fineness],
    ])) {
      canvas.width = Math.max(1, Math.round(clientWidth * density));
      canvas.height = Math.max(1, Math.round(clientHeight * density));
    }
    this.layer = new Layer(this.masks.width, this.masks.height);
    this.drawAll();
    this.onView(this.viewport.view);
  }

  /**
   * Show a scene; only what has changed is painted again.
   * @param {Partial<Scene>} changes
   */
  show(changes) {
    const before = this.scene;
    this.scene = { ...before, ...changes };
    const { picture, focus } = this.scene;
    if (picture !== before.picture) {
      if (picture) {
        this.viewport.open(picture.width, picture.height);
      }
      this.drawPixels();
      this.onView(this.viewport.view);
    }
    this.drawMasks();
    if (focus !== before.focus || picture !== before.picture) {
      this.drawFocus();
    }
  }

  /**
   * Highlight one instance, or none.
   * @param {Instance | null} focus
   */
  highlight(focus) {
    if (focus !== this.scene.focus) {
      this.scene = { ...this.scene, focus };
      this.drawFocus();
    }
  }

  /**
   * Change the view with a method of the viewport; the next animation frame paints it.
   * @param {(viewport: Viewport) => void} change
   */
  move(change) {
    change(this.viewport);
    this.onView(this.viewport.view);
    if (!this.awaited.size) {
      this.awaited.add(
        requestAnimationFrame(() => {
          this.awaited.clear();
          this.drawAll();
        }),
      );
    }
  }

  drawAll() {
    this.drawPixels();
    this.drawMasks();
    this.drawFocus();
  }

  /** @param {number} density */
  viewAt(density) {
    const { scale, x, y } = this.viewport.view;
    return { scale: scale * density, x: x * density, y: y * density };
  }

  drawPixels() {
    const context = contextOf(this.pixels);
    context.clearRect(0, 0, this.pixels.width, this.pixels.height);
    this.scene.picture?.draw(context, this.viewAt(this.density), this.smooth);
  }

  drawMasks() {
    const started = performance.now();
    const { instances, opacity, labels, picture, model } = this.scene;
    const context = contextOf(this.masks);
    const view = this.viewAt(this.fineness);
    this.layer.paint(picture ? instances : [], view, { opacity, line: this.line, smooth: this.smooth });
    context.putImageData(this.layer.image, 0, 0);
    if (picture) {
      drawSkeletons(context, instances, view, this.line, model);
    }
    if (picture && labels) {
      drawLabels(context, instances, view, this.letters);
    }
    took("masks", started, instances.length);
  }

  drawFocus() {
    const started = performance.now();
    const { focus, opacity, picture, model } = this.scene;
    const context = contextOf(this.focus);
    context.clearRect(0, 0, this.focus.width, this.focus.height);
    this.element.classList.toggle("focused", focus !== null);
    if (focus && picture) {
      const view = this.viewAt(this.fineness);
      const left = Math.max(0, Math.floor(view.x + focus.mask.left * view.scale));
      const top = Math.max(0, Math.floor(view.y + focus.mask.top * view.scale));
      const right = Math.min(this.focus.width, Math.ceil(view.x + focus.mask.right * view.scale));
      const bottom = Math.min(this.focus.height, Math.ceil(view.y + focus.mask.bottom * view.scale));
      if (right > left && bottom > top) {
        const layer = new Layer(right - left, bottom - top);
        const line = Math.round(FOCUS * this.line);
        const moved = { scale: view.scale, x: view.x - left, y: view.y - top };
        layer.paint([focus], moved, { opacity: Math.max(opacity, 0.25), line, smooth: this.smooth });
        context.putImageData(layer.image, left, top);
      }
      drawSkeletons(context, [focus], view, FOCUS * this.line, model);
      drawLabels(context, [focus], view, this.letters);
    }
    took("focus", started, focus ? 1 : 0);
  }
}

/** @param {HTMLCanvasElement} canvas */
function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}
