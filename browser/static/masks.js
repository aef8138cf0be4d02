/**
 * The mask of a field's cells, and its outlines. See `field_mask` in `edge_runtime/vision/finder.py` and
 * `edge_runtime/masks.py`.
 */

import { nuclei } from "./instances.js";
import { dilated, SQUARE } from "./morphology.js";
import { roundHalfEven } from "./numbers.js";

/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {import("./tiles.js").ClassMap} ClassMap */

export const CLASSES = ["background", "cytoplasm", "nucleus"];
/** The lowest class of what is outlined, and the colour: the whole cell, the nucleus. */
const OUTLINES = /** @type {[number, number[]][]} */ ([
  [1, [0, 200, 60]],
  [2, [255, 220, 0]],
]);
/** Weights of a linear interpolation are in units of 1/2048. */
const STEPS = 2048;

/**
 * The class of each pixel of a field, of its cells alone.
 * @param {ClassMap} map
 * @param {Int32Array} labels of the cells, see `findInstances`
 * @param {{width: number, height: number}} field
 * @returns {Uint8Array} index into `CLASSES`
 */
export function fieldClasses(map, labels, field) {
  const kept = dilated(labels.map((label) => Math.min(label, 1)), map.width, SQUARE);
  const cell = map.cell.map((value, at) => (kept[at] ? (labels[at] ? Math.max(value, 128) : value) : 0));
  const nucleus = map.nucleus.map((value, at) => (kept[at] ? value : 0));
  const [cells, cores] = [cell, nucleus].map((plane) => interpolated(plane, map, field));
  const inside = nuclei(cells, cores);
  return cells.map((value, at) => (value >= 128 ? 1 + inside[at] : 0));
}

/**
 * Number of pixels of each class.
 * @param {Uint8Array} classes
 * @returns {Record<string, number>}
 */
export function classCounts(classes) {
  const counts = [0, 0, 0];
  for (const value of classes) counts[value]++;
  return Object.fromEntries(CLASSES.map((label, at) => [label, counts[at]]));
}

/**
 * A copy of an image with the outlines of its cells and nuclei.
 * @param {Image} image
 * @param {Uint8Array} classes
 * @returns {ImageData}
 */
export function outlined({ width, height, data }, classes) {
  const shown = new ImageData(width, height);
  for (let at = 0; at < classes.length; at++)
    shown.data.set([data[3 * at], data[3 * at + 1], data[3 * at + 2], 255], 4 * at);
  const reach = Math.max(1, roundHalfEven(Math.max(width, height) / 640));
  for (const [least, colour] of OUTLINES) {
    const outside = classes.map((value) => Number(value < least));
    // A square is a row of a column.
    const line = Array.from({ length: 2 * reach + 1 }, (_, at) => at - reach);
    const beside = dilated(outside, width, line.map((x) => [0, x]));
    const near = dilated(beside, width, line.map((y) => [y, 0]));
    near.forEach((value, at) => value && !outside[at] && shown.data.set(colour, 4 * at));
  }
  return shown;
}

/**
 * A plane in another size, interpolated as OpenCV's `INTER_LINEAR` does in fixed point.
 * @param {Uint8Array} plane
 * @param {{width: number, height: number}} from
 * @param {{width: number, height: number}} to
 */
export function interpolated(plane, from, to) {
  if (from.width === 2 * to.width && from.height === 2 * to.height) return halved(plane, from.width);
  const out = new Uint8Array(to.width * to.height);
  const across = places(from.width, to.width).map(([at, share]) => {
    if (at < 0) return [0, 0, 0];
    return at >= from.width - 1 ? [from.width - 1, from.width - 1, 0] : [at, at + 1, share];
  });
  const inside = (/** @type {number} */ y) => Math.min(Math.max(y, 0), from.height - 1);
  for (const [y, [at, share]] of places(from.height, to.height).entries()) {
    const [above, below] = [inside(at) * from.width, inside(at + 1) * from.width];
    const [first, second] = weights(share);
    for (const [x, [left, right, part]] of across.entries()) {
      const [a, b] = weights(part);
      const upper = (plane[above + left] * a + plane[above + right] * b) >> 4;
      const lower = (plane[below + left] * a + plane[below + right] * b) >> 4;
      out[y * to.width + x] = (((first * upper) >> 16) + ((second * lower) >> 16) + 2) >> 2;
    }
  }
  return out;
}

/**
 * The place before each pixel of the result, and how far it is from there.
 * @param {number} from
 * @param {number} to
 */
function places(from, to) {
  const scale = 1 / (to / from);
  return Array.from({ length: to }, (_, at) => {
    const place = Math.fround((at + 0.5) * scale - 0.5);
    return [Math.floor(place), Math.fround(place - Math.floor(place))];
  });
}

/** @param {number} share of the second value */
function weights(share) {
  return [roundHalfEven(Math.fround(1 - share) * STEPS), roundHalfEven(share * STEPS)];
}

/**
 * @param {Uint8Array} plane
 * @param {number} width
 */
function halved(plane, width) {
  const half = width / 2;
  return Uint8Array.from({ length: plane.length / 4 }, (_, at) => {
    const place = 2 * Math.trunc(at / half) * width + 2 * (at % half);
    return (plane[place] + plane[place + 1] + plane[place + width] + plane[place + width + 1] + 2) >> 2;
  });
}
