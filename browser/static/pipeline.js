/** From an image to a prediction, and the check of the golden images. See `edge_runtime/pipeline.py`. */

import { sha256 } from "./bundle.js";
import { applyTemperature, reviewReason } from "./calibration.js";
import { BundleError } from "./errors.js";
import { decodeRgb } from "./images.js";
import { preprocess } from "./preprocess.js";

/** @typedef {import("./classifier.js").Classifier} Classifier */
/** @typedef {import("./classifier.js").Inference} Inference */

/**
 * The object of one line of `edgeall run --json`: either the prediction or an error. Of a segmentation model it has no
 * label, but the number of pixels of each class.
 * @typedef {object} Prediction
 * @property {string} image
 * @property {string} [label]
 * @property {number} [probability]
 * @property {Record<string, number>} [probabilities]
 * @property {boolean} [review]
 * @property {string | null} [reason]
 * @property {number | null} [novelty]
 * @property {string} [error]
 * @property {Record<string, number>} [pixels]
 * @property {import("./finder.js").Cell[] | null} [cells] of `edgeall cells --json`, if they were looked for; null: the
 *   image could not be searched, see the warnings
 * @property {import("./finder.js").Found["scale"] | null} [scale]
 * @property {string[]} [warnings]
 */

/** Tolerance of a probability, for float outputs: the order of additions differs between processors. */
const FLOAT_TOLERANCE = 1e-5;

/**
 * @param {Classifier} classifier
 * @param {string} image its name
 * @param {Inference} outputs
 * @returns {Prediction}
 */
export function prediction(classifier, image, outputs) {
  if (!outputs.probabilities.every(Number.isFinite))
    return { image, error: `${image}: the model's outputs for it are not finite numbers` };
  const { manifest } = classifier.bundle;
  const probabilities = applyTemperature(outputs.probabilities, manifest.temperature);
  const probability = Math.max(...probabilities);
  const reason = reviewReason(manifest, probability, outputs.novelty);
  return {
    image,
    label: manifest.labels[probabilities.indexOf(probability)],
    probability,
    probabilities: Object.fromEntries(manifest.labels.map((label, at) => [label, probabilities[at]])),
    review: reason !== null,
    reason,
    novelty: outputs.novelty,
  };
}

/**
 * Refuse a model whose golden images come out otherwise in this browser.
 * @param {Classifier} classifier
 * @throws {BundleError} names the image
 */
export async function checkGolden(classifier) {
  const { golden, manifest, name } = classifier.bundle;
  for (const { name: image, image: file, pixelsSha256, units, probabilities } of golden) {
    const pixels = preprocess(await decodeRgb(file, image), manifest.input);
    await checkPixels(pixels, pixelsSha256, name, image);
    const outputs = await classifier.infer(pixels);
    const found = units ? outputs.scores : outputs.probabilities;
    const difference = Math.max(...(units ?? probabilities).map((value, at) => Math.abs(found[at] - value)));
    const tolerance = units ? 0 : FLOAT_TOLERANCE;
    if (!(difference <= tolerance)) throw notAsPacked(name, image, difference, units ? "units" : "probability", tolerance);
  }
}

const HINT = "use another browser, or copy the file again";

/**
 * @param {Uint8Array} pixels of a golden image
 * @param {string} expected their SHA-256
 * @param {string} name of the model's file
 * @param {string} image
 */
export async function checkPixels(pixels, expected, name, image) {
  if ((await sha256(pixels)) !== expected)
    throw new BundleError(`${name}: ${image}: preprocessing gives other pixels than where the model was packed`, HINT);
}

/**
 * @param {string} name of the model's file
 * @param {string} image
 * @param {number} difference
 * @param {string} unit
 * @param {number} tolerance
 */
export function notAsPacked(name, image, difference, unit, tolerance) {
  return new BundleError(
    `${name}: ${image}: NOT as packed, differs by ${difference} ${unit} (allowed ${tolerance})`,
    HINT,
  );
}
