/** From an image to a prediction, and the check of the golden images. See `edge_runtime/pipeline.py`. */

import { sha256 } from "./bundle.js";
import { applyTemperature, reviewReason } from "./calibration.js";
import { BundleError } from "./errors.js";
import { decodeRgb } from "./images.js";
import { preprocess } from "./preprocess.js";

/** @typedef {import("./classifier.js").Classifier} Classifier */
/** @typedef {import("./classifier.js").Inference} Inference */

/**
 * The object of one line of `edgeall run --json`: either the prediction or an error.
 * @typedef {object} Prediction
 * @property {string} image
 * @property {string} [label]
 * @property {number} [probability]
 * @property {Record<string, number>} [probabilities]
 * @property {boolean} [review]
 * @property {string | null} [reason]
 * @property {number | null} [novelty]
 * @property {string} [error]
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
    const hint = "use another browser, or copy the file again";
    if ((await sha256(pixels)) !== pixelsSha256)
      throw new BundleError(`${name}: ${image}: preprocessing gives other pixels than where the model was packed`, hint);
    const outputs = await classifier.infer(pixels);
    const found = units ? outputs.scores : outputs.probabilities;
    const difference = Math.max(...(units ?? probabilities).map((value, at) => Math.abs(found[at] - value)));
    const tolerance = units ? 0 : FLOAT_TOLERANCE;
    if (!(difference <= tolerance)) {
      const kind = units ? "units" : "probability";
      throw new BundleError(
        `${name}: ${image}: NOT as packed, differs by ${difference} ${kind} (allowed ${tolerance})`,
        hint,
      );
    }
  }
}
