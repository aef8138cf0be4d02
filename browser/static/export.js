/** Predictions as CSV and as JSON lines, as `edgeall run --csv` and `--json` print them. */

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
  return [[...names, ...labels.map((label) => `p_${label}`)], ...rows].map(line).join("");
}

/** @param {unknown[]} values */
function line(values) {
  const quoted = values.map(String).map((text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text));
  return quoted.join(",") + "\n";
}
