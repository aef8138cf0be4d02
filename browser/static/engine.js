/** What the worker does for the page: open and verify the model, classify files and frames. */

import { openBundle } from "./bundle.js";
import { Classifier, loadRuntime, possibleThreads } from "./classifier.js";
import { EdgeallError, ImageError } from "./errors.js";
import { activationMap } from "./explain.js";
import { decodeRgb, fromSource } from "./images.js";
import { checkGolden, prediction } from "./pipeline.js";
import { preprocess } from "./preprocess.js";

/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {import("./pipeline.js").Prediction} Prediction */

/** @type {Classifier | undefined} */
let classifier;

const RUNTIME = new URL("runtime/", self.location.href).href;

/**
 * Open the model, and check it before its first answer.
 * @param {{model: string, publicKey: string | null}} values the model's address; see `openBundle`
 */
async function start({ model, publicKey }) {
  const threads = possibleThreads();
  const runtime = loadRuntime(RUNTIME, threads);
  runtime.catch(() => {}); // a model that is refused is the more important error
  const response = await fetch(model);
  const file = model.split("/").at(-1) ?? model;
  if (!response.ok) throw new EdgeallError(`${file}: can't be loaded (${response.status})`, "load the page again");
  const bundle = await openBundle(new Uint8Array(await response.arrayBuffer()), file, publicKey);
  const opened = await Classifier.open(bundle, await runtime, threads);
  await checkGolden(opened);
  classifier = opened;
  const { name, created, unit, labels, flatbufferSha256: digest } = bundle.manifest;
  const { golden, signed } = bundle;
  const facts = { name, created, unit, labels, digest, golden: golden.length, signed, threads, explains: explains() };
  return { result: facts };
}

function explains() {
  return classifier?.second?.shape.length === 4;
}

/**
 * @param {{name: string, file: Blob, explain?: boolean}} values
 */
async function classifyFile({ name, file, explain = false }) {
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    return await classify(await decodeRgb(bytes, name), name, explain);
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    return { result: { prediction: { image: name, error: error.message } } };
  }
}

/**
 * @param {{name: string, frame: ImageBitmap, explain?: boolean}} values the frame is closed
 */
async function classifyFrame({ name, frame, explain = false }) {
  const image = fromSource(frame);
  frame.close();
  return classify(image, name, explain);
}

/**
 * @param {Image} image
 * @param {string} name
 * @param {boolean} explain
 */
async function classify(image, name, explain) {
  if (!classifier) throw new EdgeallError("the model is not open");
  const begun = performance.now();
  const pixels = preprocess(image, classifier.bundle.manifest.input);
  const prepared = performance.now();
  const outputs = await classifier.infer(pixels);
  const milliseconds = { preprocess: prepared - begun, model: performance.now() - prepared };
  const found = prediction(classifier, name, outputs);
  const map = explain && explains() && found.label ? await activationMap(classifier, pixels, outputs, found.label) : null;
  return { result: { prediction: found, scores: Array.from(outputs.scores), milliseconds, map }, move: map ? [map] : [] };
}

/** By the name in the page's message. */
export const tasks = { start, classifyFile, classifyFrame };
