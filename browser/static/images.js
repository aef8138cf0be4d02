/**
 * Decodes image files to 8-bit RGB, upright, over white. See `edge_runtime/images.py`.
 *
 * PNG is decoded by `png.js`, exactly. JPEG, WebP and BMP are decoded by the browser; a canvas hands out the pixels.
 */

import { ImageError } from "./errors.js";
import { decodePng, isPng, readPng } from "./png.js";

/** @typedef {import("./preprocess.js").Image} Image */

/** Above any microscope camera in use. */
const MAX_PIXELS = 64_000_000;
const SAVE_AS_PNG = "save it as PNG";

/**
 * @param {Uint8Array} bytes of an image file
 * @param {string} name for errors
 * @returns {Promise<Image>}
 */
export async function decodeRgb(bytes, name) {
  if (!bytes.length) throw new ImageError(`${name}: the file is empty`, "copy the image again or remove the file");
  if (isPng(bytes)) {
    const header = readPng(bytes, name);
    limit(header.width, header.height, name);
    return oriented(await decodePng(header, name), header.exif ? orientation(header.exif) : 1);
  }
  const type = typeOf(bytes, name);
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([/** @type {BlobPart} */ (bytes)], { type }), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new ImageError(`${name}: truncated or damaged`, "copy the image again or remove the file");
  }
  try {
    limit(bitmap.width, bitmap.height, name);
    return fromSource(bitmap);
  } finally {
    bitmap.close();
  }
}

/** @type {boolean | undefined} */
let exact;

/**
 * The pixels of a picture over white.
 * @param {ImageBitmap} source
 * @returns {Image}
 */
export function fromSource(source) {
  exact ??= canvasIsExact();
  if (!exact)
    throw new ImageError("this browser changes the pixels of pictures, a protection of privacy", "give PNG files");
  const { width, height } = source;
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return { width, height, data: rgb };
}

/** Whether a canvas gives back what was drawn. Browsers that hide their identity add noise to it. */
function canvasIsExact() {
  const canvas = new OffscreenCanvas(64, 64);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  const drawn = new ImageData(64, 64);
  drawn.data.forEach((_, at) => (drawn.data[at] = at % 4 === 3 ? 255 : Math.imul(at, 0x9e3779b1) >>> 24));
  context.putImageData(drawn, 0, 0);
  const { data } = context.getImageData(0, 0, 64, 64);
  return data.every((value, at) => value === drawn.data[at]);
}

/**
 * @param {number} width
 * @param {number} height
 * @param {string} name
 */
function limit(width, height, name) {
  if (width * height > MAX_PIXELS)
    throw new ImageError(`${name}: more than ${MAX_PIXELS / 1e6} megapixels`, "crop or downscale it first");
}

/**
 * The media type of a file that the browser decodes; refuses what browsers decode unlike Pillow.
 * @param {Uint8Array} bytes
 * @param {string} name for errors
 */
function typeOf(bytes, name) {
  const start = String.fromCharCode(...bytes.subarray(0, 16));
  if (start.startsWith("\xff\xd8\xff")) {
    const frame = jpegFrame(bytes);
    if (frame) {
      limit(frame.width, frame.height, name);
      if (frame.components === 4) throw new ImageError(`${name}: a CMYK JPEG file is not taken here`, SAVE_AS_PNG);
    }
    return "image/jpeg";
  }
  if (start.startsWith("BM")) return "image/bmp";
  if (start.startsWith("RIFF") && start.slice(8, 12) === "WEBP") {
    if (start.slice(12, 16) === "VP8X" && bytes[20] & 2)
      throw new ImageError(`${name}: has several frames or pages`, "save the one to be classified as PNG");
    return "image/webp";
  }
  if (/^(II\*\0|MM\0\*)/.test(start)) throw new ImageError(`${name}: a TIFF file is not taken here`, SAVE_AS_PNG);
  throw new ImageError(
    `${name}: not an image in one of the formats JPEG, PNG, BMP, WEBP`,
    "convert it to PNG or JPEG, or remove the file",
  );
}

/**
 * Size and components of a JPEG file, from its first frame header; null if there is none.
 * @param {Uint8Array} bytes
 */
function jpegFrame(bytes) {
  const two = (/** @type {number} */ at) => bytes[at] * 256 + bytes[at + 1];
  for (let at = 2; at + 9 < bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return { height: two(at + 5), width: two(at + 7), components: bytes[at + 9] };
    at += marker === 0xff ? 1 : 2 + two(at + 2);
  }
  return null;
}

/**
 * The orientation in EXIF data, 1 to 8.
 * @param {Uint8Array} exif a TIFF structure
 */
export function orientation(exif) {
  const view = new DataView(exif.buffer, exif.byteOffset, exif.length);
  try {
    const little = view.getUint16(0) === 0x4949;
    const start = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(start, little); entry++) {
      const at = start + 2 + 12 * entry;
      if (view.getUint16(at, little) === 0x112) return view.getUint16(at + 8, little);
    }
  } catch {
    // An offset outside the data: as Pillow, take the image as it is.
  }
  return 1;
}

/**
 * Pillow's `exif_transpose`.
 * @param {Image} image
 * @param {number} turn the EXIF orientation
 * @returns {Image}
 */
export function oriented(image, turn) {
  if (turn < 2 || turn > 8) return image;
  const [width, height] = turn > 4 ? [image.height, image.width] : [image.width, image.height];
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 3) {
      const [u, v] = turn > 4 ? [y, x] : [x, y];
      const fromX = [2, 3, 7, 8].includes(turn) ? image.width - 1 - u : u;
      const fromY = [3, 4, 6, 7].includes(turn) ? image.height - 1 - v : v;
      const from = (fromY * image.width + fromX) * 3;
      data[to] = image.data[from];
      data[to + 1] = image.data[from + 1];
      data[to + 2] = image.data[from + 2];
    }
  }
  return { width, height, data };
}
