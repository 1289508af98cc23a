// Reads an answer that comes as lines of JSON (application/x-ndjson), each as soon as it is there.

/**
 * @param {Response} response
 * @returns {AsyncGenerator<any>} the value of each line
 * @throws {SyntaxError} if a line is no JSON
 */
export async function* lines(response) {
  if (!response.body) {
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  // Pieces of the line that is arriving: the last one may have megabytes.
  /** @type {string[]} */ let parts = [];
  try {
    for (let { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
      const [end, ...rest] = /** @type {string} */ (value).split("\n");
      parts.push(end);
      for (const part of rest) {
        yield JSON.parse(parts.join(""));
        parts = [part];
      }
    }
  } finally {
    // A connection that broke cannot be cancelled.
    await reader.cancel().catch(() => {});
  }
  if (parts.join("").trim()) {
    yield JSON.parse(parts.join(""));
  }
}
