// The area below the picture: the timing, and the same request as a command, a program and raw JSON.

import { copies, create, formatNumber, get } from "./dom.js";
import { save, stem } from "./export.js";
import { key } from "./service.js";
import { curl, python } from "./snippets.js";

/**
 * @typedef {import("./state.js").State} State
 * @typedef {import("./state.js").Values} Values
 * @typedef {import("./answer.js").Answer} Answer
 */

/** Labels for the names in Server-Timing; a stage without one is shown by its name. */
const STAGES = new Map([
  ["read", "reading the body"],
  ["decode", "decoding the image"],
  ["queue", "waiting in the queue"],
  ["forward", "the model"],
  ["tiles", "decoding, the model, merging"],
  ["encode", "encoding masks"],
  ["other", "other work of the service"],
  ["network", "network and browser"],
]);

// Instances in the raw JSON on the page: megabytes of text take seconds to lay out.
const SHOWN = 500;

/** @param {State} state */
export function setUp(state) {
  state.on(["answer"], ({ answer }) => {
    get("timing").hidden = answer === null;
    if (answer) {
      timing(answer);
    }
  });
  const texts = { curl: "", python: "", json: "" };
  state.on(["answer", "picture", "threshold", "hidden", "problem", "tiling"], (values) => {
    const request = requestOf(values);
    texts.curl = curl(request);
    texts.python = python(request);
    get("curl-text").textContent = texts.curl;
    get("python-text").textContent = texts.python;
  });
  const details = /** @type {HTMLDetailsElement} */ (get("json"));
  const write = () => {
    const { answer } = state.values;
    texts.json = answer ? pretty(answer) : "";
    get("json-text").textContent = answer ? pretty(answer, SHOWN) : "";
  };
  details.addEventListener("toggle", () => details.open && write());
  state.on(["answer"], ({ answer }) => {
    details.hidden = answer === null;
    if (details.open) {
      // Written only when it is open: a hundred masks are long.
      write();
    }
  });
  copies(get("curl-copy"), () => texts.curl);
  copies(get("python-copy"), () => texts.python);
  copies(get("json-copy"), () => texts.json);
  get("json-save").addEventListener("click", () => {
    const name = `${stem(state.values.picture?.name ?? "answer")}.json`;
    save(new Blob([texts.json], { type: "application/json" }), name);
  });
}

/**
 * @param {Values} values
 * @returns {import("./snippets.js").Request}
 */
function requestOf({ answer, picture, threshold, hidden, tiling }) {
  const found = answer?.categories() ?? [];
  const left = found.filter(({ id }) => !hidden.has(id)).map(({ name }) => name);
  return {
    origin: new URL(".", location.href).href.replace(/\/$/, ""),
    file: picture?.name ?? "photo.jpg",
    threshold,
    categories: left.length && left.length < found.length ? left : null,
    keyed: key.get() !== "",
    masked: !answer?.instances.some(({ boxed }) => boxed),
    tiling,
  };
}

/** Show the stages as a bar and as a list. @param {Answer} answer */
function timing({ timings: { stages, roundTrip }, decoding }) {
  const all = new Map(stages);
  const total = all.get("total") ?? 0;
  all.delete("total");
  const told = [...all.values()].reduce((sum, milliseconds) => sum + milliseconds, 0);
  if (total > told) {
    all.set("other", total - told);
  }
  all.set("network", Math.max(0, roundTrip - total) + decoding);
  const whole = [...all.values()].reduce((sum, milliseconds) => sum + milliseconds, 0);
  const parts = [...all].map(([name, milliseconds]) => {
    const part = create("span", { class: `stage-${STAGES.has(name) ? name : "other"}` });
    part.style.width = `${(100 * milliseconds) / whole}%`;
    return part;
  });
  const words = [...all].map(([name, milliseconds]) =>
    create(
      "div",
      {},
      create("dt", {}, create("span", { class: `dot stage-${STAGES.has(name) ? name : "other"}` }), STAGES.get(name) ?? name),
      create("dd", {}, duration(milliseconds)),
    ),
  );
  get("timing-bar").replaceChildren(...parts);
  get("timing-words").replaceChildren(...words);
  get("timing-total").textContent = duration(whole);
}

/** 3.1 ms or 2.40 s. @param {number} milliseconds */
export function duration(milliseconds) {
  if (milliseconds >= 1000) {
    return `${(milliseconds / 1000).toFixed(2)} s`;
  }
  return `${milliseconds >= 99.5 ? formatNumber(Math.round(milliseconds)) : milliseconds.toFixed(1)} ms`;
}

/**
 * The answer as JSON, one instance per line.
 * @param {Answer} answer
 * @param {number} most instances; a line says how many more there are
 */
function pretty({ document: { instances, ...rest } }, most = Infinity) {
  const lines = instances.slice(0, most).map((instance) => `    ${JSON.stringify(instance)}`);
  if (instances.length > most) {
    lines.push(`    … ${formatNumber(instances.length - most)} more, to copy or to save`);
  }
  const head = JSON.stringify(rest, null, 2).replace(/\n}$/, "");
  return `${head},\n  "instances": [${lines.length ? `\n${lines.join(",\n")}\n  ` : ""}]\n}\n`;
}
