/**
 * Finds and measures the nucleated cells of a field: the numbers of `edgeall cells`. See `edge_runtime/vision/finder.py`
 * and `cells_files.py`.
 */

import { findInstances } from "./instances.js";
import { fieldClasses } from "./masks.js";
import { rounded, roundHalfEven } from "./numbers.js";
import { doubts, measureScale, scaleJson } from "./scale.js";
import { looksStained } from "./stain.js";
import { segmentField } from "./tiles.js";

/** @typedef {import("./instances.js").Instance} Instance */
/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {import("./scale.js").Scale} Scale */
/** @typedef {import("./tiles.js").TileSegmenter} TileSegmenter */

/**
 * One cell, as `edgeall cells --json` prints it, in pixels of the field.
 * @typedef {object} Cell
 * @property {number} cell its number, from 1
 * @property {number} left
 * @property {number} top
 * @property {number} right exclusive
 * @property {number} bottom exclusive
 * @property {number} x of the nucleus's centre of mass
 * @property {number} y
 * @property {number} area_px of the nucleus
 * @property {boolean} touches_border
 * @property {null} crop the page writes none
 * @property {number} cell_area_px of nucleus and cytoplasm
 * @property {number} nc_ratio
 * @property {number} roundness
 * @property {number} red_cell_px
 * @property {number} um_per_px
 */

/**
 * @typedef {object} Found
 * @property {Cell[]} cells
 * @property {ReturnType<typeof scaleJson>} scale
 * @property {string[]} warnings
 */

/** Margin of a cell's box, in red cell diameters. */
const MARGIN = 0.1;
const NOT_A_SMEAR = "does not look like a stained smear in a bright field";

/**
 * @param {Image} field
 * @param {TileSegmenter} segmenter
 * @param {Scale | null} given null measures the scale
 * @returns {Promise<{found: Found, classes: () => Uint8Array}>} and the class of each pixel, see `fieldClasses`
 */
export async function findCells(field, segmenter, given) {
  const scale = given ?? (await measureScale(field, segmenter));
  const map = await segmentField(field, segmenter, scale.redCellPx);
  const { labels, instances } = findInstances(map, segmenter.redCellPx);
  const known = scaleJson(scale);
  const found = {
    cells: instances.map((each, at) => row(each, at + 1, field, map.zoom, MARGIN * segmenter.redCellPx, known)),
    scale: known,
    warnings: [...doubts(scale, field, map.redCells), ...(looksStained(field) ? [] : [NOT_A_SMEAR])],
  };
  return { found, classes: () => fieldClasses(map, labels, field) };
}

/**
 * @param {Instance} found
 * @param {number} number
 * @param {Image} field
 * @param {[number, number]} zoom
 * @param {number} margin
 * @param {Found["scale"]} scale
 * @returns {Cell}
 */
function row(found, number, field, [across, down], margin, scale) {
  const [left, top, right, bottom] = found.box;
  const [nucleus, whole] = [found.nucleus, found.cell].map((area) => roundHalfEven(area / (across * down)));
  return {
    cell: number,
    left: Math.max(0, Math.floor((left - margin) / across)),
    top: Math.max(0, Math.floor((top - margin) / down)),
    right: Math.min(field.width, Math.ceil((right + margin) / across)),
    bottom: Math.min(field.height, Math.ceil((bottom + margin) / down)),
    x: rounded(found.centre[0] / across, 1),
    y: rounded(found.centre[1] / down, 1),
    area_px: nucleus,
    touches_border: found.cut,
    crop: null,
    cell_area_px: whole,
    nc_ratio: rounded(nucleus / whole, 3),
    roundness: rounded(rounded(found.roundness, 4), 3),
    red_cell_px: scale.red_cell_px,
    um_per_px: scale.um_per_px,
  };
}
