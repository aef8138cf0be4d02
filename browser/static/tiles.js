/**
 * Runs a segmentation network over a field: at the network's scale, in overlapping tiles, blended. See
 * `edge_runtime/vision/tiles.py`: the sums are those of its float32 numbers, in the same order.
 */

import { ImageError } from "./errors.js";
import { roundHalfEven } from "./numbers.js";
import { crop } from "./preprocess.js";
import { rescaled } from "./scaling.js";

/** @typedef {import("./preprocess.js").Image} Image */

/**
 * @typedef {object} Tile a network's outputs for one tile
 * @property {Uint8Array} probabilities of background, cytoplasm and nucleus, for each pixel
 * @property {number} redCell log2 of the red cells' diameter over that of the network's training
 */

/**
 * @typedef {object} TileSegmenter
 * @property {number} size of the square input
 * @property {number} redCellPx diameter of a red cell that the network was trained with
 * @property {(pixels: Uint8Array) => Promise<Tile>} infer
 */

/**
 * @typedef {object} ClassMap the probabilities of a field's classes at the network's scale
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} cell of cytoplasm or nucleus
 * @property {Uint8Array} nucleus
 * @property {[number, number]} zoom pixels of the map per pixel of the field
 * @property {number[]} redCells `Tile.redCell` of each tile
 */

const OVERLAP = 64;
/** Outermost pixels of a tile, which count only where no other tile has them. */
const EDGE = 6;
const LEAST_WEIGHT = 1e-3;
const MOST_PIXELS = 64_000_000;

/**
 * @param {Image} field
 * @param {TileSegmenter} segmenter
 * @param {number} redCellPx diameter of a red cell in the field
 * @returns {Promise<ClassMap>}
 */
export async function segmentField(field, segmenter, redCellPx) {
  const zoom = segmenter.redCellPx / redCellPx;
  const width = Math.max(1, roundHalfEven(field.width * zoom));
  const height = Math.max(1, roundHalfEven(field.height * zoom));
  if (width * height > MOST_PIXELS)
    throw new ImageError(
      `a field of ${field.width}x${field.height} with red cells of ${redCellPx.toFixed(1)} px is too large to search`,
      "check the scale; or cut the field into parts",
    );
  const { image, left, top } = padded(rescaled(field, width, height), segmenter.size);
  const { cell, nucleus, redCells } = await blend(image, segmenter);
  const inside = (/** @type {Uint8Array} */ plane) => cut(plane, image.width, left, top, width, height);
  const zooms = /** @type {[number, number]} */ ([width / field.width, height / field.height]);
  return { width, height, cell: inside(cell), nucleus: inside(nucleus), zoom: zooms, redCells };
}

/**
 * Mirror an image at its borders until it is at least `size` high and wide; and its corner in it.
 * @param {Image} image
 * @param {number} size
 * @returns {{image: Image, left: number, top: number}}
 */
export function padded(image, size) {
  const [width, height] = [Math.max(size, image.width), Math.max(size, image.height)];
  const [left, top] = [(width - image.width) >> 1, (height - image.height) >> 1];
  if (width === image.width && height === image.height) return { image, left, top };
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    const row = mirrored(y - top, image.height) * image.width;
    for (let x = 0; x < width; x++, to += 3) {
      const from = 3 * (row + mirrored(x - left, image.width));
      data[to] = image.data[from];
      data[to + 1] = image.data[from + 1];
      data[to + 2] = image.data[from + 2];
    }
  }
  return { image: { width, height, data }, left, top };
}

/**
 * @param {number} at
 * @param {number} length
 */
function mirrored(at, length) {
  const place = ((at % (2 * length)) + 2 * length) % (2 * length);
  return place < length ? place : 2 * length - 1 - place;
}

/**
 * Where tiles begin that cover a length, evenly spread.
 * @param {number} length
 * @param {number} size
 */
export function starts(length, size) {
  const count = Math.max(1, Math.ceil((length - OVERLAP) / (size - OVERLAP)));
  if (count === 1) return [0];
  const step = (length - size) / (count - 1);
  return Array.from({ length: count }, (_, at) => (at === count - 1 ? length - size : roundHalfEven(at * step)));
}

/**
 * The probabilities of cell and nucleus. Holds one row of tiles in float at a time.
 * @param {Image} image at least as large as a tile
 * @param {TileSegmenter} segmenter
 */
async function blend(image, segmenter) {
  const { width, height } = image;
  const { size } = segmenter;
  const [tops, lefts] = [starts(height, size), starts(width, size)];
  const [cell, nucleus] = [new Uint8Array(width * height), new Uint8Array(width * height)];
  /** @type {number[]} */
  const redCells = [];
  const weight = weights(size);
  const [across, down] = [total(weight, lefts, width), total(weight, tops, height)];
  const bands = [new Float32Array(size * width), new Float32Array(size * width)];
  for (const [at, top] of tops.entries()) {
    for (const left of lefts) {
      const tile = await segmenter.infer(crop(image, [left, top, left + size, top + size]).data);
      redCells.push(tile.redCell);
      add(tile.probabilities, weight, left, width, bands);
    }
    const done = (tops[at + 1] ?? height) - top;
    for (let y = 0; y < done; y++) {
      for (let x = 0; x < width; x++) {
        const sum = Math.fround(down[top + y] * across[x]);
        cell[(top + y) * width + x] = roundHalfEven(Math.fround(bands[0][y * width + x] / sum));
        nucleus[(top + y) * width + x] = roundHalfEven(Math.fround(bands[1][y * width + x] / sum));
      }
    }
    for (const band of bands) {
      band.copyWithin(0, done * width);
      band.fill(0, (size - done) * width);
    }
  }
  return { cell, nucleus, redCells };
}

/**
 * @param {Uint8Array} probabilities of a tile
 * @param {Float32Array} weight
 * @param {number} left of the tile
 * @param {number} width of the bands
 * @param {Float32Array[]} bands cell and nucleus
 */
function add(probabilities, weight, left, width, [cells, nuclei]) {
  const size = weight.length;
  for (let y = 0, from = 0; y < size; y++) {
    for (let x = 0, to = y * width + left; x < size; x++, to++, from += 3) {
      const both = Math.fround(weight[y] * weight[x]);
      const cell = 255 - probabilities[from];
      cells[to] += Math.fround(both * cell);
      nuclei[to] += Math.fround(both * Math.min(probabilities[from + 2], cell));
    }
  }
}

/**
 * The weight of each row or column of a tile.
 * @param {number} size
 */
function weights(size) {
  return Float32Array.from({ length: size }, (_, at) => {
    const inwards = Math.min(at, size - 1 - at);
    return Math.min(1, Math.max(LEAST_WEIGHT, (inwards - EDGE + 1) / Math.max(OVERLAP - 2 * EDGE, 1)));
  });
}

/**
 * The sum of the weights of all tiles along one axis.
 * @param {Float32Array} weight
 * @param {number[]} begins
 * @param {number} length
 */
function total(weight, begins, length) {
  const sum = new Float32Array(length);
  for (const begin of begins) weight.forEach((value, at) => (sum[begin + at] += value));
  return sum;
}

/**
 * A part of a plane of bytes.
 * @param {Uint8Array} plane
 * @param {number} stride
 * @param {number} left
 * @param {number} top
 * @param {number} width
 * @param {number} height
 */
export function cut(plane, stride, left, top, width, height) {
  const out = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const at = (top + y) * stride + left;
    out.set(plane.subarray(at, at + width), y * width);
  }
  return out;
}
