/**
 * Images at a segmentation network's scale, bit for bit: the twin of `rescaled` and `window` in
 * `edge_runtime/preprocess.py`.
 *
 * Source: Pillow, `src/libImaging/Reduce.c`, `Convert.c`.
 */

import { crop, resizeBox } from "./preprocess.js";

/** @typedef {import("./preprocess.js").Image} Image */

/** An image is reduced to no less than this many times the wanted size before it is resized. */
const GAP = 3;
/** Pillow's `BOX`. */
const BOX = { support: 0.5, weight: (/** @type {number} */ distance) => (distance > -0.5 && distance <= 0.5 ? 1 : 0) };

/**
 * A whole field at another scale.
 * @param {Image} image
 * @param {number} width
 * @param {number} height
 * @returns {Image}
 */
export function rescaled(image, width, height) {
  const [across, down] = [Math.trunc(image.width / width / GAP) || 1, Math.trunc(image.height / height / GAP) || 1];
  return part(reduced(image, across, down), width, height, [0, 0, image.width / across, image.height / down]);
}

/**
 * A part of an image, resized; `window` in Python.
 * @param {Image} image
 * @param {number} width of the result
 * @param {number} height
 * @param {number[]} box left, top, right, bottom
 * @returns {Image}
 */
export function part(image, width, height, [left, top, right, bottom]) {
  const reach = Math.ceil(Math.max(1, (bottom - top) / height)) + 1; // of the filter
  const [first, last] = [Math.max(0, Math.floor(top) - reach), Math.min(image.height, Math.ceil(bottom) + reach)];
  const rows = crop(image, [0, first, image.width, last]);
  return resizeBox(rows, width, height, [left, top - first, right, bottom - first]);
}

/**
 * Pillow's `image.reduce((across, down))`: means of blocks; those at the right and at the bottom may be smaller.
 * @param {Image} image
 * @param {number} across
 * @param {number} down
 * @returns {Image}
 */
export function reduced(image, across, down) {
  if (across === 1 && down === 1) return image;
  const [width, height] = [Math.ceil(image.width / across), Math.ceil(image.height / down)];
  const data = new Uint8Array(width * height * 3);
  const sums = new Uint32Array(width * 3);
  for (let y = 0; y < height; y++) {
    const rows = Math.min(down, image.height - y * down);
    sums.fill(0);
    for (let row = 0; row < rows; row++) addRow(image, y * down + row, across, sums);
    for (let x = 0; x < width; x++) {
      const count = rows * Math.min(across, image.width - x * across);
      const factor = Math.trunc(Math.fround(2 ** 24 / count)); // Pillow divides so
      for (let c = 3 * x; c < 3 * x + 3; c++) data[y * width * 3 + c] = ((sums[c] + (count >> 1)) * factor) / 2 ** 24;
    }
  }
  return { width, height, data };
}

/**
 * @param {Image} image
 * @param {number} y
 * @param {number} across
 * @param {Uint32Array} sums
 */
function addRow({ width, data }, y, across, sums) {
  for (let x = 0, at = y * width * 3; x < width; x++, at += 3) {
    const to = 3 * Math.trunc(x / across);
    sums[to] += data[at];
    sums[to + 1] += data[at + 1];
    sums[to + 2] += data[at + 2];
  }
}

/**
 * The grey of an image, as means of boxes.
 * @param {Image} image
 * @param {number} side of the result
 * @returns {Uint8Array} `side * side`
 */
export function greyBoxes({ width, height, data }, side) {
  const grey = new Uint8Array(data.length);
  for (let at = 0; at < data.length; at += 3)
    grey.fill((data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16, at, at + 3);
  const small = resizeBox({ width, height, data: grey }, side, side, [0, 0, width, height], BOX);
  return small.data.filter((_, at) => at % 3 === 0);
}
