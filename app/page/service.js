// The page's requests to the service, and the API key.

import { Answer } from "./answer.js";

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
    this.status = status; // 0 if there was no answer
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

/** The API key, kept until the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (/** @type {string} */ value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
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
 * @returns {Promise<Answer>}
 * @throws {Problem}
 */
export async function segment(file, signal) {
  const started = performance.now();
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const response = await ask(`segment?${new URLSearchParams(REQUESTED)}`, {
    method: "POST",
    body: file,
    headers: { "Content-Type": type, Accept: "application/json" },
    signal,
  });
  const document = await response.json();
  const roundTrip = performance.now() - started;
  return Answer.read(document, { stages: stagesOf(response.headers.get("Server-Timing") ?? ""), roundTrip });
}

const PATIENCE = 60_000; // milliseconds

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
