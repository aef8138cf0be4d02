/** Predictions as CSV and as JSON lines, as `edgeall run --csv` and `--json` print them; cells as `edgeall cells` does. */

import { rounded } from "./numbers.js";

/** @typedef {import("./pipeline.js").Prediction} Prediction */

/**
 * @param {Prediction[]} predictions
 * @returns {string}
 */
export function jsonLines(predictions) {
  return predictions.map((each) => JSON.stringify(each) + "\n").join("");
}

/**
 * @param {Prediction[]} predictions
 * @param {string[]} labels
 * @returns {string}
 */
export function csv(predictions, labels) {
  const names = ["image", "label", "probability", "review", "reason", "novelty", "error"];
  const rows = predictions.map((each) => {
    const values = labels.map((label) => each.probabilities?.[label] ?? "");
    if (each.error !== undefined) return [each.image, "", "", "", "", "", each.error, ...values];
    const review = [each.review ? "yes" : "no", each.reason ?? "", each.novelty ?? "", ""];
    return [each.image, each.label, each.probability, ...review, ...values];
  });
  return [[...names, ...labels.map((label) => `p_${label}`)], ...rows].map((values) => line(values)).join("");
}

/**
 * The table of `edgeall run --csv` with a segmentation model.
 * @param {Prediction[]} predictions
 * @param {string[]} labels
 * @returns {string}
 */
export function segmentationCsv(predictions, labels) {
  const rows = predictions.map(({ image, cells, pixels, scale, error = "" }) => [
    ...[image, cells?.length ?? "", ...labels.map((label) => pixels?.[label] ?? "")],
    ...[scale ? decimal(rounded(scale.red_cell_px, 1)) : "", "", error],
  ]);
  return [["image", "cells", ...labels.map((label) => `${label}_px`), "red_cell_px", "mask", "error"], ...rows]
    .map((values) => line(values))
    .join("");
}

/**
 * The cells of all predictions, as in the file `cells.csv`.
 * @param {Prediction[]} predictions
 * @returns {string}
 */
export function cellsCsv(predictions) {
  const rows = predictions.flatMap(({ image, cells }) => {
    const name = /^[=+\-@\t\r]/.test(image) ? `'${image}` : image; // no formula
    return (cells ?? []).map((cell) => [
      ...[name, cell.cell, cell.left, cell.top, cell.right, cell.bottom, decimal(cell.x), decimal(cell.y), cell.area_px],
      ...[cell.touches_border ? "True" : "False", "", cell.cell_area_px, decimal(cell.nc_ratio), decimal(cell.roundness)],
      ...[decimal(cell.red_cell_px), decimal(cell.um_per_px)],
    ]);
  });
  return [CELL_COLUMNS, ...rows].map((values) => line(values, "\r\n")).join("");
}

const CELL_COLUMNS = [
  ...["image", "cell", "left", "top", "right", "bottom", "x", "y", "area_px", "touches_border", "crop"],
  ...["cell_area_px", "nc_ratio", "roundness", "red_cell_px", "um_per_px"],
];

/**
 * As Python writes a float.
 * @param {number} value
 */
function decimal(value) {
  return Number.isInteger(value) ? value.toFixed(1) : String(value);
}

/**
 * @param {unknown[]} values
 * @param {string} [end]
 */
function line(values, end = "\n") {
  const quoted = values.map(String).map((text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text));
  return quoted.join(",") + end;
}
