/** An open model of any task: pixels to raw outputs with LiteRT.js. See `edge_runtime/network.py`. */

import { BundleError, EdgeallError } from "./errors.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./flatbuffer.js").Tensor} Tensor */
/** @typedef {Uint8Array | Float32Array} Units raw values, in the type of their tensor */

const MAX_THREADS = 4;

/** @type {Promise<any> | undefined} */
let runtime;

/**
 * The runtime, which the first call starts.
 * @returns {Promise<any>} LiteRT.js
 */
export function startedRuntime() {
  if (!runtime) {
    runtime = loadRuntime(new URL("runtime/", self.location.href).href, possibleThreads());
    runtime.catch(() => {}); // a model that is refused is the more important error
  }
  return runtime;
}

/**
 * @param {string} folder of its files, an absolute address
 * @param {number} threads 1, or more if the page is cross-origin isolated
 * @returns {Promise<any>} LiteRT.js
 */
async function loadRuntime(folder, threads) {
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

/** A model that the runtime has compiled. */
export class Network {
  /**
   * @param {Bundle} bundle
   * @param {any} litert LiteRT.js
   * @param {any} model compiled by it
   * @param {number[]} outputs the tensors of the wanted outputs
   */
  constructor(bundle, litert, model, outputs) {
    this.litert = litert;
    this.model = model;
    const { graph, manifest, name } = bundle;
    this.spec = manifest.input;
    this.input = graph.tensors[graph.inputs[0]];
    this.outputs = outputs.map((each) => graph.tensors[each]);
    /** @type {string[]} */
    const names = model.getOutputDetails().map((/** @type {{name: string}} */ detail) => detail.name);
    this.places = outputs.map((each) => names.findIndex((one) => graph.outputNames.get(one) === each));
    const unknown = [this.input, ...this.outputs].find((each) => !["UINT8", "FLOAT32"].includes(each.type));
    if (unknown) throw new BundleError(`${name}: LiteRT.js takes no inputs or outputs of type ${unknown.type}`);
    const { height, width } = this.spec;
    if (this.input.shape.join() !== [1, height, width, 3].join() || this.places.some((place) => place < 0))
      throw otherOutputs(name);
  }

  /**
   * @param {Bundle} bundle
   * @param {any} litert
   * @param {number} threads
   * @param {number[]} outputs
   */
  static async open(bundle, litert, threads, outputs) {
    const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } };
    let model;
    try {
      model = await litert.loadAndCompile(bundle.flatbuffer, options);
    } catch (error) {
      throw new BundleError(`${bundle.name}: the interpreter refuses the model (${error})`);
    }
    return new Network(bundle, litert, model, outputs);
  }

  /**
   * @param {Uint8Array} pixels `height * width * 3`, as `preprocess` returns
   * @returns {Promise<Units[]>} the wanted outputs
   */
  async run(pixels) {
    const input = new this.litert.Tensor(this.#units(pixels), this.input.shape);
    const outputs = await this.model.run(input);
    input.delete();
    const units = this.places.map((place) => outputs[place].toTypedArray());
    for (const output of outputs) output.delete();
    return units;
  }

  /** @param {Uint8Array} pixels */
  #units(pixels) {
    if (this.input.type === "UINT8") return pixels;
    const [m, s] = [Math.fround(this.spec.mean), Math.fround(this.spec.std)];
    return Float32Array.from(pixels, (value) => Math.fround(value - m) / s);
  }
}

/** @param {string} name of the model's file */
export function otherOutputs(name) {
  return new BundleError(`${name}: its inputs and outputs are not those of its manifest`);
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
