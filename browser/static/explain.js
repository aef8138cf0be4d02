/** Class-activation maps: the regions of an image that support its label. See `edge_runtime/tools/explain.py`. */

import { OP, producer } from "./flatbuffer.js";
import { dequantized } from "./network.js";

/** @typedef {import("./classifier.js").Classifier} Classifier */
/** @typedef {import("./flatbuffer.js").Graph} Graph */

const HIGHLIGHT = [255, 90, 0];
/** Opacity of the highlight at the maximum of the map. */
const STRONGEST = 0.55;

/**
 * The model's input with the positive part of the label's map as a highlight.
 * @param {Classifier} classifier of a model with a feature map
 * @param {Uint8Array} pixels the model's input
 * @param {import("./classifier.js").Inference} outputs
 * @param {string} label
 * @returns {Promise<ImageBitmap | null>} null if the model does not end in a dense layer
 */
export async function activationMap(classifier, pixels, outputs, label) {
  const { bundle, second } = classifier;
  const weights = denseWeights(bundle.graph, bundle.manifest.labels.indexOf(label));
  if (!weights || !second || !outputs.units) return null;
  const [, rows, columns, features] = second.shape;
  const map = evidence(dequantized(outputs.units, second), weights, rows * columns, features);
  const { width, height } = bundle.manifest.input;
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const picture = new ImageData(width, height);
  for (let at = 0; at < width * height; at++)
    picture.data.set([pixels[3 * at], pixels[3 * at + 1], pixels[3 * at + 2], 255], 4 * at);
  context.putImageData(picture, 0, 0);
  const strongest = Math.max(1e-9, ...map);
  const highlight = new ImageData(columns, rows);
  map.forEach((value, at) => {
    highlight.data.set([...HIGHLIGHT, (255 * STRONGEST * Math.max(0, value)) / strongest], 4 * at);
  });
  context.imageSmoothingQuality = "high";
  context.drawImage(await createImageBitmap(highlight), 0, 0, width, height);
  return canvas.transferToImageBitmap();
}

/**
 * The map of one label: its spatial mean plus the bias is the logit.
 * @param {Float32Array} values `places * features`
 * @param {Float32Array} weights
 * @param {number} places
 * @param {number} features
 */
export function evidence(values, weights, places, features) {
  const map = new Float32Array(places);
  for (let place = 0; place < places; place++) {
    let sum = 0;
    for (let feature = 0; feature < features; feature++) sum += values[place * features + feature] * weights[feature];
    map[place] = sum;
  }
  return map;
}

/**
 * The weights of one label in the dense layer before the softmax.
 * @param {Graph} graph
 * @param {number} label
 * @returns {Float32Array | null} null if there is no such layer, or its weights are not int8 or float32
 */
function denseWeights(graph, label) {
  const softmax = graph.operators.find(({ code }) => code === OP.SOFTMAX);
  let operator = softmax && producer(graph, softmax.inputs[0]);
  while (operator && [OP.DEQUANTIZE, OP.QUANTIZE, OP.RESHAPE].includes(operator.code))
    operator = producer(graph, operator.inputs[0]);
  if (operator?.code !== OP.FULLY_CONNECTED) return null;
  const { constant, type, scale, shape } = graph.tensors[operator.inputs[1]];
  const [, features] = shape;
  const bytes = constant.slice().buffer; // aligned
  if (type === "FLOAT32") return new Float32Array(bytes).subarray(label * features, (label + 1) * features);
  if (type !== "INT8") return null;
  const row = new Int8Array(bytes).subarray(label * features, (label + 1) * features);
  return Float32Array.from(row, (value) => value * (scale[label] ?? scale[0]));
}
