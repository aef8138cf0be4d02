/** What the worker does for the page: open and verify the models, classify files and frames, find cells. */

import { openBundle, sha256 } from "./bundle.js";
import { Classifier } from "./classifier.js";
import { BundleError, EdgeallError, ImageError } from "./errors.js";
import { activationMap } from "./explain.js";
import { findCells } from "./finder.js";
import { decodeRgb, fromSource } from "./images.js";
import { classCounts, outlined } from "./masks.js";
import { possibleThreads, startedRuntime } from "./network.js";
import { checkGolden, prediction } from "./pipeline.js";
import { preprocess } from "./preprocess.js";
import { givenScale } from "./scale.js";
import { checkGoldenMasks, Segmenter } from "./segmenter.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {import("./pipeline.js").Prediction} Prediction */

/**
 * @typedef {object} Wanted what is wanted of an image
 * @property {boolean} [explain] the class-activation map
 * @property {{redCellPx: number | null} | null} [cells] its cells; null measures the scale
 */

/** @type {Classifier | undefined} */
let classifier;
/** @type {(() => Promise<Segmenter>) | undefined} */
let finder;

/**
 * Open the model, and check it before its first answer. A segmentation model finds the cells itself; beside a
 * classifier, the digest of the model of cells is checked here, and its golden images before it is used.
 * @param {{model: string, publicKey: string | null, cells: {model: string, sha256: string} | null}} values the
 *   addresses; see `openBundle`. The model of cells belongs to the page, which knows its digest.
 */
async function start({ model, publicKey, cells }) {
  const { name: file, content } = await fetched(model);
  const bundle = await openBundle(content, file, publicKey);
  const { task, name, created, unit, labels, flatbufferSha256: digest } = bundle.manifest;
  const cellsBundle = task === "segmentation" ? bundle : await cellBundle(cells);
  const [litert, threads] = [await startedRuntime(), possibleThreads()];
  finder = once(() => openFinder(cellsBundle, litert, threads));
  if (task === "segmentation") await finder();
  else classifier = await openClassifier(bundle, litert, threads);
  const facts = { task, name, created, unit, labels, digest, golden: bundle.golden.length, signed: bundle.signed };
  const finderFacts = { digest: cellsBundle.manifest.flatbufferSha256, golden: cellsBundle.golden.length };
  return { result: { ...facts, threads, explains: explains(), cells: finderFacts } };
}

/** Open the model of cells, and check its golden images, if that was not done yet. */
async function openCells() {
  if (!finder) throw new EdgeallError("the model is not open");
  await finder();
  return { result: null };
}

/**
 * @param {Bundle} bundle
 * @param {any} litert
 * @param {number} threads
 */
async function openClassifier(bundle, litert, threads) {
  const opened = await Classifier.open(bundle, litert, threads);
  await checkGolden(opened);
  return opened;
}

/**
 * @param {Bundle} bundle
 * @param {any} litert
 * @param {number} threads
 */
async function openFinder(bundle, litert, threads) {
  const opened = await Segmenter.open(bundle, litert, threads);
  await checkGoldenMasks(opened);
  return opened;
}

/**
 * @template T
 * @param {() => Promise<T>} make
 * @returns {() => Promise<T>} calls it at most once
 */
function once(make) {
  /** @type {Promise<T> | undefined} */
  let made;
  return () => (made ??= make());
}

/**
 * The model of cells that belongs to the page.
 * @param {{model: string, sha256: string} | null} cells
 */
async function cellBundle(cells) {
  if (!cells) throw new EdgeallError("the model of cells is missing from this page", "copy the page again");
  const { name, content } = await fetched(cells.model);
  if ((await sha256(content)) !== cells.sha256)
    throw new BundleError(`${name}: not the model of cells of this page`, "copy the page again");
  return openBundle(content, name, null);
}

/** @param {string} address */
async function fetched(address) {
  const name = address.split("/").at(-1) ?? address;
  const response = await fetch(address);
  if (!response.ok) throw new EdgeallError(`${name}: can't be loaded (${response.status})`, "load the page again");
  return { name, content: new Uint8Array(await response.arrayBuffer()) };
}

function explains() {
  return classifier?.second?.shape.length === 4;
}

/**
 * @param {{name: string, file: Blob} & Wanted} values
 */
async function classifyFile({ name, file, ...wanted }) {
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    return await classify(await decodeRgb(bytes, name), name, wanted);
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    return { result: { prediction: { image: name, error: error.message } } };
  }
}

/**
 * @param {{name: string, frame: ImageBitmap} & Wanted} values the frame is closed
 */
async function classifyFrame({ name, frame, ...wanted }) {
  const image = fromSource(frame);
  frame.close();
  return classify(image, name, wanted);
}

/**
 * @param {Image} image
 * @param {string} name
 * @param {Wanted} wanted
 */
async function classify(image, name, { explain = false, cells = null }) {
  if (!classifier) return segment(image, name, cells);
  const begun = performance.now();
  const pixels = preprocess(image, classifier.bundle.manifest.input);
  const prepared = performance.now();
  const outputs = await classifier.infer(pixels);
  const answered = performance.now();
  const found = prediction(classifier, name, outputs);
  const map = explain && explains() && found.label ? await activationMap(classifier, pixels, outputs, found.label) : null;
  const mapped = performance.now();
  if (cells) Object.assign(found, await cellsOf(image, cells));
  const milliseconds = {
    preprocess: prepared - begun,
    model: answered - prepared,
    cells: cells ? performance.now() - mapped : null,
  };
  return { result: { prediction: found, scores: Array.from(outputs.scores), milliseconds, map }, move: map ? [map] : [] };
}

/**
 * The cells of an image; none, and the reason as a warning, if it cannot be searched.
 * @param {Image} image
 * @param {{redCellPx: number | null}} settings
 */
async function cellsOf(image, settings) {
  try {
    return (await search(image, settings)).found;
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    return { cells: null, scale: null, warnings: [error.message] };
  }
}

/**
 * The cells of an image by the app's own segmentation model, with their outlines.
 * @param {Image} image
 * @param {string} name
 * @param {{redCellPx: number | null} | null} settings
 */
async function segment(image, name, settings) {
  const { found, classes } = await search(image, settings ?? { redCellPx: null });
  const mask = classes();
  const map = await createImageBitmap(outlined(image, mask));
  const { cells, scale, warnings } = found;
  const line = { image: name, cells, pixels: classCounts(mask), scale, warnings };
  return { result: { prediction: line, map }, move: [map] };
}

/**
 * @param {Image} image
 * @param {{redCellPx: number | null}} settings
 */
async function search(image, { redCellPx }) {
  if (!finder) throw new EdgeallError("the model is not open");
  return findCells(image, await finder(), redCellPx === null ? null : givenScale(redCellPx));
}

/** By the name in the page's message. */
export const tasks = { start, openCells, classifyFile, classifyFrame };
