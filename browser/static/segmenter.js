/** Opens a segmentation model of cells. See `edge_runtime/segmenter.py` and `open_finder` in `vision/finder.py`. */

import { BundleError } from "./errors.js";
import { decodeRgb } from "./images.js";
import { CLASSES } from "./masks.js";
import { roundHalfEven } from "./numbers.js";
import { dequantized, Network, otherOutputs } from "./network.js";
import { checkPixels, notAsPacked } from "./pipeline.js";
import { preprocess } from "./preprocess.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./tiles.js").Tile} Tile */

/** Probabilities are given in units of 1/256. */
const STEPS = 256;
/** The grey of each class in a mask's file. */
const GREYS = [0, 128, 255];

/** An open segmentation model of cells. */
export class Segmenter {
  /**
   * @param {Bundle} bundle
   * @param {Network} network
   */
  constructor(bundle, network) {
    const { name, manifest } = bundle;
    const [mask, redCell] = network.outputs;
    this.bundle = bundle;
    this.network = network;
    this.size = manifest.input.width;
    this.redCellPx = manifest.redCellPx;
    if (mask.shape.join() !== [1, this.size, this.size, CLASSES.length].join() || redCell.shape.some((each) => each !== 1))
      throw otherOutputs(name);
    if (mask.type === "UINT8" && (mask.zeroPoint[0] || Math.abs(mask.scale[0] * STEPS - 1) > 1e-6))
      throw new BundleError(`${name}: the probabilities of an integer model must be uint8 in units of 1/256`);
  }

  /**
   * @param {Bundle} bundle
   * @param {any} litert LiteRT.js
   * @param {number} threads
   */
  static async open(bundle, litert, threads) {
    const { name, manifest, graph } = bundle;
    const { width, height } = manifest.input;
    if (manifest.labels.join() !== CLASSES.join() || width !== height)
      throw new BundleError(
        `${name}: its classes are ${manifest.labels.join(", ")} in ${width}x${height} pixels; finding cells needs` +
          ` ${CLASSES.join(", ")} in a square`,
      );
    const mask = graph.outputs.find((each) => graph.tensors[each].shape.length === 4);
    if (mask === undefined || graph.outputs.length !== 2)
      throw new BundleError(`${name}: a segmentation model has two outputs, a mask and the size of a red cell`);
    const outputs = [mask, ...graph.outputs.filter((each) => each !== mask)];
    return new Segmenter(bundle, await Network.open(bundle, litert, threads, outputs));
  }

  /**
   * Segment one tile.
   * @param {Uint8Array} pixels `size * size * 3`
   * @returns {Promise<Tile>}
   */
  async infer(pixels) {
    const [mask, second] = await this.network.run(pixels);
    const [redCell] = dequantized(second, this.network.outputs[1]);
    if (mask instanceof Uint8Array) return { probabilities: mask, redCell };
    if (!Number.isFinite(redCell) || !mask.every(Number.isFinite))
      throw new BundleError(`${this.bundle.name}: its outputs are not finite numbers`);
    return { probabilities: Uint8Array.from(mask, inSteps), redCell };
  }
}

/** @param {number} probability */
function inSteps(probability) {
  return Math.min(Math.max(roundHalfEven(probability * STEPS), 0), STEPS - 1);
}

/**
 * Refuse a model whose golden images come out otherwise in this browser: the golden class of a pixel must be the most
 * probable one, and the size of the red cells the same.
 * @param {Segmenter} segmenter
 * @throws {BundleError} names the image
 */
export async function checkGoldenMasks(segmenter) {
  const { golden, manifest, name } = segmenter.bundle;
  const [, second] = segmenter.network.outputs;
  for (const { name: image, image: file, pixelsSha256, mask, redCell } of golden) {
    if (!mask) continue;
    const pixels = preprocess(await decodeRgb(file, image), manifest.input);
    await checkPixels(pixels, pixelsSha256, name, image);
    const found = await segmenter.infer(pixels);
    const expected = (await decodeRgb(mask, image)).data;
    let behind = 0;
    for (let at = 0; at < expected.length; at += 3) {
      const units = found.probabilities.subarray(at, at + 3);
      behind = Math.max(behind, Math.max(...units) - units[GREYS.indexOf(expected[at])]);
    }
    const apart = Math.abs(found.redCell - redCell) / (second.scale[0] ?? 1 / STEPS);
    const tolerance = second.type === "FLOAT32" ? 1 : 0;
    const difference = Math.max(behind, rounded3(apart));
    if (expected.length !== found.probabilities.length || !(difference <= tolerance))
      throw notAsPacked(name, image, difference, "units", tolerance);
  }
}

/** @param {number} value */
function rounded3(value) {
  return Math.round(1000 * value) / 1000;
}
