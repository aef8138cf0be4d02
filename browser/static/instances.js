/**
 * From class probabilities to single cells: components, touching cells split, holes filled. See
 * `edge_runtime/vision/instances.py`, also for the meaning of the constants.
 */

import { blurred, components, dilated, disc, distances, flood, SQUARE } from "./morphology.js";
import { roundHalfEven } from "./numbers.js";
import { cut } from "./tiles.js";

/** @typedef {import("./tiles.js").ClassMap} ClassMap */
/** @typedef {import("./morphology.js").Part} Part */

/**
 * @typedef {object} Instance one cell in a class map, in its pixels
 * @property {[number, number, number, number]} box left, top, right, bottom
 * @property {[number, number]} centre of the nucleus, x and y
 * @property {number} nucleus area
 * @property {number} cell area of nucleus and cytoplasm
 * @property {number} roundness of the nucleus, 0 to 1
 * @property {boolean} cut whether the border of the map cuts the cell
 */

const [LEAST_NUCLEUS, CERTAIN, CUT, HOLE] = [0.45, 0.65, 0.5, 0.25];
const [NECK, PEAK, SMOOTH, APART, LEVELS, DEEPEST, LINE] = [0.9, 0.3, 0.06, 0.15, 48, 1.3, 2];

/**
 * @param {ClassMap} map
 * @param {number} redCellPx diameter of a red cell in pixels of the map
 * @returns {{labels: Int32Array, instances: Instance[]}} labels: 0 outside, n + 1 in cell n; cells from top to bottom
 */
export function findInstances(map, redCellPx) {
  const least = ((LEAST_NUCLEUS * Math.PI) / 4) * (redCellPx * redCellPx);
  const nucleus = nuclei(map.cell, map.nucleus);
  const { labels: places, parts } = components(map.cell.map((value) => Number(value >= 128)), map.width, 8);
  /** @type {{instance: Instance, part: Part, one: Uint8Array}[]} */
  const pieces = [];
  parts.forEach((part, number) => {
    const width = part.right - part.left;
    const within = (/** @type {Uint8Array} */ plane) =>
      cut(plane, map.width, part.left, part.top, width, part.bottom - part.top);
    const visible = window(places, map.width, part, number + 1);
    const [inside, probable] = [within(nucleus), within(map.nucleus)];
    if (sum(both(inside, visible)) < CUT * least) return;
    const whole = withoutHoles(visible, width, ((HOLE * Math.PI) / 4) * (redCellPx * redCellPx));
    const inner = both(inside, whole);
    const labels = split(whole, inner, width, redCellPx);
    for (let label = 1; label <= largest(labels); label++) {
      const one = Uint8Array.from(labels, (each) => Number(each === label));
      const core = both(inner, one);
      const instance = measured(one, core, width, part, map);
      if (!instance || instance.nucleus < least * (instance.cut ? CUT : 1)) continue;
      const certain = probable.reduce((total, value, at) => total + core[at] * value, 0) / sum(core);
      if (certain >= 255 * CERTAIN) pieces.push({ instance, part, one });
    }
  });
  pieces.sort((a, b) => a.instance.centre[1] - b.instance.centre[1] || a.instance.centre[0] - b.instance.centre[0]);
  const labels = new Int32Array(map.cell.length);
  pieces.forEach(({ part: { left, top, right }, one }, number) =>
    one.forEach((value, at) => {
      const width = right - left;
      if (value) labels[(top + Math.trunc(at / width)) * map.width + left + (at % width)] = number + 1;
    }),
  );
  return { labels, instances: pieces.map(({ instance }) => instance) };
}

/**
 * Where nucleus is more probable than cytoplasm, in cells.
 * @param {Uint8Array} cell
 * @param {Uint8Array} nucleus
 */
export function nuclei(cell, nucleus) {
  return cell.map((value, at) => Number(value >= 128 && nucleus[at] > value >> 1));
}

/**
 * Split one component into cells: a watershed of the depth in the cell plus the depth in its nucleus.
 * @param {Uint8Array} whole nucleus and cytoplasm
 * @param {Uint8Array} nucleus
 * @param {number} width
 * @param {number} redCellPx
 * @returns {Int32Array} labels from 1, 0 outside
 */
export function split(whole, nucleus, width, redCellPx) {
  // The border counts as outside: a cell at the border is only as wide as its visible part.
  const wide = width + 2;
  const [cell, core] = [bordered(whole, width, 0), bordered(nucleus, width, 0)];
  const [depth, inner] = [distances(cell, wide), distances(core, wide)];
  const deepest = Math.fround(DEEPEST * redCellPx);
  const relief = blurred(depth.map((value, at) => Math.min(value, deepest) + inner[at]), wide, SMOOTH * redCellPx);
  const tops = peaks(relief, wide, redCellPx);
  if (tops.length < 2) return Int32Array.from(whole);
  let labels = cores(relief, wide, tops);
  flood(cell, labels, wide);
  labels = labels.map((label) => Math.max(label, 0));
  // It leaves lines between the cells, which take the label of a neighbour.
  for (let time = 0; time < LINE; time++) {
    const grown = dilated(labels, wide, SQUARE);
    labels = labels.map((label, at) => (cell[at] ? label || grown[at] : 0));
  }
  return labels.filter((_, at) => isInside(at, wide, labels.length / wide));
}

/**
 * The peaks of the relief that are cells of their own, the highest first.
 * @param {Float32Array} relief
 * @param {number} width
 * @param {number} redCellPx
 */
function peaks(relief, width, redCellPx) {
  const highest = dilated(relief, width, disc(Math.max(1, roundHalfEven(APART * redCellPx))));
  const least = Math.fround(PEAK * redCellPx);
  const found = [];
  for (let at = 0; at < relief.length; at++) if (relief[at] >= highest[at] && relief[at] >= least) found.push(at);
  /** @type {number[]} */
  const kept = [];
  for (const peak of found.sort((a, b) => relief[b] - relief[a] || a - b)) {
    const above = Math.fround(Math.fround(NECK) * relief[peak]);
    const { labels } = components(Uint8Array.from(relief, (value) => Number(value > above)), width, 8);
    if (!kept.some((other) => labels[other] === labels[peak])) kept.push(peak); // no path to a higher peak
  }
  return kept;
}

/**
 * The part around each peak, numbered from 1, that lies above every path to another one.
 * @param {Float32Array} relief
 * @param {number} width
 * @param {number[]} tops
 */
function cores(relief, width, tops) {
  const found = new Int32Array(relief.length);
  const step = largest(relief) / LEVELS;
  for (let level = 0; level < LEVELS; level++) {
    const above = level * step;
    const { labels } = components(Uint8Array.from(relief, (value) => Number(value > above)), width, 8);
    tops.forEach((peak, number) => {
      const name = labels[peak];
      if (!name || found[peak] || tops.some((other) => other !== peak && labels[other] === name)) return;
      labels.forEach((label, at) => {
        if (label === name) found[at] = number + 1;
      });
    });
  }
  tops.forEach((peak, number) => (found[peak] = number + 1));
  return found;
}

/**
 * Fill the enclosed holes with an area of up to `largest`.
 * @param {Uint8Array} whole
 * @param {number} width
 * @param {number} largest
 */
export function withoutHoles(whole, width, largest) {
  const wide = width + 2;
  const outside = bordered(whole.map((value) => 1 - value), width, 1);
  const { labels, parts } = components(outside, wide, 4);
  if (parts.length < 2) return whole;
  const filled = labels.map((label) => Number(label > 1 && parts[label - 1].area <= largest)); // 1 touches the border
  const inner = filled.filter((_, at) => isInside(at, wide, labels.length / wide));
  return whole.map((value, at) => value | inner[at]);
}

/**
 * The cell of a mask; null without a nucleus.
 * @param {Uint8Array} whole
 * @param {Uint8Array} nucleus
 * @param {number} width
 * @param {{left: number, top: number}} corner of the mask in the map
 * @param {{width: number, height: number}} map
 * @returns {Instance | null}
 */
function measured(whole, nucleus, width, corner, map) {
  const area = sum(nucleus);
  if (!area) return null;
  const roundness = Math.min(1, (4 * area) / (Math.PI * longAxis(nucleus, width, area) ** 2));
  const [sumX, sumY] = sums(nucleus, width);
  const part = extent(whole, width);
  const [left, top] = [corner.left + part.left, corner.top + part.top];
  const [right, bottom] = [corner.left + part.right, corner.top + part.bottom];
  return {
    box: [left, top, right, bottom],
    centre: [corner.left + sumX / area + 0.5, corner.top + sumY / area + 0.5],
    nucleus: area,
    cell: sum(whole),
    roundness,
    cut: left === 0 || top === 0 || right === map.width || bottom === map.height,
  };
}

/**
 * The longer axis of the ellipse with the moments of a mask.
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} area
 */
function longAxis(mask, width, area) {
  const [sumX, sumY] = sums(mask, width);
  let [xx, xy, yy] = [0, 0, 0];
  mask.forEach((value, at) => {
    const [x, y] = [at % width, Math.trunc(at / width)];
    [xx, xy, yy] = [xx + value * x * x, xy + value * x * y, yy + value * y * y];
  });
  const a = (xx - (sumX * sumX) / area) / area + 1 / 12;
  const b = (xy - (sumX * sumY) / area) / area;
  const c = (yy - (sumY * sumY) / area) / area + 1 / 12;
  return 4 * Math.sqrt((a + c) / 2 + Math.hypot((a - c) / 2, b));
}

/**
 * @param {Uint8Array} mask
 * @param {number} width
 */
function sums(mask, width) {
  let [x, y] = [0, 0];
  mask.forEach((value, at) => {
    x += value * (at % width);
    y += value * Math.trunc(at / width);
  });
  return [x, y];
}

/**
 * @param {Uint8Array} mask not empty
 * @param {number} width
 */
function extent(mask, width) {
  const part = { left: width, top: mask.length / width, right: 0, bottom: 0 };
  mask.forEach((value, at) => {
    if (!value) return;
    const [x, y] = [at % width, Math.trunc(at / width)];
    [part.left, part.right] = [Math.min(part.left, x), Math.max(part.right, x + 1)];
    [part.top, part.bottom] = [Math.min(part.top, y), Math.max(part.bottom, y + 1)];
  });
  return part;
}

/** @param {Float32Array | Int32Array} values */
function largest(values) {
  let most = 0;
  for (const value of values) most = Math.max(most, value);
  return most;
}

/** @param {Uint8Array} mask */
function sum(mask) {
  return mask.reduce((total, value) => total + value, 0);
}

/**
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 */
function both(a, b) {
  return a.map((value, at) => value & b[at]);
}

/**
 * A part of a map of labels: 1 where it has this one.
 * @param {Int32Array} labels
 * @param {number} stride
 * @param {Part} part
 * @param {number} label
 */
function window(labels, stride, { left, top, right, bottom }, label) {
  const width = right - left;
  return Uint8Array.from({ length: width * (bottom - top) }, (_, at) =>
    Number(labels[(top + Math.trunc(at / width)) * stride + left + (at % width)] === label),
  );
}

/**
 * A mask with a border of one.
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} border
 */
function bordered(mask, width, border) {
  const wide = width + 2;
  const out = new Uint8Array(wide * (mask.length / width + 2)).fill(border);
  for (let y = 0; y * width < mask.length; y++) out.set(mask.subarray(y * width, (y + 1) * width), (y + 1) * wide + 1);
  return out;
}

/**
 * @param {number} at
 * @param {number} width
 * @param {number} height
 */
function isInside(at, width, height) {
  const [x, y] = [at % width, Math.trunc(at / width)];
  return x > 0 && x < width - 1 && y > 0 && y < height - 1;
}
