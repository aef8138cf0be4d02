/** The manifest `edgeall.json` of a packed model. See `edge_runtime/manifest.py`. */

import { BundleError } from "./errors.js";

/** @typedef {import("./preprocess.js").InputSpec} InputSpec */

/**
 * @typedef {object} Manifest
 * @property {"classification" | "segmentation"} task
 * @property {string} name of the model
 * @property {string} created
 * @property {string} unit content of one image, `field` or `cell`
 * @property {string[]} labels
 * @property {InputSpec} input
 * @property {number} temperature of the calibration; 1: none
 * @property {number} reviewBelow probability below which an image needs review
 * @property {Record<string, unknown> | null} novelty the out-of-distribution detector
 * @property {number} redCellPx of a segmentation model: diameter in pixels that a red cell must have; otherwise 0
 * @property {string} flatbufferSha256
 * @property {number} flatbufferBytes
 */

export const RESEARCH_USE = "research use only, not a diagnosis";
const SCHEMA = 1;

/**
 * @param {string} text content of `edgeall.json`
 * @param {string} name of the model file, for errors
 * @returns {Manifest}
 */
export function parseManifest(text, name) {
  let values;
  try {
    values = JSON.parse(text);
  } catch {
    throw bad(name, "it is not JSON");
  }
  if (values === null || typeof values !== "object") throw bad(name, "it is not a JSON object");
  if (values.schema !== SCHEMA)
    throw new BundleError(
      `${name}: manifest schema ${values.schema} is unknown, this version reads ${SCHEMA}`,
      "make the page again with a newer edgeall",
    );
  const task = values.task ?? "classification";
  if (!["classification", "segmentation"].includes(task)) throw bad(name, `task ${task} is unknown to this version`);
  const { labels, input } = values;
  if (!Array.isArray(labels) || labels.length < 2 || new Set(labels).size !== labels.length)
    throw bad(name, "`labels` must have two or more distinct labels");
  if (!isInput(input))
    throw new BundleError(
      `${name}: its input contract is unknown to this version`,
      "make the page again with a newer edgeall",
    );
  const temperature = values.calibration?.temperature ?? 1;
  if (!within(temperature, 0.01, 100)) throw bad(name, "`calibration.temperature` must be a number from 0.01 to 100");
  const reviewBelow = values.decision?.review_below ?? 0;
  if (!within(reviewBelow, 0, 1)) throw bad(name, "`decision.review_below` must be a number from 0 to 1");
  const redCellPx = values.segmentation?.red_cell_px ?? 0;
  if (task === "segmentation" && !within(redCellPx, 1, 4096))
    throw bad(name, "`segmentation.red_cell_px` must be a number from 1 to 4096");
  return {
    task,
    name: String(values.name),
    created: String(values.created),
    unit: String(values.unit),
    labels,
    input,
    temperature,
    reviewBelow,
    novelty: Object.keys(values.novelty ?? {}).length ? values.novelty : null,
    redCellPx,
    flatbufferSha256: String(values.flatbuffer_sha256),
    flatbufferBytes: Number(values.flatbuffer_bytes),
  };
}

/** @param {Record<string, any> | undefined} input */
function isInput(input) {
  return (
    input?.color === "RGB" &&
    input.resize === "bilinear" &&
    ["stretch", "center-crop"].includes(input.fit) &&
    [input.height, input.width].every((size) => Number.isInteger(size) && within(size, 1, 4096)) &&
    within(input.mean, -1e6, 1e6) &&
    within(input.std, 1e-6, 1e6)
  );
}

/**
 * @param {unknown} value
 * @param {number} low
 * @param {number} high
 */
function within(value, low, high) {
  return typeof value === "number" && low <= value && value <= high;
}

/**
 * @param {string} name
 * @param {string} what
 */
function bad(name, what) {
  return new BundleError(`${name}: edgeall.json: ${what}`, "pack the model again with `edgeall quantize`");
}
