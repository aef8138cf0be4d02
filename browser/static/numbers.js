/** Rounding as Python's: halves go to the even neighbour. */

/** @param {number} value */
export function roundHalfEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Python's `round(value, digits)`.
 * @param {number} value
 * @param {number} digits after the point
 */
export function rounded(value, digits) {
  const [, rest] = Math.abs(value).toFixed(digits + 40).split(".");
  const isHalf = /^50*$/.test(rest.slice(digits)); // the exact value, for a half has few binary digits
  const power = 10 ** digits;
  return isHalf ? roundHalfEven(value * power) / power : Number(value.toFixed(digits));
}

/** @param {ArrayLike<number>} values at least one */
export function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * numpy's `percentile`, between the two nearest values.
 * @param {Uint32Array} counts of the values 0, 1, 2, ...
 * @param {number} percent
 */
export function percentile(counts, percent) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const place = (percent / 100) * (total - 1);
  const below = nth(counts, Math.floor(place));
  const above = nth(counts, Math.min(Math.floor(place) + 1, total - 1));
  const share = place - Math.floor(place);
  return share < 0.5 ? below + (above - below) * share : above - (above - below) * (1 - share);
}

/**
 * @param {Uint32Array} counts
 * @param {number} place
 */
function nth(counts, place) {
  let value = 0;
  for (let before = counts[0]; before <= place; before += counts[++value]);
  return value;
}
