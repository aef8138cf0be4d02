/** Temperature calibration, and the rule that sends an image to review. See `edge_runtime/calibration.py`. */

/** @typedef {import("./manifest.js").Manifest} Manifest */

/** Probability that stands for an 8-bit output of 0, which is anything below half a unit. */
const FLOOR = 1 / 512;

/**
 * @param {Float32Array} probabilities
 * @param {number} temperature
 * @returns {Float32Array}
 */
export function applyTemperature(probabilities, temperature) {
  if (temperature === 1) return probabilities;
  const logits = probabilities.map((value) => Math.fround(Math.log(Math.max(value, FLOOR))) / Math.fround(temperature));
  const largest = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(Math.fround(value - largest)));
  const sum = Math.fround(powers.reduce((total, value) => total + value, 0));
  return powers.map((value) => value / sum);
}

/**
 * Why an image needs review: `unfamiliar` (out-of-distribution, so its label is meaningless) or `uncertain`.
 * @param {Manifest} manifest
 * @param {number} probability of the label, calibrated
 * @param {number | null} novelty out-of-distribution score
 * @returns {"unfamiliar" | "uncertain" | null}
 */
export function reviewReason(manifest, probability, novelty) {
  if (novelty !== null && novelty > 1) return "unfamiliar";
  return probability < manifest.reviewBelow ? "uncertain" : null;
}
