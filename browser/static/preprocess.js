/**
 * The only code of the page that turns an image into a model's input: the twin of `edge_runtime/preprocess.py`.
 * Resizing is Pillow's antialiased bilinear filter in fixed point, bit for bit.
 *
 * Source: Pillow, `src/libImaging/Resample.c`.
 */

/**
 * @typedef {object} Image 8-bit RGB
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} data `height * width * 3` bytes
 */

/**
 * @typedef {object} InputSpec the manifest's `input`
 * @property {number} height
 * @property {number} width
 * @property {string} fit `stretch` or `center-crop`
 * @property {number} mean
 * @property {number} std
 * @property {string} color
 * @property {string} resize
 */

/**
 * @typedef {object} Coefficients
 * @property {number} size number of weights for each output pixel
 * @property {Int32Array} bounds first input pixel and number of input pixels, for each output pixel
 * @property {Int32Array} weights fixed point, `size` for each output pixel
 */

/**
 * @typedef {object} Filter
 * @property {number} support in pixels of the result
 * @property {(distance: number) => number} weight
 */

/** Pillow's `BILINEAR`. */
export const TRIANGLE = { support: 1, weight: triangle };
const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);

/**
 * Fit and resize a decoded image.
 * @param {Image} image
 * @param {InputSpec} spec
 * @returns {Uint8Array} `height * width * 3` bytes of the input's size
 */
export function preprocess(image, spec) {
  const fitted = spec.fit === "center-crop" ? crop(image, centerBox(image, spec)) : image;
  return resize(fitted, spec.width, spec.height).data;
}

/**
 * Left, top, right, bottom of the largest centred window with the input's aspect ratio, in whole pixels.
 * @param {{width: number, height: number}} image
 * @param {{width: number, height: number}} target
 * @returns {[number, number, number, number]}
 */
export function centerBox({ width, height }, target) {
  const cropWidth = Math.min(width, Math.max(1, Math.floor((height * target.width) / target.height)));
  const cropHeight = Math.min(height, Math.max(1, Math.floor((width * target.height) / target.width)));
  const left = Math.floor((width - cropWidth) / 2);
  const top = Math.floor((height - cropHeight) / 2);
  return [left, top, left + cropWidth, top + cropHeight];
}

/**
 * @param {Image} image
 * @param {[number, number, number, number]} box
 * @returns {Image}
 */
export function crop(image, [left, top, right, bottom]) {
  const [width, height] = [right - left, bottom - top];
  if (width === image.width && height === image.height) return image;
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    const at = ((y + top) * image.width + left) * 3;
    data.set(image.data.subarray(at, at + width * 3), y * width * 3);
  }
  return { width, height, data };
}

/**
 * Pillow's `image.resize((width, height), Resampling.BILINEAR)`: horizontally, then vertically, 8 bits in between.
 * @param {Image} image
 * @param {number} width
 * @param {number} height
 * @returns {Image}
 */
export function resize(image, width, height) {
  return resizeBox(image, width, height, [0, 0, image.width, image.height]);
}

/**
 * Pillow's `image.resize((width, height), filter, box)`, horizontally, then vertically, as two calls of one axis each.
 * @param {Image} image
 * @param {number} width
 * @param {number} height
 * @param {number[]} box left, top, right and bottom in the image; fractions of pixels are possible
 * @param {Filter} [filter]
 * @returns {Image}
 */
export function resizeBox(image, width, height, [left, top, right, bottom], filter = TRIANGLE) {
  let { data } = image;
  if (image.width !== width || left !== 0 || right !== width)
    data = horizontally(image, coefficients(image.width, width, filter, left, right), width);
  if (image.height !== height || top !== 0 || bottom !== height)
    data = vertically(data, coefficients(image.height, height, filter, top, bottom), width, height);
  return { width, height, data };
}

/**
 * The weights of a filter; it widens when an image gets smaller.
 * @param {number} from pixels
 * @param {number} to pixels
 * @param {Filter} [filter]
 * @param {number} [start] of the part that is resized
 * @param {number} [end]
 * @returns {Coefficients}
 */
function coefficients(from, to, filter = TRIANGLE, start = 0, end = from) {
  const [first32, end32] = [Math.fround(start), Math.fround(end)]; // as Pillow keeps a box
  const scale = Math.fround(end32 - first32) / to;
  const support = filter.support * Math.max(scale, 1);
  const size = Math.ceil(support) * 2 + 1;
  const inverse = 1 / Math.max(scale, 1);
  const bounds = new Int32Array(to * 2);
  const weights = new Int32Array(to * size);
  const exact = new Float64Array(size);
  for (let out = 0; out < to; out++) {
    const center = first32 + (out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(from, Math.trunc(center + support + 0.5)) - first;
    let total = 0;
    for (let x = 0; x < count; x++) {
      exact[x] = filter.weight((x + first - center + 0.5) * inverse);
      total += exact[x];
    }
    bounds[2 * out] = first;
    bounds[2 * out + 1] = count;
    for (let x = 0; x < count; x++) {
      const share = total === 0 ? exact[x] : exact[x] / total;
      weights[out * size + x] = Math.trunc(0.5 + share * (1 << PRECISION_BITS));
    }
  }
  return { size, bounds, weights };
}

/** @param {number} distance */
function triangle(distance) {
  return Math.max(0, 1 - Math.abs(distance));
}

/**
 * @param {Image} image
 * @param {Coefficients} filter
 * @param {number} width of the result
 * @returns {Uint8Array}
 */
function horizontally(image, { size, bounds, weights }, width) {
  const out = new Uint8ClampedArray(image.height * width * 3);
  const { data } = image;
  let to = 0;
  for (let y = 0; y < image.height; y++) {
    const row = y * image.width * 3;
    for (let x = 0; x < width; x++) {
      let [r, g, b] = [HALF, HALF, HALF];
      let from = row + bounds[2 * x] * 3;
      const end = x * size + bounds[2 * x + 1];
      for (let k = x * size; k < end; k++, from += 3) {
        const weight = weights[k];
        r += data[from] * weight;
        g += data[from + 1] * weight;
        b += data[from + 2] * weight;
      }
      out[to++] = r >> PRECISION_BITS;
      out[to++] = g >> PRECISION_BITS;
      out[to++] = b >> PRECISION_BITS;
    }
  }
  return new Uint8Array(out.buffer);
}

/**
 * @param {Uint8Array} data
 * @param {Coefficients} filter
 * @param {number} width of data and result
 * @param {number} height of the result
 * @returns {Uint8Array}
 */
function vertically(data, { size, bounds, weights }, width, height) {
  const stride = width * 3;
  const out = new Uint8ClampedArray(height * stride);
  const sums = new Int32Array(stride);
  for (let y = 0; y < height; y++) {
    sums.fill(HALF);
    for (let k = 0; k < bounds[2 * y + 1]; k++) {
      const weight = weights[y * size + k];
      const row = (bounds[2 * y] + k) * stride;
      for (let x = 0; x < stride; x++) sums[x] += data[row + x] * weight;
    }
    for (let x = 0; x < stride; x++) out[y * stride + x] = sums[x] >> PRECISION_BITS;
  }
  return new Uint8Array(out.buffer);
}
