/**
 * Decodes PNG files to 8-bit RGB as Pillow and `edge_runtime/images.py` do: transparency over white, no colour
 * management. A canvas would multiply colours with alpha, and may apply the screen's profile.
 *
 * Source: PNG specification (third edition); Pillow, `PngImagePlugin.py`, `Unpack.c`, `Paste.c`.
 */

import { ImageError } from "./errors.js";
import { inflate } from "./inflate.js";

/** @typedef {import("./preprocess.js").Image} Image */

/**
 * @typedef {object} Header of a PNG file, with its chunks
 * @property {number} width
 * @property {number} height
 * @property {number} depth bits of a sample
 * @property {number} color 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA
 * @property {boolean} interlaced
 * @property {Uint8Array} palette RGB
 * @property {Uint8Array | null} transparency content of tRNS
 * @property {Uint8Array | null} exif content of eXIf
 * @property {Uint8Array[]} parts of the compressed pixels
 */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
/** @type {Record<number, {channels: number, depths: number[]}>} */
const COLORS = {
  0: { channels: 1, depths: [1, 2, 4, 8, 16] },
  2: { channels: 3, depths: [8, 16] },
  3: { channels: 1, depths: [1, 2, 4, 8] },
  4: { channels: 2, depths: [8, 16] },
  6: { channels: 4, depths: [8, 16] },
};
/** First column, first row, column step and row step of the passes of an interlaced image. */
const PASSES = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];

/** @param {Uint8Array} bytes */
export function isPng(bytes) {
  return SIGNATURE.every((value, index) => bytes[index] === value);
}

/**
 * The header and chunks of a PNG file; checks the chunks' checksums.
 * @param {Uint8Array} bytes
 * @param {string} name for errors
 * @returns {Header}
 */
export function readPng(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  /** @type {Header} */
  const header = {
    ...{ width: 0, height: 0, depth: 0, color: 0, interlaced: false, palette: new Uint8Array() },
    ...{ transparency: null, exif: null, parts: [] },
  };
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const end = at + 8 + length;
    if (end + 4 > bytes.length) break;
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, end);
    if (view.getUint32(end) !== crc32(bytes.subarray(at + 4, end))) throw damaged(name, `broken ${kind} chunk`);
    if (kind === "IHDR") readHeader(header, view, at + 8);
    else if (kind === "PLTE") header.palette = content;
    else if (kind === "tRNS") header.transparency = content;
    else if (kind === "eXIf") header.exif = content;
    else if (kind === "acTL" && view.getUint32(at + 8) > 1)
      throw new ImageError(`${name}: has several frames or pages`, "save the one to be classified as PNG");
    else if (kind === "IDAT") header.parts.push(content);
    else if (kind === "IEND") break;
    at = end + 4;
  }
  const known = COLORS[header.color];
  if (!header.width || !header.height || !known?.depths.includes(header.depth) || !header.parts.length)
    throw damaged(name, "no image in it");
  return header;
}

/**
 * @param {Header} header
 * @param {DataView} view
 * @param {number} at
 */
function readHeader(header, view, at) {
  header.width = view.getUint32(at);
  header.height = view.getUint32(at + 4);
  header.depth = view.getUint8(at + 8);
  header.color = view.getUint8(at + 9);
  header.interlaced = view.getUint8(at + 12) === 1;
}

/**
 * @param {Header} header
 * @param {string} name for errors
 * @returns {Promise<Image>}
 */
export async function decodePng(header, name) {
  const { width, height, depth } = header;
  const { channels } = COLORS[header.color];
  const passes = header.interlaced ? PASSES : [[0, 0, 1, 1]];
  const sizes = passes.map(([left, top, right, down]) => ({
    columns: Math.max(0, Math.ceil((width - left) / right)),
    rows: Math.max(0, Math.ceil((height - top) / down)),
  }));
  const bits = channels * depth;
  const needed = sizes.reduce((sum, { columns, rows }) => sum + (columns ? rows * (1 + rowBytes(columns, bits)) : 0), 0);
  let raw;
  try {
    raw = await inflate(header.parts, "deflate", needed);
  } catch {
    throw damaged(name, "its pixels can't be decompressed");
  }
  if (raw.length < needed) throw damaged(name, "image file is truncated");
  const samples = new Uint16Array(width * height * channels);
  let at = 0;
  passes.forEach(([left, top, right, down], index) => {
    const { columns, rows } = sizes[index];
    if (!columns) return;
    const stride = rowBytes(columns, bits);
    const size = rows * (1 + stride);
    unfilter(raw.subarray(at, at + size), rows, stride, Math.max(1, bits >> 3), name);
    for (let y = 0; y < rows; y++) {
      const row = raw.subarray(at + y * (1 + stride) + 1, at + (y + 1) * (1 + stride));
      spread(row, depth, columns, channels, samples, ((top + y * down) * width + left) * channels, right * channels);
    }
    at += size;
  });
  return { width, height, data: toRgb(samples, header) };
}

/**
 * @param {number} columns
 * @param {number} bits of a pixel
 */
function rowBytes(columns, bits) {
  return (columns * bits + 7) >> 3;
}

/**
 * Undo the filters of the rows, in place.
 * @param {Uint8Array} raw rows of a filter byte and `stride` bytes
 * @param {number} rows
 * @param {number} stride
 * @param {number} step bytes of a pixel, at least 1
 * @param {string} name for errors
 */
function unfilter(raw, rows, stride, step, name) {
  for (let y = 0; y < rows; y++) {
    const start = y * (1 + stride) + 1;
    const up = start - stride - 1;
    const kind = raw[start - 1];
    if (kind > 4) throw damaged(name, "an unknown filter");
    if (kind === 0) continue;
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? raw[start + x - step] : 0;
      const above = y ? raw[up + x] : 0;
      let guess = kind === 1 ? left : above;
      if (kind === 3) guess = (left + above) >> 1;
      else if (kind === 4) guess = paeth(left, above, y && x >= step ? raw[up + x - step] : 0);
      raw[start + x] += guess;
    }
  }
}

/**
 * @param {number} a
 * @param {number} b
 * @param {number} c
 */
function paeth(a, b, c) {
  const [p, q, r] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  return p <= q && p <= r ? a : q <= r ? b : c;
}

/**
 * Write the samples of a row, unscaled, into an image.
 * @param {Uint8Array} row
 * @param {number} depth
 * @param {number} columns
 * @param {number} channels
 * @param {Uint16Array} samples
 * @param {number} at of the first pixel
 * @param {number} step from pixel to pixel
 */
function spread(row, depth, columns, channels, samples, at, step) {
  for (let x = 0; x < columns; x++, at += step) {
    for (let c = 0; c < channels; c++) {
      const index = x * channels + c;
      if (depth === 8) samples[at + c] = row[index];
      else if (depth === 16) samples[at + c] = row[2 * index] * 256 + row[2 * index + 1];
      else samples[at + c] = (row[(index * depth) >> 3] >> (8 - depth - ((index * depth) & 7))) & ((1 << depth) - 1);
    }
  }
}

/**
 * @param {Uint16Array} samples
 * @param {Header} header
 * @returns {Uint8Array}
 */
function toRgb(samples, header) {
  const { depth, color, palette, transparency } = header;
  const { channels } = COLORS[color];
  const count = header.width * header.height;
  const data = new Uint8Array(count * 3);
  const grey16 = color === 0 && depth === 16;
  const eight = depth === 16 ? (/** @type {number} */ value) => value >> 8 : scaled(color === 3 ? 8 : depth);
  const clear = transparency && !grey16 && color !== 3 ? clearColor(transparency, color) : null;
  for (let i = 0, from = 0, to = 0; i < count; i++, from += channels, to += 3) {
    let [r, g, b, alpha] = [0, 0, 0, 255];
    if (color === 3) {
      const index = samples[from];
      [r, g, b] = [palette[3 * index] ?? 0, palette[3 * index + 1] ?? 0, palette[3 * index + 2] ?? 0];
      if (transparency) alpha = transparency[index] ?? 255;
    } else if (grey16) {
      r = g = b = Math.trunc(samples[from] * (1 / 257)); // as Pillow's `point`
    } else {
      r = eight(samples[from]);
      [g, b] = channels > 2 ? [eight(samples[from + 1]), eight(samples[from + 2])] : [r, r];
      if (channels % 2 === 0) alpha = eight(samples[from + channels - 1]);
      else if (clear && clear[0] === r && clear[1] === g && clear[2] === b) alpha = 0;
    }
    data[to] = overWhite(r, alpha);
    data[to + 1] = overWhite(g, alpha);
    data[to + 2] = overWhite(b, alpha);
  }
  return data;
}

/**
 * @param {number} depth 1 to 8
 * @returns {(value: number) => number}
 */
function scaled(depth) {
  const factor = 255 / ((1 << depth) - 1);
  return (value) => value * factor;
}

/**
 * The transparent colour, compared with the 8-bit pixel as Pillow does.
 * @param {Uint8Array} content of tRNS
 * @param {number} color
 * @returns {number[]}
 */
function clearColor(content, color) {
  const value = (/** @type {number} */ index) => content[2 * index] * 256 + content[2 * index + 1];
  return color === 0 ? [value(0), value(0), value(0)] : [value(0), value(1), value(2)];
}

/**
 * Pillow's `paste` with a mask on white.
 * @param {number} value
 * @param {number} alpha
 */
function overWhite(value, alpha) {
  const sum = 255 * (255 - alpha) + value * alpha + 128;
  return ((sum >> 8) + sum) >> 8;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/**
 * @param {Uint8Array} bytes
 * @returns {number}
 */
export function crc32(bytes) {
  let value = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) value = TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/**
 * @param {string} name
 * @param {string} reason
 */
function damaged(name, reason) {
  return new ImageError(`${name}: truncated or damaged (${reason})`, "copy the image again or remove the file");
}
