// The page's requests to the service, and the API key.

import { Answer } from "./answer.js";
import { lines } from "./lines.js";

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string | null} notice
 * @property {{id: number, name: string, keypoints?: string[], skeleton?: [number, number][]}[]} categories
 * @property {string} device
 * @property {string} precision
 * @property {string} sha256
 * @property {Record<string, number>} ap
 * @property {{scores: string, shown_from: number} | null} keypoints
 * @property {{shorter_side: number, longer_side_at_most: number}} [input_size] pixels that an image is scaled to
 * @property {number} [tile_overlap] of tiles by default, a share of their side
 *
 * @typedef {object} Tiling how an image is cut
 * @property {string} tile "auto", or the side in pixels
 * @property {string} [overlap] share of the side; without it, the service's own
 *
 * @typedef {object} TileCount
 * @property {number} done
 * @property {number} total
 *
 * @typedef {object} QueueState
 * @property {number} requests in flight
 * @property {number | null} limit
 */

/** A low threshold, so that the slider needs no further request. */
export const REQUESTED = { score_threshold: "0.05", masks: "rle" };

const KEY = "maskserve-api-key";

/** What went wrong, from the service (RFC 9457) or from the page. */
export class Problem extends Error {
  /**
   * @param {string} title
   * @param {string} detail
   * @param {{status?: number, requestId?: string, retryAfter?: number}} more retryAfter: seconds
   */
  constructor(title, detail, { status = 0, requestId = "", retryAfter = 0 } = {}) {
    super(detail);
    this.title = title;
    this.detail = detail;
    // The HTTP status; 0 if there was no answer.
    this.status = status;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

// The key where the browser stores nothing for the page.
let ownKey = "";

/** The API key, kept until the tab is closed. */
export const key = {
  get: () => {
    try {
      return sessionStorage.getItem(KEY) ?? ownKey;
    } catch {
      return ownKey;
    }
  },
  set: (/** @type {string} */ value) => {
    try {
      sessionStorage.setItem(KEY, value);
    } catch {
      ownKey = value;
    }
  },
  forget: () => {
    ownKey = "";
    try {
      sessionStorage.removeItem(KEY);
    } catch {
      // Nothing is stored.
    }
  },
};

/**
 * @param {string} path relative, so that the page also works below a gateway's path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 * @throws {Problem}
 */
async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) {
    headers.set("Authorization", `Bearer ${key.get()}`);
  }
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) {
      throw error;
    }
    throw new Problem("No answer", "The service cannot be reached, or it closed the connection.");
  }
  if (!response.ok) {
    throw await problemOf(response);
  }
  return response;
}

/**
 * @param {Response} response
 * @returns {Promise<Problem>}
 */
async function problemOf(response) {
  const more = {
    status: response.status,
    requestId: response.headers.get("X-Request-ID") ?? "",
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
  };
  try {
    const { title, detail } = await response.json();
    return new Problem(String(title), String(detail ?? ""), more);
  } catch {
    // The answer is not the service's; it may be a gateway's error page.
    return new Problem(`Status ${response.status}`, `The answer was “${response.statusText || "an error"}”.`, more);
  }
}

/**
 * The instances in an image file.
 * @param {Blob} file
 * @param {AbortSignal} signal
 * @param {Tiling | null} tiling
 * @param {(tiles: TileCount) => void} progress called as tiles are done
 * @returns {Promise<Answer>}
 * @throws {Problem}
 */
export async function segment(file, signal, tiling = null, progress = () => {}) {
  const started = performance.now();
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const response = await ask(`segment?${new URLSearchParams({ ...REQUESTED, ...tiling })}`, {
    method: "POST",
    body: file,
    headers: { "Content-Type": type, Accept: tiling ? "application/x-ndjson" : "application/json" },
    signal,
  });
  const stages = new Map(stagesOf(response.headers.get("Server-Timing") ?? ""));
  const bodyStarted = performance.now();
  const document = tiling ? await lastLine(response, signal, progress) : await response.json();
  if (tiling) {
    // The headers came before the tiles; their time is known here only.
    const took = performance.now() - bodyStarted;
    stages.set("tiles", took).set("total", (stages.get("total") ?? 0) + took);
  }
  const roundTrip = performance.now() - started;
  return Answer.read(document, { stages: [...stages], roundTrip });
}

/**
 * The instances of an image in tiles, which come in the last line.
 * @param {Response} response
 * @param {AbortSignal} signal
 * @param {(tiles: TileCount) => void} progress
 * @returns {Promise<import("./answer.js").SegmentDocument>}
 * @throws {Problem}
 */
async function lastLine(response, signal, progress) {
  try {
    for await (const line of lines(response)) {
      if (line.status) {
        const { title, detail, status, request_id: requestId, retry_after: retryAfter } = line;
        throw new Problem(String(title), String(detail ?? ""), { status, requestId, retryAfter });
      }
      if (line.instances) {
        return line;
      }
      progress(line.tiles);
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem || error instanceof SyntaxError) {
      throw error;
    }
  }
  throw new Problem("No answer", "The service closed the connection before the last tile was done.");
}

// Milliseconds for which a request is repeated.
const PATIENCE = 60_000;

/**
 * Repeat a request when Retry-After says so: the service is full (429) or still loads its model (503).
 * @template T
 * @param {() => Promise<T>} request
 * @param {AbortSignal} signal
 * @param {(problem: Problem) => void} wait called before each wait, with the reason
 * @returns {Promise<T>}
 * @throws {Problem} the last one, after a minute
 */
export async function patiently(request, signal, wait) {
  const end = performance.now() + PATIENCE;
  for (;;) {
    try {
      return await request();
    } catch (error) {
      const waits = error instanceof Problem && error.retryAfter > 0 && [429, 503].includes(error.status);
      if (!waits || signal.aborted || performance.now() + error.retryAfter * 1000 > end) {
        throw error;
      }
      wait(error);
      await pause(error.retryAfter * 1000, signal);
    }
  }
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} signal ends it early, with the signal's reason as error
 * @returns {Promise<void>}
 */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", abort, { once: true });
  });
}

/**
 * Names and milliseconds in a Server-Timing header (W3C Server Timing).
 * @param {string} header
 * @returns {[string, number][]}
 */
export function stagesOf(header) {
  return [...header.matchAll(/([\w-]+)\s*;\s*dur=([\d.]+)/g)].map(([, name, dur]) => [name, Number(dur)]);
}

/**
 * @returns {Promise<Model>}
 * @throws {Problem}
 */
export async function model() {
  return (await ask("model")).json();
}

/**
 * The length of the queue, if the service tells it.
 * @returns {Promise<QueueState | null>}
 * @throws {Problem}
 */
export async function queue() {
  const text = await (await ask("metrics")).text();
  const requests = gauge(text, "maskserve_queue_requests");
  return requests === null ? null : { requests, limit: gauge(text, "maskserve_queue_requests_limit") };
}

/**
 * The sum over a gauge's labels in Prometheus' text format.
 * @param {string} text
 * @param {string} name
 * @returns {number | null}
 */
export function gauge(text, name) {
  const found = [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})?\\s+([^\\s]+)`, "gm"))];
  return found.length ? found.reduce((sum, [, value]) => sum + Number(value), 0) : null;
}
