/** Computes probabilities from pixels with LiteRT.js. See `edge_runtime/network.py` and `classifier.py`. */

import { BundleError, EdgeallError } from "./errors.js";
import { probabilitiesIndex } from "./flatbuffer.js";
import { oodScore } from "./ood.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./flatbuffer.js").Tensor} Tensor */
/** @typedef {Uint8Array | Float32Array} Units raw values, in the type of their tensor */

/**
 * @typedef {object} Inference
 * @property {Units} scores the raw output
 * @property {Float32Array} probabilities
 * @property {number | null} novelty out-of-distribution score
 * @property {Units | null} units the raw second output
 */

const MAX_THREADS = 4;

/**
 * Start the runtime.
 * @param {string} folder of its files, an absolute address
 * @param {number} threads 1, or more if the page is cross-origin isolated
 * @returns {Promise<any>} LiteRT.js
 */
export async function loadRuntime(folder, threads) {
  // The golden outputs are those of the processor's kernels, so no graphics device is set up.
  Object.defineProperty(navigator, "gpu", { value: undefined, configurable: true });
  const litert = await import(`${folder}litert.js`);
  try {
    await litert.loadLiteRt(folder, { threads: threads > 1 });
  } catch (error) {
    throw new EdgeallError(`the runtime can't be started (${error})`, "update the browser, or load the page again");
  }
  return litert;
}

/** Number of threads that this page may use. */
export function possibleThreads() {
  return globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/** An open classifier. */
export class Classifier {
  /**
   * @param {Bundle} bundle
   * @param {any} litert LiteRT.js
   * @param {any} model compiled by it
   */
  constructor(bundle, litert, model) {
    this.bundle = bundle;
    this.litert = litert;
    this.model = model;
    const { graph, manifest, name } = bundle;
    const output = probabilitiesIndex(graph);
    if (output === undefined) throw new BundleError(`${name}: a packed model must end in SOFTMAX`);
    const second = graph.outputs.find((each) => each !== output);
    this.input = graph.tensors[graph.inputs[0]];
    this.output = graph.tensors[output];
    this.second = second === undefined ? null : graph.tensors[second];
    /** @type {string[]} */
    const names = model.getOutputDetails().map((/** @type {{name: string}} */ detail) => detail.name);
    this.places = [output, second].map((each) => names.findIndex((one) => graph.outputNames.get(one) === each));
    const { height, width } = manifest.input;
    const fits = this.input.shape.join() === [1, height, width, 3].join();
    const unknown = [this.input, this.output, this.second].find((each) => each && !["UINT8", "FLOAT32"].includes(each.type));
    if (unknown) throw new BundleError(`${name}: LiteRT.js takes no inputs or outputs of type ${unknown.type}`);
    if (!fits || this.places[0] < 0 || this.output.shape.at(-1) !== manifest.labels.length)
      throw new BundleError(`${name}: its inputs and outputs are not those of its manifest`);
  }

  /**
   * @param {Bundle} bundle
   * @param {any} litert
   * @param {number} threads
   */
  static async open(bundle, litert, threads) {
    const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } };
    let model;
    try {
      model = await litert.loadAndCompile(bundle.flatbuffer, options);
    } catch (error) {
      throw new BundleError(`${bundle.name}: the interpreter refuses the model (${error})`);
    }
    return new Classifier(bundle, litert, model);
  }

  /**
   * @param {Uint8Array} pixels `height * width * 3`, as `preprocess` returns
   * @returns {Promise<Inference>}
   */
  async infer(pixels) {
    const input = new this.litert.Tensor(this.#input(pixels), this.input.shape);
    const outputs = await this.model.run(input);
    input.delete();
    const [scores, units] = this.places.map((place) => outputs[place]?.toTypedArray() ?? null);
    for (const output of outputs) output.delete();
    const { oodDetector } = this.bundle;
    const probabilities = dequantized(scores, this.output);
    const novelty = oodDetector && units && this.second ? oodScore(pooled(units, this.second), oodDetector) : null;
    return { scores, probabilities, novelty, units };
  }

  /** @param {Uint8Array} pixels */
  #input(pixels) {
    if (this.input.type === "UINT8") return pixels;
    const { mean, std } = this.bundle.manifest.input;
    const [m, s] = [Math.fround(mean), Math.fround(std)];
    return Float32Array.from(pixels, (value) => Math.fround(value - m) / s);
  }
}

/**
 * Raw values as float32: `(unit - zero point) * scale` where the tensor is quantized.
 * @param {Units} units
 * @param {Tensor} tensor
 * @returns {Float32Array}
 */
export function dequantized(units, { scale, zeroPoint }) {
  if (!scale.length) return Float32Array.from(units);
  return Float32Array.from(units, (unit) => (unit - zeroPoint[0]) * scale[0]);
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
