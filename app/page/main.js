// The demonstration page. It sends a picture to POST /segment once; everything else happens in the browser.

import { instanceAt } from "./answer.js";
import * as cover from "./cover.js";
import { formatCount, formatNumber, get } from "./dom.js";
import * as evidence from "./evidence.js";
import { coco, png, save, stem } from "./export.js";
import { FilmBar } from "./filmbar.js";
import * as gestures from "./gestures.js";
import * as list from "./list.js";
import { setUpTheme, showModel, watchQueue } from "./masthead.js";
import * as panel from "./panel.js";
import { Picture, read } from "./picture.js";
import { key, patiently, Problem, segment } from "./service.js";
import * as sources from "./sources.js";
import { Stage } from "./stage.js";
import { State, visible } from "./state.js";
import * as tiling from "./tiling.js";

const state = new State({
  model: null,
  picture: null,
  answer: null,
  busy: false,
  tiles: null,
  problem: null,
  threshold: 0.5,
  hidden: new Set(),
  opacity: 0.4,
  labels: true,
  tiling: null,
  hovered: null,
  pinned: null,
});

/** @type {AbortController | null} of the request in progress */
let asking = null;
/** @type {File | null} sent again by "Try again" */
let latest = null;
// How many pictures, videos and cameras were opened.
let openings = 0;

const stage = new Stage(get("stage"), (view) => {
  const { picture } = state.values;
  get("zoom").textContent = picture ? `${Math.round(view.scale * 100)} %` : "–";
  get("stage").classList.toggle("zoomed", !stage?.viewport.fitted);
});
const film = new FilmBar(get("film"), showFrame, complain, () => state.set({ busy: false }));

/** Segment an image file, or run a video file, that somebody has chosen. @param {File} file */
function open(file) {
  openings += 1;
  send(file);
}

/** @param {File} file */
function send(file) {
  asking?.abort();
  film.stop();
  latest = file;
  state.set({ problem: null });
  if (file.type.startsWith("video/")) {
    begin(`Opening ${file.name} …`);
    film.openFile(file);
  } else {
    showImage(file);
  }
}

/** Show that work has started. @param {string} text shown meanwhile */
function begin(text) {
  say(text);
  const nothing = { answer: null, tiles: null, problem: null, hovered: null, pinned: null };
  state.set({ ...nothing, busy: true, hidden: new Set() });
}

/** @param {File} file */
async function showImage(file) {
  const controller = new AbortController();
  asking = controller;
  const { signal } = controller;
  begin(`Looking for instances in ${file.name || "the picture"} …`);
  const reading = read(file, file.name || "pasted.png").then((picture) => {
    if (signal.aborted) {
      picture?.close();
    } else {
      replace(picture);
    }
    return picture;
  });
  try {
    const progress = (/** @type {import("./service.js").TileCount} */ tiles) => signal.aborted || state.set({ tiles });
    const answer = await patiently(
      () => segment(file, signal, state.values.tiling, progress),
      signal,
      ({ detail }) => {
        state.set({ tiles: null });
        say(detail);
      },
    );
    const picture = (await reading) ?? new Picture(file.name, file, answer.width, answer.height, []);
    if (!signal.aborted) {
      state.set({ picture: picture.fitting(answer), answer, busy: false, problem: null });
      announce(summary());
    }
  } catch (error) {
    await reading;
    if (!signal.aborted) {
      fail(error);
    }
  }
}

/**
 * Show one frame of a video, its picture and its instances at the same time.
 * @param {import("./frames.js").Frame} frame
 * @param {AbortSignal} signal
 */
async function showFrame({ file, name }, signal) {
  const reading = read(file, name);
  let answer;
  try {
    answer = await segment(file, signal, state.values.tiling);
  } catch (error) {
    (await reading)?.close();
    throw error;
  }
  const picture = await reading;
  if (signal.aborted) {
    picture?.close();
    return;
  }
  const before = state.values.picture;
  state.set({ picture, answer, busy: false, problem: null, hovered: null, pinned: null });
  before?.close();
}

/** @param {Picture | null} picture */
function replace(picture) {
  const before = state.values.picture;
  if (picture !== before) {
    state.set({ picture });
    before?.close();
  }
}

/** The request in progress has failed. @param {unknown} error */
function fail(error) {
  state.set({ busy: false });
  complain(error);
}

/** Something else has. @param {unknown} error */
function complain(error) {
  const problem =
    error instanceof Problem ? error : new Problem("The answer cannot be read", String(/** @type {Error} */ (error).message));
  state.set({ problem });
}

/** @param {string} text shown while the page waits */
function say(text) {
  get("busy-text").textContent = text;
  announce(text);
}

/** @param {string} text for screen readers */
function announce(text) {
  get("status").textContent = text;
}

function summary() {
  const { answer, picture } = state.values;
  if (!answer || !picture) {
    return "";
  }
  const shown = visible(state.values);
  /** @type {Map<string, number>} */ const counts = new Map();
  for (const { category } of shown) {
    counts.set(category, (counts.get(category) ?? 0) + 1);
  }
  const list = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  return `${formatCount(shown.length, "instance")} in ${picture.name}${list ? `: ${list}` : ""}`;
}

/** @param {import("./answer.js").Instance} instance */
function describe({ category, score, record }) {
  const [x, y, width, height] = record.bbox.map(Math.round);
  return `${category} · score ${score.toFixed(3)} · ${formatNumber(record.area)} px · x ${x}, y ${y}, ${width} × ${height}`;
}

function setUpStage() {
  state.on(["picture", "answer", "threshold", "hidden", "opacity", "labels", "model"], (values) => {
    const { picture, opacity, labels, model } = values;
    stage.show({ picture, instances: visible(values), opacity, labels, model });
    const shown = new Set(stage.scene.instances);
    const { hovered, pinned } = values;
    if ((hovered && !shown.has(hovered)) || (pinned && !shown.has(pinned))) {
      state.set({ hovered: null, pinned: pinned && shown.has(pinned) ? pinned : null });
    }
    get("stage").setAttribute("aria-label", picture ? summary() || picture.name : "No picture yet");
  });
  state.on(["hovered", "pinned"], ({ hovered, pinned }) => stage.highlight(hovered ?? pinned));
  state.on(["hovered", "pinned", "picture", "answer"], ({ hovered, pinned, picture }) => {
    const instance = hovered ?? pinned;
    get("readout").textContent = instance ? describe(instance) : picture ? `${picture.name} · ${picture.width} × ${picture.height}` : "";
    get("readout").classList.toggle("pinned", instance !== null && instance === pinned);
  });
  gestures.listen(stage, {
    hover: (x, y) => state.set({ hovered: instanceAt(stage.scene.instances, x, y) }),
    leave: () => state.set({ hovered: null }),
    pin: (x, y) => {
      const instance = instanceAt(stage.scene.instances, x, y);
      state.set({ pinned: instance === state.values.pinned ? null : instance });
    },
    next: (step) => {
      const shown = stage.scene.instances;
      const now = shown.indexOf(/** @type {any} */ (state.values.hovered ?? state.values.pinned));
      const next = now < 0 ? (step > 0 ? 0 : shown.length - 1) : (now + step + shown.length) % shown.length;
      if (shown.length) {
        state.set({ hovered: shown[next] });
        announce(describe(shown[next]));
      }
    },
    keep: () => {
      const { hovered, pinned } = state.values;
      state.set({ pinned: hovered === pinned ? null : hovered });
    },
    release: () => state.set({ pinned: null, hovered: null }),
  });
  get("zoom-in").addEventListener("click", () => stage.move((viewport) => viewport.zoom(1.5)));
  get("zoom-out").addEventListener("click", () => stage.move((viewport) => viewport.zoom(1 / 1.5)));
  get("fit").addEventListener("click", () => stage.move((viewport) => viewport.fit()));
}

function setUpFiles() {
  get("save-png").addEventListener("click", async () => {
    const { picture } = state.values;
    if (picture) {
      try {
        save(await png(picture, stage.scene.instances, state.values), `${stem(picture.name)}-instances.png`);
      } catch (error) {
        complain(new Problem("No picture was made", String(/** @type {Error} */ (error).message)));
      }
    }
  });
  get("save-coco").addEventListener("click", () => {
    const { picture, answer, model } = state.values;
    if (picture && answer) {
      const categories = model?.categories ?? answer.categories().map(({ id, name }) => ({ id, name }));
      const text = JSON.stringify(coco(picture, stage.scene.instances, categories));
      save(new Blob([text], { type: "application/json" }), `${stem(picture.name)}-coco.json`);
    }
  });
  const webcam = /** @type {HTMLButtonElement} */ (get("webcam"));
  webcam.disabled = !navigator.mediaDevices;
  webcam.title = navigator.mediaDevices ? "" : "Browsers give a camera only to HTTPS and localhost";
  webcam.addEventListener("click", () => {
    asking?.abort();
    openings += 1;
    latest = null;
    begin("Starting the camera …");
    film.openWebcam();
  });
}

function repeat() {
  if (latest) {
    send(latest);
  }
}

/** The picture again with other tiles. A film's next frame has them anyway. */
function cutAnew() {
  if (!latest?.type.startsWith("video/")) {
    repeat();
  }
}

function cancel() {
  asking?.abort();
  film.stop();
  state.set({ busy: false });
  announce("Cancelled");
}

/** Fetch the model and the queue; called again once there is a key. */
function enter() {
  get("forget-key").hidden = key.get() === "";
  showModel(
    (model) => state.set({ model }),
    (problem) => state.set({ problem }),
  );
  watchQueue();
}

const actions = {
  canRepeat: () => latest !== null,
  repeat,
  cancel,
  enter: () => {
    enter();
    repeat();
  },
};

setUpTheme();
setUpStage();
cover.setUp(state, actions);
setUpFiles();
panel.setUp(state);
list.setUp(state);
tiling.setUp(state, cutAnew);
evidence.setUp(state);
sources.listen(open);
sources.examples(open, complain, () => openings);
enter();
document.documentElement.dataset.ready = "";
