// The bar under the picture while a video or a webcam runs: position, rate, pause and stop.

import { Film, run } from "./frames.js";
import { patiently, Problem } from "./service.js";

/** @typedef {import("./frames.js").Frame} Frame */

export class FilmBar {
  /**
   * @param {HTMLElement} bar
   * @param {(frame: Frame, signal: AbortSignal) => Promise<void>} show segments a frame and shows it
   * @param {(problem: Problem) => void} complain
   * @param {() => void} ended called when nothing runs any more, whether a frame was shown or not
   */
  constructor(bar, show, complain, ended) {
    this.bar = bar;
    this.show = show;
    this.complain = complain;
    this.ended = ended;
    const find = (/** @type {string} */ name) => /** @type {HTMLElement} */ (bar.querySelector(name));
    this.pause = find(".pause");
    this.position = find(".position");
    this.rate = find(".rate");
    this.progress = /** @type {HTMLProgressElement} */ (find("progress"));
    this.sampling = /** @type {HTMLSelectElement} */ (find("select"));
    /** @type {AbortController | null} */ this.running = null;
    // Set while the film is paused.
    /** @type {(() => void) | null} */ this.proceed = null;
    this.paused = false;
    this.pause.addEventListener("click", () => (this.paused ? this.resume() : this.hold()));
    find(".stop").addEventListener("click", () => {
      this.stop();
      this.ended();
    });
  }

  /** @param {File} file */
  openFile(file) {
    return this.start(() => Film.open(file));
  }

  openWebcam() {
    return this.start(() => Film.webcam());
  }

  /** @param {() => Promise<Film>} open */
  async start(open) {
    this.stop();
    const controller = new AbortController();
    this.running = controller;
    let film;
    let isComplete = false;
    try {
      film = await open();
      if (controller.signal.aborted) {
        return;
      }
      await this.play(film, controller.signal);
      isComplete = true;
    } catch (error) {
      if (!controller.signal.aborted) {
        this.complain(asProblem(error));
      }
    } finally {
      film?.close();
      if (this.running === controller) {
        this.finish(isComplete && !film?.live && this.progress.value > 0);
      }
    }
  }

  /**
   * @param {Film} film
   * @param {AbortSignal} signal
   */
  async play(film, signal) {
    this.bar.hidden = false;
    this.bar.classList.toggle("live", film.live);
    this.position.textContent = "";
    this.rate.textContent = "";
    this.progress.value = 0;
    this.pause.hidden = false;
    this.resume();
    await run(film, {
      perSecond: () => Number(this.sampling.value),
      show: (frame) =>
        patiently(
          () => this.show(frame, signal),
          signal,
          ({ title }) => (this.rate.textContent = `${title}; waiting …`),
        ),
      progress: (time, rate) => {
        this.position.textContent = film.live ? clock(time) : `${clock(time)} of ${clock(film.duration)}`;
        this.progress.value = film.live ? 0 : time / film.duration;
        this.rate.textContent = `${rate.toFixed(1)} frames/s`;
      },
      turn: () =>
        new Promise((resolve) => {
          if (this.paused) {
            this.proceed = resolve;
          } else {
            resolve();
          }
        }),
      signal,
    });
  }

  hold() {
    this.paused = true;
    this.pause.textContent = "Resume";
  }

  resume() {
    this.paused = false;
    this.pause.textContent = "Pause";
    this.proceed?.();
    this.proceed = null;
  }

  /** Stop the video; its last frame stays on the stage. */
  stop() {
    this.running?.abort();
    this.running = null;
    this.resume();
    this.bar.hidden = true;
  }

  /**
   * The video has ended. If all of it was shown, its rate stays visible.
   * @param {boolean} isComplete
   */
  finish(isComplete) {
    this.running = null;
    this.pause.hidden = true;
    if (isComplete) {
      this.progress.value = 1;
    } else {
      this.bar.hidden = true;
    }
    this.ended();
  }
}

/** @param {unknown} error */
function asProblem(error) {
  if (error instanceof Problem) {
    return error;
  }
  const { name, message } = /** @type {Error} */ (error);
  if (name === "NotAllowedError") {
    return new Problem("No camera", "The browser was not allowed to use the camera.");
  }
  if (name === "NotFoundError" || name === "NotReadableError" || name === "OverconstrainedError") {
    return new Problem("No camera", "The browser finds no camera that it can use.");
  }
  return new Problem("Cannot run this video", message);
}

/** 1:04.20. @param {number} seconds */
function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(2).padStart(5, "0")}`;
}
