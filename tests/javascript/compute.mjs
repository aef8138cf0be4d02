/**
 * Computes in JavaScript what `vectors.json` and predictions on stdin ask for, and prints it as JSON:
 * `node compute.mjs FOLDER VECTORS < predictions`, with the folder of the page's JavaScript.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, vectors] = process.argv.slice(2);
const load = (name) => import(`${pathToFileURL(folder)}/${name}`);
const [{ preprocess }, { decodeRgb }, { applyTemperature }, { csv, jsonLines }] = await Promise.all(
  ["preprocess.js", "images.js", "calibration.js", "export.js"].map(load),
);
const asked = JSON.parse(readFileSync(vectors, "utf-8"));
const given = JSON.parse(readFileSync(0, "utf-8"));

const digest = (pixels) => createHash("sha256").update(pixels).digest("hex");

function drawn(width, height) {
  const data = Uint8Array.from({ length: width * height * 3 }, (_, index) => Math.imul(index, 2654435761) >>> 24);
  return { width, height, data };
}

async function decode(png) {
  try {
    const image = await decodeRgb(new Uint8Array(Buffer.from(png, "base64")), "x.png");
    return { size: [image.width, image.height], sha256: digest(image.data) };
  } catch (error) {
    if (!error.message.startsWith("x.png: ")) throw error;
    return { size: null, sha256: null };
  }
}

const answers = {
  preprocess: asked.preprocess.map(({ image, input: [width, height], fit }) =>
    digest(preprocess(drawn(...image), { width, height, fit })),
  ),
  png: await Promise.all(asked.png.map(({ png }) => decode(png))),
  calibration: asked.calibration.map(({ units, temperature }) =>
    Array.from(applyTemperature(Float32Array.from(units, (unit) => unit / 256), temperature)),
  ),
  csv: csv(given.predictions, given.labels),
  json: jsonLines(given.predictions),
};
process.stdout.write(JSON.stringify(answers));
