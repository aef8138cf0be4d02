/** The list of results, and how a prediction is shown. */

import { csv, jsonLines } from "./export.js";
import { RESEARCH_USE } from "./manifest.js";

/** @typedef {import("./pipeline.js").Prediction} Prediction */

/** @type {Prediction[]} */
const predictions = [];
/** Longest side of a thumbnail. */
const THUMBNAIL_PX = 224;

/** @param {string} id */
export const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/**
 * @param {string} tag
 * @param {string} text
 * @param {string} [kind] class
 */
function make(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

/**
 * Label and probability; review and its reason; or the error.
 * @param {Prediction} prediction
 * @returns {HTMLElement[]}
 */
export function verdict({ label, probability = 0, review, reason, novelty, error }) {
  if (error !== undefined) return [make("p", error, "error")];
  const lines = [make("p", `${label} ${(100 * probability).toFixed(2)} %`, "label")];
  if (review) lines.push(make("p", `review: ${reason}`, "tag"));
  if (reason === "unfamiliar" && novelty != null)
    lines.push(make("p", `out-of-distribution score ${novelty.toFixed(2)}, above 1: the label is meaningless`, "quiet"));
  return lines;
}

/**
 * @param {Prediction} prediction
 * @param {ImageBitmap | null} picture
 * @param {ImageBitmap | null} map the class-activation map
 */
export function addResult(prediction, picture, map) {
  predictions.push(prediction);
  const item = document.createElement("li");
  item.className = prediction.review ? "doubt" : "";
  const shown = map ?? picture;
  item.append(shown ? thumbnail(shown, map ? `Evidence for ${prediction.label}` : prediction.image) : make("span", ""));
  const text = document.createElement("div");
  text.append(make("p", prediction.image, "quiet"), ...verdict(prediction));
  item.append(text);
  element("list").append(item);
  element("results").hidden = false;
}

/**
 * @param {ImageBitmap} picture is closed
 * @param {string} text
 */
function thumbnail(picture, text) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, THUMBNAIL_PX / Math.max(picture.width, picture.height));
  [canvas.width, canvas.height] = [Math.max(1, picture.width * scale), Math.max(1, picture.height * scale)];
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.role = "img";
  canvas.ariaLabel = text;
  picture.close();
  return canvas;
}

/**
 * Let the buttons save and remove the results.
 * @param {string[]} labels of the model
 */
export function connectResults(labels) {
  element("save-csv").onclick = () => save(csv(predictions, labels), "csv", "text/csv");
  element("save-json").onclick = () => save(jsonLines(predictions), "jsonl", "application/jsonl");
  element("clear").onclick = () => {
    predictions.length = 0;
    element("list").replaceChildren();
    element("results").hidden = true;
  };
}

/**
 * @param {string} text
 * @param {string} ending
 * @param {string} type
 */
function save(text, ending, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `predictions, ${RESEARCH_USE}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
