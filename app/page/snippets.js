// The request behind what the page shows, as a curl command and as a Python program.

/**
 * @typedef {object} Request
 * @property {string} origin of the service, without a slash at its end
 * @property {string} file name of the image
 * @property {number} threshold
 * @property {string[] | null} categories the names of those that are shown, or null for all
 * @property {boolean} keyed whether the service requires an API key
 * @property {boolean} masked whether the answer has masks
 * @property {import("./service.js").Tiling | null} tiling how the image is cut
 */

/** The slider's threshold as text: 0.5, not 0.50. @param {number} threshold */
function number(threshold) {
  return String(Math.round(threshold * 100) / 100);
}

/** Quoted for a POSIX shell. @param {string} text */
function quote(text) {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

/** A Python string literal; for names of files and categories, JSON's are valid Python. @param {string} text */
function literal(text) {
  return JSON.stringify(text);
}

/**
 * @param {Request} request
 * @returns {string}
 */
export function curl({ origin, file, threshold, categories, keyed, tiling }) {
  const query = new URLSearchParams({ score_threshold: number(threshold), ...tiling });
  if (categories) {
    categories.forEach((category) => query.append("categories", category));
  }
  const lines = [
    "# Requests what you see. The page itself sent one request with",
    "# score_threshold=0.05, and filters its answer.",
    ...(tiling ? ["# Objects that tiles have cut may lack parts of low scores."] : []),
    `curl --form ${quote(`image=@${curlPath(file)}`)} \\`,
  ];
  if (keyed) {
    lines.push(String.raw`  --header "Authorization: Bearer $MASKSERVE_API_KEY" ` + "\\");
  }
  return [...lines, `  ${quote(`${origin}/segment?${query}`)}`].join("\n");
}

/** In curl's form syntax a comma or semicolon ends a file name that is not in double quotes. @param {string} file */
function curlPath(file) {
  return /[,;"\\]/.test(file) ? `"${file.replace(/[\\"]/g, String.raw`\$&`)}"` : file;
}

/**
 * @param {Request} request
 * @returns {string}
 */
export function python({ origin, file, threshold, categories, keyed, masked, tiling }) {
  const parameters = [`"score_threshold": ${number(threshold)}`];
  if (categories) {
    parameters.push(`"categories": [${categories.map(literal).join(", ")}]`);
  }
  if (tiling) {
    const { tile, overlap } = tiling;
    parameters.push(`"tile": ${tile === "auto" ? literal(tile) : tile}`);
    if (overlap) {
      parameters.push(`"overlap": ${overlap}`);
    }
  }
  return [
    ...(keyed ? ["import os", ""] : []),
    "import httpx",
    ...(masked ? ["from pycocotools import mask"] : []),
    "",
    `with open(${literal(file)}, "rb") as image:`,
    "    response = httpx.post(",
    `        ${literal(`${origin}/segment`)},`,
    `        params={${parameters.join(", ")}},`,
    '        files={"image": image},',
    ...(keyed ? [`        headers={"Authorization": f"Bearer {os.environ['MASKSERVE_API_KEY']}"},`] : []),
    `        timeout=${tiling ? 600 : 60},`,
    "    )",
    "response.raise_for_status()",
    'for instance in response.json()["instances"]:',
    ...(masked ? masks(tiling !== null) : [pythonLine('instance.get("keypoints")')]),
    "",
  ].join("\n");
}

/**
 * What a program does with each mask.
 * @param {boolean} large whether the image may be so large that a bitmap for each instance fills the memory
 */
function masks(large) {
  return large
    ? [pythonLine('mask.area(instance["segmentation"])')]
    : ['    bitmap = mask.decode(instance["segmentation"])  # [H, W] uint8', pythonLine("bitmap.sum()")];
}

/** @param {string} last */
function pythonLine(last) {
  return `    print(instance["category"], instance["score"], instance["bbox"], ${last})`;
}
