/** The list of results, and how a prediction is shown. */

import { cellsView, countLine } from "./cells.js";
import { cellsCsv, csv, jsonLines, segmentationCsv } from "./export.js";
import { RESEARCH_USE } from "./manifest.js";
import { element, make } from "./page.js";

/** @typedef {import("./pipeline.js").Prediction} Prediction */

/** @type {Prediction[]} */
const predictions = [];
/** Longest side of a thumbnail. */
const THUMBNAIL_PX = 224;

/**
 * Label and probability; review and its reason; or the error. Of a segmentation model, the number of cells.
 * @param {Prediction} prediction
 * @returns {HTMLElement[]}
 */
export function verdict({ label, probability = 0, review, reason, novelty, error, cells, scale }) {
  if (error !== undefined) return [make("p", error, "error")];
  if (label === undefined) return cells && scale ? [countLine(cells, scale)] : [];
  const lines = [make("p", `${label} ${(100 * probability).toFixed(2)} %`, "label")];
  if (review) lines.push(make("p", `review: ${reason}`, "tag"));
  if (reason === "unfamiliar" && novelty != null)
    lines.push(make("p", `out-of-distribution score ${novelty.toFixed(2)}, above 1: the label is meaningless`, "quiet"));
  return lines;
}

/**
 * @param {Prediction} prediction
 * @param {ImageBitmap | null} picture the image itself; is closed
 * @param {ImageBitmap | null} map the class-activation map, or the outlines of a segmentation model; is closed
 */
export function addResult(prediction, picture, map) {
  predictions.push(prediction);
  const item = document.createElement("li");
  item.className = prediction.review ? "doubt" : "";
  const shown = map ?? picture;
  item.append(shown ? thumbnail(shown, map && prediction.label ? `Evidence for ${prediction.label}` : prediction.image) : make("span", ""));
  const text = document.createElement("div");
  const isSegmentation = prediction.pixels !== undefined;
  text.append(make("p", prediction.image, "quiet"), ...(isSegmentation ? [] : verdict(prediction)));
  item.append(text);
  const { cells, scale = null, warnings = [] } = prediction;
  if (cells !== undefined) {
    const found = make("div", "", "found");
    found.append(...cellsView({ cells, scale, warnings }, isSegmentation ? map : picture));
    item.append(found);
  }
  picture?.close();
  map?.close();
  element("list").append(item);
  element("results").hidden = false;
  element("save-cells").hidden &&= !cells;
}

/**
 * @param {ImageBitmap} picture
 * @param {string} text
 */
function thumbnail(picture, text) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, THUMBNAIL_PX / Math.max(picture.width, picture.height));
  [canvas.width, canvas.height] = [Math.max(1, picture.width * scale), Math.max(1, picture.height * scale)];
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.role = "img";
  canvas.ariaLabel = text;
  return canvas;
}

/**
 * Let the buttons save and remove the results.
 * @param {string[]} labels of the model
 * @param {boolean} segments whether it is a segmentation model
 */
export function connectResults(labels, segments) {
  const table = () => (segments ? segmentationCsv(predictions, labels) : csv(predictions, labels));
  element("save-csv").onclick = () => save(table(), "predictions", "csv", "text/csv");
  element("save-json").onclick = () => save(jsonLines(predictions), "predictions", "jsonl", "application/jsonl");
  element("save-cells").onclick = () => save(cellsCsv(predictions), "cells", "csv", "text/csv");
  element("clear").onclick = () => {
    predictions.length = 0;
    element("list").replaceChildren();
    element("results").hidden = element("save-cells").hidden = true;
  };
}

/**
 * @param {string} text
 * @param {string} what
 * @param {string} ending
 * @param {string} type
 */
function save(text, what, ending, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${what}, ${RESEARCH_USE}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
