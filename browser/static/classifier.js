/** Computes probabilities from pixels. See `edge_runtime/classifier.py`. */

import { BundleError } from "./errors.js";
import { probabilitiesIndex } from "./flatbuffer.js";
import { dequantized, Network, otherOutputs } from "./network.js";
import { oodScore } from "./ood.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./flatbuffer.js").Tensor} Tensor */
/** @typedef {import("./network.js").Units} Units */

/**
 * @typedef {object} Inference
 * @property {Units} scores the raw output
 * @property {Float32Array} probabilities
 * @property {number | null} novelty out-of-distribution score
 * @property {Units | null} units the raw second output
 */

/** An open classifier. */
export class Classifier {
  /**
   * @param {Bundle} bundle
   * @param {Network} network
   */
  constructor(bundle, network) {
    this.bundle = bundle;
    this.network = network;
    this.output = network.outputs[0];
    this.second = network.outputs[1] ?? null;
    if (this.output.shape.at(-1) !== bundle.manifest.labels.length) throw otherOutputs(bundle.name);
  }

  /**
   * @param {Bundle} bundle
   * @param {any} litert LiteRT.js
   * @param {number} threads
   */
  static async open(bundle, litert, threads) {
    const output = probabilitiesIndex(bundle.graph);
    if (output === undefined) throw new BundleError(`${bundle.name}: a packed model must end in SOFTMAX`);
    const outputs = [output, ...bundle.graph.outputs.filter((each) => each !== output)];
    return new Classifier(bundle, await Network.open(bundle, litert, threads, outputs));
  }

  /**
   * @param {Uint8Array} pixels `height * width * 3`, as `preprocess` returns
   * @returns {Promise<Inference>}
   */
  async infer(pixels) {
    const [scores, units = null] = await this.network.run(pixels);
    const { oodDetector } = this.bundle;
    const probabilities = dequantized(scores, this.output);
    const novelty = oodDetector && units && this.second ? oodScore(pooled(units, this.second), oodDetector) : null;
    return { scores, probabilities, novelty, units };
  }
}

/**
 * The features of an image: the spatial mean of a map, summed before dequantization.
 * @param {Units} units
 * @param {Tensor} tensor
 */
function pooled(units, tensor) {
  const features = /** @type {number} */ (tensor.shape.at(-1));
  const places = units.length / features;
  if (places === 1) return dequantized(units, tensor);
  const sums = new Float32Array(features);
  for (let at = 0; at < units.length; at++) sums[at % features] += units[at];
  return dequantized(sums.map((sum) => sum / places), tensor);
}
