// The service's answer as the page uses it: instances with decoded masks and colours.

import { colourOf } from "./palette.js";
import { breathe, Pace } from "./pace.js";
import { Mask } from "./rle.js";

/**
 * @typedef {object} InstanceRecord a COCO results record, as the service sends it
 * @property {number} category_id
 * @property {string} category
 * @property {number} score
 * @property {[number, number, number, number]} bbox x, y, width, height
 * @property {number} area
 * @property {import("./rle.js").CocoRle} [segmentation] not of models without masks
 * @property {number[]} [keypoints] x, y, 1 of each, of models that find some
 * @property {number[]} [keypoint_scores]
 *
 * @typedef {object} SegmentDocument
 * @property {string} id
 * @property {string} model
 * @property {{width: number, height: number}} image
 * @property {InstanceRecord[]} instances
 *
 * @typedef {{stages: [string, number][], roundTrip: number}} Timings milliseconds
 */

/**
 * @typedef {{x: number, y: number, score: number}} Keypoint
 */

/**
 * @param {InstanceRecord} record
 * @returns {Keypoint[]}
 */
function pointsOf({ keypoints = [], keypoint_scores: scores = [] }) {
  return scores.map((score, i) => ({ x: keypoints[3 * i], y: keypoints[3 * i + 1], score }));
}

/** One object in the picture. */
export class Instance {
  /**
   * @param {InstanceRecord} record
   * @param {number} index its place by descending score, from 0
   * @param {{width: number, height: number}} image
   */
  constructor(record, index, image) {
    this.record = record;
    this.index = index;
    this.category = record.category;
    this.categoryId = record.category_id;
    this.score = record.score;
    this.mask = record.segmentation ? new Mask(record.segmentation) : Mask.ofBox(record.bbox, image);
    /** Whether the mask is only the box, of which then the edge alone is painted. */
    this.boxed = !record.segmentation;
    this.keypoints = pointsOf(record);
    this.colour = colourOf(record.category_id);
  }

  /** The category and the score, as written on the picture. */
  get caption() {
    return `${this.category} ${this.score.toFixed(2)}`;
  }
}

/** The answer to one request. */
export class Answer {
  /**
   * @param {SegmentDocument} document
   * @param {Timings} timings
   * @param {Instance[]} instances of the document
   * @param {number} decoding milliseconds that their masks took
   */
  constructor(document, timings, instances, decoding) {
    this.document = document;
    this.timings = timings;
    this.width = document.image.width;
    this.height = document.image.height;
    this.instances = instances;
    this.decoding = decoding;
  }

  /**
   * Decode the masks, with pauses in which the page responds to its user.
   * @param {SegmentDocument} document
   * @param {Timings} timings
   * @returns {Promise<Answer>}
   * @throws {RangeError} if a mask's RLE is damaged
   */
  static async read(document, timings) {
    const started = performance.now();
    const pace = new Pace();
    /** @type {Instance[]} */ const instances = [];
    for (const record of document.instances) {
      instances.push(new Instance(record, instances.length, document.image));
      if (pace.isOver) {
        await breathe();
        pace.begin();
      }
    }
    return new Answer(document, timings, instances, performance.now() - started);
  }

  /**
   * Id, name and number of instances of each category found, the most frequent first.
   * @returns {{id: number, name: string, count: number}[]}
   */
  categories() {
    /** @type {Map<number, {id: number, name: string, count: number}>} */
    const found = new Map();
    for (const { categoryId, category } of this.instances) {
      const entry = found.get(categoryId) ?? { id: categoryId, name: category, count: 0 };
      entry.count++;
      found.set(categoryId, entry);
    }
    return [...found.values()].sort((a, b) => b.count - a.count || a.name.localeCompare(b.name));
  }
}

/**
 * The instance at a pixel. Where several overlap it is the smallest, which is painted last.
 * @param {Instance[]} instances
 * @param {number} x
 * @param {number} y
 * @returns {Instance | null}
 */
export function instanceAt(instances, x, y) {
  let best = null;
  for (const instance of instances) {
    if (instance.mask.contains(x, y) && (!best || instance.mask.area < best.mask.area)) {
      best = instance;
    }
  }
  return best;
}
