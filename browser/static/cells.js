/** The cells of a result: what is asked for, and how they are shown. See `edge_runtime/vision/scale_bar.py`. */

import { EdgeallError } from "./errors.js";
import { LEAST_PX, MOST_PX } from "./scale.js";
import { element, make } from "./page.js";

/** @typedef {import("./finder.js").Found} Found */

/** Box colours of whole cells and of cells that the border cuts; these are dashed too. */
const [WHOLE, CUT] = ["rgb(0 160 60)", "rgb(230 120 0)"];
/** Longest side of a picture with boxes. */
const SHOWN_PX = 1024;
/** Maximum length of a scale bar, relative to the picture's width. */
const SHARE = 0.2;

/**
 * @param {boolean} on whether cells are looked for
 * @param {boolean} always whether the user has no choice
 * @param {() => Promise<void>} open the model of cells; called when cells are wanted, rejects if it is refused
 */
export function connectCells(on, always, open) {
  const button = /** @type {HTMLButtonElement} */ (element("cells"));
  button.hidden = always;
  const show = (/** @type {boolean} */ wanted) => {
    button.ariaPressed = String(wanted);
    element("scale").hidden = !wanted;
    if (wanted)
      open().catch(() => {
        show(false);
        button.disabled = true;
      });
  };
  button.onclick = () => show(button.ariaPressed !== "true");
  show(on);
}

/**
 * @returns {{redCellPx: number | null} | null} null if no cells are wanted
 * @throws {EdgeallError} the size of a red cell is not one
 */
export function wantedCells() {
  if (element("cells").ariaPressed !== "true") return null;
  const { value, validity } = /** @type {HTMLInputElement} */ (element("red-cell"));
  if (!validity.valid)
    throw new EdgeallError(`the size of a red cell must be ${LEAST_PX} to ${MOST_PX} px`, "correct it, or leave it empty");
  return { redCellPx: value === "" ? null : Number(value) };
}

/**
 * Number and scale, warnings, the picture with a box around each cell, and the measurements.
 * @param {{cells: Found["cells"] | null, scale: Found["scale"] | null, warnings: string[]}} found
 * @param {ImageBitmap | null} picture
 * @returns {HTMLElement[]}
 */
export function cellsView({ cells, scale, warnings }, picture) {
  const doubts = warnings.map((text) => make("p", onPage(text), "tag"));
  if (!cells || !scale) return doubts;
  const lines = [countLine(cells, scale), ...doubts];
  if (picture) lines.push(boxes(cells, scale, picture));
  if (cells.length) lines.push(measurements(cells));
  return lines;
}

/**
 * Number of cells, and scale.
 * @param {Found["cells"]} cells
 * @param {Found["scale"]} scale
 */
export function countLine(cells, scale) {
  return make("p", `${summary(cells)}, red cell ${scale.red_cell_px.toFixed(0)} px`, "count");
}

/**
 * The words of `edgeall cells`, where a page has no options.
 * @param {string} text
 */
function onPage(text) {
  return text.replace("give --red-cell-px or --um-per-px", "give the size of a red cell");
}

/** @param {Found["cells"]} cells */
function summary(cells) {
  if (!cells.length) return "no nucleated cell found";
  const cut = cells.filter((cell) => cell.touches_border).length;
  const whole = cells.length - cut;
  return `${whole} ${whole === 1 ? "cell" : "cells"}${cut ? `, ${cut} cut by the border` : ""}`;
}

/**
 * @param {Found["cells"]} cells
 * @param {Found["scale"]} scale
 * @param {ImageBitmap} picture
 */
function boxes(cells, scale, picture) {
  const canvas = document.createElement("canvas");
  const zoom = Math.min(1, SHOWN_PX / Math.max(picture.width, picture.height));
  [canvas.width, canvas.height] = [Math.max(1, picture.width * zoom), Math.max(1, picture.height * zoom)];
  canvas.className = "boxes";
  canvas.role = "img";
  canvas.ariaLabel = `Boxes around ${summary(cells)}`;
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const line = Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 200));
  pen.lineWidth = line;
  pen.font = `${8 * line + 4}px sans-serif`;
  pen.textBaseline = "top";
  for (const { cell, left, top, right, bottom, touches_border: isCut } of cells) {
    pen.strokeStyle = pen.fillStyle = isCut ? CUT : WHOLE;
    pen.setLineDash(isCut ? [4 * line, 2 * line] : []);
    pen.strokeRect(left * zoom, top * zoom, (right - left) * zoom, (bottom - top) * zoom);
    pen.fillText(String(cell), left * zoom + 2 * line, top * zoom + 2 * line);
  }
  drawScaleBar(pen, scale, zoom, line);
  return canvas;
}

/**
 * A bar of 1, 2 or 5 times a power of ten micrometres in the lower right corner.
 * @param {CanvasRenderingContext2D} pen
 * @param {Found["scale"]} scale
 * @param {number} zoom
 * @param {number} line
 */
function drawScaleBar(pen, scale, zoom, line) {
  const longest = (scale.um_per_px / zoom) * pen.canvas.width * SHARE;
  const power = 10 ** Math.floor(Math.log10(longest) + 1e-9);
  const um = power * Math.max(...[1, 2, 5].filter((step) => step * power <= longest * (1 + 1e-9)));
  const [long, thick] = [(um / scale.um_per_px) * zoom, Math.max(2, line)];
  const [right, bottom] = [pen.canvas.width - 4 * thick, pen.canvas.height - 4 * thick];
  const text = `${scale.source === "given" ? "" : "≈ "}${Number(um.toPrecision(1))} µm`;
  pen.setLineDash([]);
  [pen.fillStyle, pen.strokeStyle, pen.textAlign, pen.textBaseline] = ["#ffffff", "#000000", "right", "bottom"];
  pen.strokeRect(right - long, bottom - thick, long, thick);
  pen.fillRect(right - long, bottom - thick, long, thick);
  pen.strokeText(text, right, bottom - 2 * thick);
  pen.fillText(text, right, bottom - 2 * thick);
}

/** @param {Found["cells"]} cells */
function measurements(cells) {
  const details = document.createElement("details");
  const table = document.createElement("table");
  const heads = ["cell", "nucleus, px", "whole cell, px", "nucleus / cell", "roundness"];
  const [head, body] = [table.createTHead(), table.createTBody()];
  const titles = head.insertRow();
  for (const text of heads) {
    const title = /** @type {HTMLTableCellElement} */ (make("th", text));
    title.scope = "col";
    titles.append(title);
  }
  for (const { cell, area_px, cell_area_px, nc_ratio, roundness } of cells) {
    const row = body.insertRow();
    for (const value of [cell, area_px, cell_area_px, nc_ratio.toFixed(2), roundness.toFixed(2)])
      row.insertCell().textContent = String(value);
  }
  details.append(make("summary", "Measurements"), table);
  return details;
}
