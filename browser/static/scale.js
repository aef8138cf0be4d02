/** The scale of a field, from the field itself: the diameter of its red cells. See `edge_runtime/vision/scale.py`. */

import { median, rounded, roundHalfEven } from "./numbers.js";
import { greyBoxes, part, reduced } from "./scaling.js";
import { padded } from "./tiles.js";

/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {import("./tiles.js").TileSegmenter} TileSegmenter */

/**
 * @typedef {object} Scale
 * @property {number} redCellPx diameter of a red cell in pixels of the field
 * @property {"image" | "given"} source
 * @property {number} confidence 0 to 1
 * @property {[number, number]} rangePx lowest and highest estimate
 */

const RED_CELL_UM = 7.1;
export const [LEAST_PX, MOST_PX] = [4, 900];
const LEAST_SEEN = 7;
const [SMALLEST, LARGEST, TYPICAL] = [0.006, 0.45, 0.16];
/** In octaves: see the constants of these names in Python. */
const [STEP, REACH, AGAIN, UNSURE, CLEAR, MOST_OFF] = [1.6, 1, 0.3, 0.3, 0.3, 0.5];
const [ONE_SIDED, LEAST_CONFIDENCE] = [0.25, 0.3];
const WINDOWS = 3;

/** @param {Scale} scale */
export function umPerPx(scale) {
  return RED_CELL_UM / scale.redCellPx;
}

/**
 * As `edgeall cells --json` prints it.
 * @param {Scale} scale
 */
export function scaleJson(scale) {
  return {
    red_cell_px: rounded(scale.redCellPx, 2),
    um_per_px: rounded(umPerPx(scale), 5),
    source: scale.source,
    confidence: rounded(scale.confidence, 3),
    range_px: scale.rangePx.map((end) => rounded(end, 2)),
  };
}

/**
 * @param {number} redCellPx
 * @returns {Scale}
 */
export function givenScale(redCellPx) {
  return { redCellPx, source: "given", confidence: 1, rangePx: [redCellPx, redCellPx] };
}

/**
 * @param {Image} field
 * @param {TileSegmenter} segmenter
 * @returns {Promise<Scale>}
 */
export async function measureScale(field, segmenter) {
  const longer = Math.max(field.width, field.height);
  const [windows, diameters] = [new Windows(field, segmenter), assumed(longer)];
  const crossing = await windows.crossing(diameters);
  if (!crossing) {
    const ends = [diameters[0], diameters[diameters.length - 1]].map((octave) => 2 ** octave);
    return { redCellPx: TYPICAL * longer, source: "image", confidence: 0, rangePx: /** @type {any} */ (ends) };
  }
  const [found, clear] = crossing;
  let estimates = await windows.refined(found);
  let refined = median(estimates);
  let moved = Math.abs(refined - found);
  if (moved > AGAIN) {
    estimates = await windows.refined(refined);
    const again = median(estimates);
    [moved, refined] = [Math.abs(again - refined), again];
  }
  refined = Math.min(Math.max(refined, Math.log2(LEAST_PX)), Math.log2(MOST_PX));
  const unsure = Math.max(...estimates.map((each) => Math.abs(each - refined)), moved / 2);
  return {
    redCellPx: 2 ** refined,
    source: "image",
    confidence: clear * Math.exp(-((unsure / UNSURE) ** 2)),
    rangePx: [2 ** Math.min(...estimates), 2 ** Math.max(...estimates)],
  };
}

/**
 * One line for each doubt about a scale.
 * @param {Scale} scale
 * @param {{width: number, height: number}} field
 * @param {number[]} redCells of the tiles
 */
export function doubts(scale, field, redCells) {
  return [uncertain(scale), implausible(scale, field), contradiction(scale, redCells)].filter((text) => text !== "");
}

/** @param {Scale} scale */
function uncertain({ redCellPx, confidence, rangePx }) {
  if (confidence >= LEAST_CONFIDENCE) return "";
  const [low, high, used] = [...rangePx, redCellPx].map(roundHalfEven);
  return `the scale is uncertain: red cells seem to measure ${low} to ${high} px, ${used} px is used; ${GIVE}`;
}

const GIVE = "give --red-cell-px or --um-per-px";

/**
 * @param {Scale} scale
 * @param {{width: number, height: number}} field
 */
function implausible({ redCellPx }, { width, height }) {
  const cell = roundHalfEven(redCellPx);
  if (redCellPx > Math.min(width, height))
    return (
      `the scale is implausible: red cells of ${cell} px, not one whole red cell would fit into an image of` +
      ` ${width}x${height} pixels; ${GIVE}`
    );
  if (redCellPx < (SMALLEST / 2) * Math.max(width, height))
    return (
      `the scale is implausible: red cells of ${cell} px, which is far below 20x, for an image of` +
      ` ${width}x${height} pixels; ${GIVE}`
    );
  return "";
}

/**
 * @param {Scale} scale
 * @param {number[]} redCells
 */
function contradiction({ redCellPx, source }, redCells) {
  const off = median(redCells);
  if (source === "image" || Math.abs(off) <= MOST_OFF) return "";
  const size = roundHalfEven(redCellPx * 2 ** Math.max(Math.min(off, REACH), -REACH));
  const seen = off >= REACH ? `${size} px or more` : off <= -REACH ? `${size} px or less` : `${size} px`;
  const known = roundHalfEven(redCellPx);
  return `the ${source} scale looks wrong: red cells of ${known} px, but here they seem to measure ${seen}`;
}

/**
 * Assumed diameters for a field with this longer side, log2 pixels.
 * @param {number} longer
 */
function assumed(longer) {
  const low = Math.log2(Math.max(LEAST_SEEN, SMALLEST * longer));
  const high = Math.log2(Math.min(MOST_PX, Math.max(LARGEST * longer, 2 * LEAST_SEEN)));
  const count = Math.max(2, Math.ceil((high - low) / STEP));
  return [...Array.from({ length: count }, (_, at) => low + ((high - low) / count) * (at + 0.5)), high];
}

/** Windows of a field at assumed scales, and the network's answers to them. */
class Windows {
  /**
   * @param {Image} field
   * @param {TileSegmenter} segmenter
   */
  constructor(field, segmenter) {
    this.segmenter = segmenter;
    this.levels = [field]; // each half as large as the one before
    this.places = busiest(this.#level(Math.trunc(Math.max(field.width, field.height) / 512)));
  }

  /**
   * The log2 diameter at which the answers first turn from positive to negative; and how clearly, 0 to 1.
   * @param {number[]} octaves
   * @returns {Promise<[number, number] | null>}
   */
  async crossing(octaves) {
    const below = smaller(octaves[0]);
    /** @type {[number, number] | null} */
    let before = null;
    let [octave, answer] = [0, 0];
    for (octave of octaves) {
      answer = await this.#answer(2 ** octave, this.places[0]);
      if (answer <= 0) break;
      before = [octave, answer];
    }
    for (const less of below) {
      if (answer > 0 || before) break;
      const said = await this.#answer(2 ** less, this.places[0]);
      if (said > 0) before = [less, said];
      else [octave, answer] = [less, said];
    }
    if (!before || answer > 0) return Math.abs(answer) <= AGAIN ? [octave + answer, ONE_SIDED] : null;
    const steep = before[1] - answer;
    return [before[0] + ((octave - before[0]) * before[1]) / steep, Math.min(1, steep / CLEAR)];
  }

  /**
   * Estimates of the log2 diameter in windows where it is assumed to be `octave`.
   * @param {number} octave
   */
  async refined(octave) {
    const [field] = this.levels;
    const side = (this.segmenter.size * 2 ** octave) / this.segmenter.redCellPx;
    const distinct = side >= 0.9 * Math.max(field.width, field.height) ? 1 : WINDOWS;
    const estimates = [];
    for (const place of this.places.slice(0, distinct)) estimates.push(octave + (await this.#answer(2 ** octave, place)));
    return estimates;
  }

  /**
   * `Tile.redCell` of a window at the scale where a red cell has this diameter.
   * @param {number} redCellPx
   * @param {[number, number]} centre in fractions of the field
   */
  async #answer(redCellPx, [x, y]) {
    const { size, redCellPx: unit } = this.segmenter;
    const view = this.#level(roundHalfEven(redCellPx / unit / 2));
    const zoom = ((unit / redCellPx) * this.levels[0].width) / view.width;
    const [wide, high] = [Math.min(size / zoom, view.width), Math.min(size / zoom, view.height)];
    const left = Math.min(Math.max(x * view.width - wide / 2, 0), view.width - wide);
    const top = Math.min(Math.max(y * view.height - high / 2, 0), view.height - high);
    const [width, height] = [wide, high].map((length) => Math.max(1, roundHalfEven(length * zoom)));
    const seen = part(view, width, height, [left, top, left + wide, top + high]);
    return (await this.segmenter.infer(padded(seen, size).image.data)).redCell;
  }

  /**
   * The field at the smallest level that is reduced by at most this.
   * @param {number} reduction
   */
  #level(reduction) {
    const level = Math.max(0, 31 - Math.clz32(reduction));
    while (this.levels.length <= level) this.levels.push(reduced(this.levels[this.levels.length - 1], 2, 2));
    return this.levels[level];
  }
}

/**
 * Diameters below the first assumed one, from larger to smaller; as numpy's `arange` adds them.
 * @param {number} first
 */
function smaller(first) {
  const count = Math.max(0, Math.ceil((Math.log2(LEAST_SEEN) - first) / -STEP));
  const step = first - STEP - first;
  return Array.from({ length: count }, (_, at) => first + at * step).slice(1);
}

/**
 * Centres of up to `WINDOWS` parts of the field with the highest contrast, in fractions of it.
 * @param {Image} field
 * @returns {[number, number][]}
 */
export function busiest(field) {
  const [parts, inside] = [16, 12];
  const small = greyBoxes(field, parts * inside);
  const blocks = Array.from({ length: parts * parts }, (_, at) => {
    const [row, column] = [Math.trunc(at / parts) * inside, (at % parts) * inside];
    let [sum, squares] = [0, 0];
    for (let y = row; y < row + inside; y++) {
      for (let x = column; x < column + inside; x++) {
        const value = small[y * parts * inside + x];
        sum += value;
        squares += value * value;
      }
    }
    return Math.sqrt(inside ** 2 * squares - sum ** 2);
  });
  const near = (/** @type {number} */ place) => Math.min(Math.max(place, 0), parts - 1);
  const contrast = blocks.map((_, at) => {
    let sum = 0;
    for (let y = -1; y <= 1; y++)
      for (let x = -1; x <= 1; x++) sum += blocks[near(Math.trunc(at / parts) + y) * parts + near((at % parts) + x)];
    return sum;
  });
  /** @type {[number, number][]} */
  const chosen = [];
  for (const at of contrast.map((_, at) => at).sort((a, b) => contrast[b] - contrast[a] || a - b)) {
    const [row, column] = [Math.trunc(at / parts), at % parts];
    if (chosen.every(([y, x]) => Math.max(Math.abs(row - y), Math.abs(column - x)) >= parts / 4)) chosen.push([row, column]);
    if (chosen.length === WINDOWS) break;
  }
  return chosen.map(([y, x]) => [(x + 0.5) / parts, (y + 0.5) / parts]);
}
