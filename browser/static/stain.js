/** Whether an image has the colours of a stained smear. See `looks_stained` in `edge_runtime/vision/quality.py`. */

import { percentile, roundHalfEven } from "./numbers.js";
import { reduced } from "./scaling.js";

/** @typedef {import("./preprocess.js").Image} Image */

const [WIDTH, SHADE, GREY, LEAST_GREEN, ODD_MAX] = [320, 0.82, 0.05, 0.3, 0.12];

/** @param {Image} image */
export function looksStained(image) {
  const shrink = Math.max(roundHalfEven(image.width / WIDTH), 1);
  const pixels = everySecond(reduced(image, shrink, shrink));
  const white = [0, 1, 2].map((channel) => {
    const counts = new Uint32Array(256);
    for (let at = channel; at < pixels.length; at += 3) counts[pixels[at]]++;
    return percentile(counts, 95);
  });
  return oddShare(pixels, white) <= ODD_MAX;
}

/**
 * The pixels of every second row and column.
 * @param {Image} image
 */
function everySecond({ width, height, data }) {
  const [columns, rows] = [Math.ceil(width / 2), Math.ceil(height / 2)];
  const out = new Uint8Array(columns * rows * 3);
  for (let y = 0, to = 0; y < rows; y++)
    for (let x = 0; x < columns; x++, to += 3) out.set(data.subarray((y * 2 * width + x * 2) * 3).subarray(0, 3), to);
  return out;
}

/**
 * Share of the covered area that is grey or absorbs too little green. In float32, but for the last bit of a logarithm.
 * @param {Uint8Array} pixels
 * @param {number[]} white
 */
function oddShare(pixels, white) {
  const density = white.map((light) =>
    Float32Array.from({ length: 256 }, (_, value) =>
      Math.max(Math.log(Math.fround(Math.fround(Math.max(light, 1)) / Math.max(value, 4))), 0),
    ),
  );
  const [third, grey, green] = [2 / 3, 1 / 3 + GREY, LEAST_GREEN].map(Math.fround);
  let [covered, odd] = [0, 0];
  for (let at = 0; at < pixels.length; at += 3) {
    if (!(pixels[at + 1] < SHADE * white[1])) continue;
    const [r, g, b] = density.map((channel, c) => channel[pixels[at + c]]);
    const whole = Math.fround(Math.fround(r + g) + b);
    const spread = Math.max(r, g, b, Math.fround(Math.fround(third * whole) - Math.min(r, g, b)));
    covered++;
    if (spread < Math.fround(grey * whole) || g < Math.fround(green * whole)) odd++;
  }
  return covered < 0.01 * (pixels.length / 3) ? 0 : odd / covered;
}
