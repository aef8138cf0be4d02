/**
 * Operations on small masks: what `edge_runtime/vision/instances.py` takes from OpenCV, with the same results.
 *
 * A mask or a relief is a row of numbers for each of its rows, `width * height` of them.
 */

import { roundHalfEven } from "./numbers.js";

/**
 * @typedef {object} Part
 * @property {number} left
 * @property {number} top
 * @property {number} right exclusive
 * @property {number} bottom exclusive
 * @property {number} area
 */

/** Distances to the neighbours of a 5x5 mask in units of 1/65536: straight, diagonal, a knight's move. */
const [STRAIGHT, DIAGONAL, KNIGHT] = [65536, 91750, 143976];
const FAR = 2 ** 29;
/**
 * Offsets of a place and its neighbours.
 * @type {[number, number][]}
 */
export const SQUARE = [-1, 0, 1].flatMap((y) => [-1, 0, 1].map((x) => /** @type {[number, number]} */ ([y, x])));

/**
 * The connected parts of a mask.
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {4 | 8} neighbours
 * @returns {{labels: Int32Array, parts: Part[]}} labels: 0 outside, n + 1 in part n
 */
export function components(mask, width, neighbours) {
  const labels = new Int32Array(mask.length);
  const stack = new Int32Array(mask.length);
  const height = mask.length / width;
  /** @type {Part[]} */
  const parts = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    const part = { left: width, top: height, right: 0, bottom: 0, area: 0 };
    parts.push(part);
    let waiting = 0;
    stack[waiting++] = start;
    labels[start] = parts.length;
    while (waiting) {
      const at = stack[--waiting];
      const [x, y] = [at % width, Math.trunc(at / width)];
      part.area++;
      [part.left, part.right] = [Math.min(part.left, x), Math.max(part.right, x + 1)];
      [part.top, part.bottom] = [Math.min(part.top, y), Math.max(part.bottom, y + 1)];
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const next = v * width + u;
          if (!mask[next] || labels[next] || (neighbours === 4 && u !== x && v !== y)) continue;
          labels[next] = parts.length;
          stack[waiting++] = next;
        }
      }
    }
  }
  return { labels, parts };
}

/**
 * The distance of each place in a mask to the nearest place outside, along steps of a 5x5 mask.
 *
 * Source: Borgefors, Distance transformations in digital images, 1986; OpenCV's `distanceTransform`, `DIST_L2`, 5.
 * @param {Uint8Array} mask
 * @param {number} width
 */
export function distances(mask, width) {
  const [height, stride] = [mask.length / width, width + 4];
  const found = new Int32Array(stride * (height + 4)).fill(FAR);
  const steps = [
    ...[[-2 * stride - 1, KNIGHT], [-2 * stride + 1, KNIGHT], [-stride - 2, KNIGHT], [-stride + 2, KNIGHT]],
    ...[[-stride - 1, DIAGONAL], [-stride, STRAIGHT], [-stride + 1, DIAGONAL], [-1, STRAIGHT]],
  ];
  for (let at = 0; at < mask.length; at++) {
    const place = (Math.trunc(at / width) + 2) * stride + (at % width) + 2;
    found[place] = mask[at] ? nearest(found, place, steps, 1) : 0;
  }
  const out = new Float32Array(mask.length);
  for (let at = mask.length - 1; at >= 0; at--) {
    const place = (Math.trunc(at / width) + 2) * stride + (at % width) + 2;
    if (found[place] > STRAIGHT) found[place] = Math.min(found[place], nearest(found, place, steps, -1));
    out[at] = Math.fround(found[place]) / STRAIGHT;
  }
  return out;
}

/**
 * @param {Int32Array} found
 * @param {number} place
 * @param {number[][]} steps
 * @param {1 | -1} direction
 */
function nearest(found, place, steps, direction) {
  let least = Infinity;
  for (const [step, length] of steps) least = Math.min(least, found[place + direction * step] + length);
  return least;
}

/**
 * A Gaussian blur, mirrored at the borders. The last bit differs from OpenCV's, which depends on the processor.
 * @param {Float32Array} relief
 * @param {number} width
 * @param {number} sigma
 */
export function blurred(relief, width, sigma) {
  const taps = roundHalfEven(sigma * 8 + 1) | 1;
  const exact = Array.from({ length: taps }, (_, at) => Math.exp(-((at - (taps - 1) / 2) ** 2) / (2 * sigma ** 2)));
  const sum = exact.reduce((total, value) => total + value, 0);
  const kernel = Float32Array.from(exact, (value) => value / sum);
  const height = relief.length / width;
  return alongColumns(alongRows(relief, width, height, kernel), width, height, kernel);
}

/**
 * @param {Float32Array} relief
 * @param {number} width
 * @param {number} height
 * @param {Float32Array} kernel
 */
function alongRows(relief, width, height, kernel) {
  const out = new Float32Array(relief.length);
  const reach = kernel.length >> 1;
  const places = Int32Array.from({ length: width + 2 * reach }, (_, at) => reflected(at - reach, width));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += relief[y * width + places[x + k]] * kernel[k];
      out[y * width + x] = sum;
    }
  }
  return out;
}

/**
 * @param {Float32Array} relief
 * @param {number} width
 * @param {number} height
 * @param {Float32Array} kernel
 */
function alongColumns(relief, width, height, kernel) {
  const out = new Float32Array(relief.length);
  const reach = kernel.length >> 1;
  for (let y = 0; y < height; y++) {
    const rows = Array.from(kernel, (_, k) => reflected(y + k - reach, height) * width);
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += relief[rows[k] + x] * kernel[k];
      out[y * width + x] = sum;
    }
  }
  return out;
}

/**
 * A place outside, mirrored without repeating the border itself.
 * @param {number} at
 * @param {number} length
 */
function reflected(at, length) {
  const period = Math.max(1, 2 * length - 2);
  const place = ((at % period) + period) % period;
  return place < length ? place : period - place;
}

/**
 * Offsets of the places in a disc; OpenCV's `MORPH_ELLIPSE`.
 * @param {number} reach
 * @returns {[number, number][]} row and column
 */
export function disc(reach) {
  /** @type {[number, number][]} */
  const places = [];
  for (let y = -reach; y <= reach; y++) {
    const wide = roundHalfEven(reach * Math.sqrt((reach * reach - y * y) / (reach * reach)));
    for (let x = -wide; x <= wide; x++) places.push([y, x]);
  }
  return places;
}

/**
 * The largest value around each place.
 * @template {Float32Array | Int32Array | Uint8Array} T
 * @param {T} values
 * @param {number} width
 * @param {[number, number][]} around
 * @returns {T}
 */
export function dilated(values, width, around) {
  const out = /** @type {T} */ (values.slice());
  const height = values.length / width;
  for (const [dy, dx] of around) {
    for (let y = Math.max(0, -dy); y < Math.min(height, height - dy); y++) {
      const [from, to] = [(y + dy) * width + dx, y * width];
      for (let x = Math.max(0, -dx); x < Math.min(width, width - dx); x++)
        if (values[from + x] > out[to + x]) out[to + x] = values[from + x];
    }
  }
  return out;
}

/**
 * Flood a mask from markers at the same pace, and then what is outside; OpenCV's `watershed` of the mask as a picture.
 *
 * Source: Meyer, Color image segmentation, 1992.
 * @param {Uint8Array} mask
 * @param {Int32Array} markers positive in the markers, otherwise 0; is flooded; -1 on the lines between them
 * @param {number} width
 */
export function flood(mask, markers, width) {
  const height = markers.length / width;
  for (let x = 0; x < width; x++) markers[x] = markers[(height - 1) * width + x] = LINE;
  for (let y = 0; y < height; y++) markers[y * width] = markers[(y + 1) * width - 1] = LINE;
  const around = [-1, 1, -width, width];
  const [same, other] = [new Queue(markers.length), new Queue(markers.length)];
  for (let at = width + 1; at < markers.length - width - 1; at++) {
    if (markers[at] !== 0) continue;
    const marked = around.filter((step) => markers[at + step] > 0);
    if (!marked.length) continue;
    (marked.some((step) => mask[at] === mask[at + step]) ? same : other).push(at);
    markers[at] = WAITING;
  }
  for (let at = same.pop() ?? other.pop(); at !== undefined; at = same.pop() ?? other.pop()) {
    let label = 0;
    for (const step of around) {
      const next = markers[at + step];
      if (next > 0) label = label === 0 || label === next ? next : LINE;
    }
    markers[at] = label;
    if (label === LINE) continue;
    for (const step of around) {
      if (markers[at + step] !== 0) continue;
      (mask[at] === mask[at + step] ? same : other).push(at + step);
      markers[at + step] = WAITING;
    }
  }
}

const [LINE, WAITING] = [-1, -2];

/** First in, first out; each place once. */
class Queue {
  /** @param {number} most */
  constructor(most) {
    this.places = new Int32Array(most);
    this.first = this.last = 0;
  }

  /** @param {number} place */
  push(place) {
    this.places[this.last++] = place;
  }

  pop() {
    return this.first < this.last ? this.places[this.first++] : undefined;
  }
}
