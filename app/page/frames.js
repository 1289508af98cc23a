// Takes frames from a video file or a webcam, each as an image file, and measures the rate.

// Quality of the JPEG that a frame is sent as.
const QUALITY = 0.92;
// Frames that the rate is averaged over.
const WINDOW = 20;

/**
 * @typedef {object} Frame
 * @property {Blob} file
 * @property {string} name
 * @property {number} time seconds into the video
 */

/** Frames per second, over the latest frames. */
export class Rate {
  /** @param {() => number} clock milliseconds */
  constructor(clock = () => performance.now()) {
    this.clock = clock;
    /** @type {number[]} */ this.times = [clock()];
  }

  /** Count a frame that is done. */
  count() {
    this.times = [...this.times, this.clock()].slice(-WINDOW - 1);
  }

  /** 0 before the first frame is done. */
  get perSecond() {
    const span = this.times[this.times.length - 1] - this.times[0];
    return span > 0 ? ((this.times.length - 1) * 1000) / span : 0;
  }
}

/** A source of frames; `close` frees the camera or the file. */
export class Film {
  /**
   * @param {HTMLVideoElement} video
   * @param {string} name
   * @param {{live: boolean, duration: number, close: () => void}} source duration: seconds, Infinity for a webcam
   */
  constructor(video, name, { live, duration, close }) {
    this.video = video;
    this.name = name;
    this.live = live;
    this.duration = duration;
    this.close = close;
    this.canvas = document.createElement("canvas");
  }

  /**
   * @param {File} file
   * @throws {Error} if the browser cannot play it
   */
  static async open(file) {
    const video = silent();
    const url = URL.createObjectURL(file);
    video.src = url;
    try {
      await event(video, "loadeddata");
      if (!Number.isFinite(video.duration)) {
        // Browsers record videos without a duration; seeking past the end reveals it.
        video.currentTime = 1e9;
        await event(video, "seeked");
      }
    } catch (error) {
      URL.revokeObjectURL(url);
      throw error;
    }
    const duration = Number.isFinite(video.duration) ? video.duration : video.currentTime;
    return new Film(video, file.name, { live: false, duration, close: () => URL.revokeObjectURL(url) });
  }

  /**
   * @throws {Error} if there is no camera, or no permission to use it
   */
  static async webcam() {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: "environment" },
    });
    const video = silent();
    video.srcObject = stream;
    const close = () => {
      for (const track of stream.getTracks()) {
        track.stop();
      }
      video.srcObject = null;
    };
    try {
      await video.play();
    } catch (error) {
      close();
      throw error;
    }
    return new Film(video, "webcam", { live: true, duration: Infinity, close });
  }

  /**
   * The frame at a time; a webcam's latest frame.
   * @param {number} time seconds
   * @returns {Promise<Frame>}
   */
  async frame(time) {
    const { video, canvas } = this;
    const stream = /** @type {MediaStream | null} */ (video.srcObject);
    if (stream?.getVideoTracks()[0]?.readyState === "ended") {
      throw new Error("The camera was disconnected.");
    }
    if (!this.live && Math.abs(video.currentTime - time) > 1e-6) {
      const seeked = event(video, "seeked");
      video.currentTime = time;
      await seeked;
    }
    if (!video.videoWidth) {
      throw new Error("The video has no picture.");
    }
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).drawImage(video, 0, 0);
    const file = await new Promise((resolve, reject) => {
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no JPEG"))), "image/jpeg", QUALITY);
    });
    const seconds = this.live ? video.currentTime : time;
    return { file, name: `${this.name.replace(/\.[^.]*$/, "")}-${seconds.toFixed(2)}s.jpg`, time: seconds };
  }
}

function silent() {
  return Object.assign(document.createElement("video"), { muted: true, playsInline: true, preload: "auto" });
}

/**
 * Wait for an event of a video; its error event rejects the promise.
 * @param {HTMLVideoElement} video
 * @param {string} name
 * @returns {Promise<void>}
 */
function event(video, name) {
  return new Promise((resolve, reject) => {
    // Removes both listeners, whichever event comes first.
    const listeners = new AbortController();
    const { signal } = listeners;
    const on = (/** @type {string} */ type, /** @type {() => void} */ settle) =>
      video.addEventListener(type, () => (listeners.abort(), settle()), { signal });
    on(name, resolve);
    on("error", () => reject(new Error("This browser cannot play the file.")));
  });
}

/**
 * Segment a film frame by frame until it ends or the signal stops it.
 * @param {Film} film
 * @param {object} how
 * @param {() => number} how.perSecond frames to take from each second of a video file
 * @param {(frame: Frame) => Promise<void>} how.show segments a frame and shows it
 * @param {(time: number, rate: number) => void} how.progress
 * @param {() => Promise<void>} how.turn resolves when the next frame may be taken: at once, or when the user resumes
 * @param {AbortSignal} how.signal
 */
export async function run(film, { perSecond, show, progress, turn, signal }) {
  const rate = new Rate();
  for (let time = 0; !signal.aborted && time < film.duration; time += 1 / perSecond()) {
    await turn();
    if (signal.aborted) {
      return;
    }
    const frame = await film.frame(time);
    await show(frame);
    rate.count();
    progress(frame.time, rate.perSecond);
  }
}
