/** Out-of-distribution detector: the distance of features from the plane of the training images. See `edge_runtime/ood.py`. */

import { BundleError } from "./errors.js";

/**
 * @typedef {object} OodDetector
 * @property {Float32Array} mean
 * @property {Float32Array[]} axes
 * @property {number} threshold squared distance above which an image is out-of-distribution
 */

/** Avoids a division by zero if all features are zero. */
const TINY = 1e-6;

/**
 * @param {Record<string, any>} facts the manifest's `novelty`
 * @param {Uint8Array} content int8, the mean and then the axes
 * @param {string} name of the file, for errors
 * @returns {OodDetector}
 */
export function readOodDetector({ features, scales, threshold }, content, name) {
  const valid = Array.isArray(scales) && scales.length && scales.every(Number.isFinite) && threshold > 0 && features > 0;
  if (!valid || content.length !== scales.length * features)
    throw new BundleError(`${name}: its novelty score is not what \`edgeall quantize\` writes`, "quantize the run again");
  const stored = new Int8Array(content.buffer, content.byteOffset, content.length);
  const rows = scales.map((/** @type {number} */ scale, /** @type {number} */ row) =>
    Float32Array.from(stored.subarray(row * features, (row + 1) * features), (value) => value * scale),
  );
  return { mean: rows[0], axes: rows.slice(1), threshold };
}

/**
 * The score of one image: above 1 it is out-of-distribution.
 * @param {Float32Array} features
 * @param {OodDetector} detector
 */
export function oodScore(features, { mean, axes, threshold }) {
  let sum = 0;
  for (const value of features) sum += Math.abs(value);
  const length = Math.max(Math.sqrt(sum), TINY);
  const offset = features.map((value, at) => (Math.sign(value) * Math.sqrt(Math.abs(value))) / length - mean[at]);
  let distance = dot(offset, offset);
  for (const axis of axes) distance -= dot(offset, axis) ** 2;
  return Math.fround(distance) / threshold;
}

/**
 * @param {Float32Array} a
 * @param {Float32Array} b
 */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
