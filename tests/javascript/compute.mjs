/**
 * Computes in JavaScript what `vectors.json` and predictions on stdin ask for, and prints it as JSON:
 * `node compute.mjs FOLDER VECTORS < predictions`, with the folder of the page's JavaScript.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, vectors] = process.argv.slice(2);
const load = (name) => import(`${pathToFileURL(folder)}/${name}`);
const [{ preprocess }, { decodeRgb }, { applyTemperature }, { cellsCsv, csv, jsonLines }] = await Promise.all(
  ["preprocess.js", "images.js", "calibration.js", "export.js"].map(load),
);
const [{ part, rescaled }, { segmentField }, { busiest, givenScale }, { findInstances }, { findCells }] = await Promise.all(
  ["scaling.js", "tiles.js", "scale.js", "instances.js", "finder.js"].map(load),
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

/** `Toy` in `tests/cell_vectors.py`. */
const toy = {
  size: 192,
  redCellPx: 28,
  async infer(pixels) {
    const probabilities = new Uint8Array(pixels.length);
    let [cells, begins, before] = [0, 0, false];
    for (let at = 0; at < pixels.length; at += 3) {
      const [red, green, blue] = pixels.subarray(at, at + 3);
      const [nucleus, cytoplasm] = [blue - green >= 50 ? 250 : 0, blue - green >= 20 && blue - green < 50 ? 240 : 0];
      probabilities.set([255 - nucleus - cytoplasm, cytoplasm, nucleus], at);
      if (at % (3 * 192) === 0) before = false;
      const isCell = red - blue >= 30;
      if (isCell) cells++;
      if (isCell && !before) begins++;
      before = isCell;
    }
    const octaves = begins ? Math.log2(((cells / begins) * 4) / Math.PI / 28) : 1;
    return { probabilities, redCell: Math.fround(Math.min(Math.max(octaves, -1), 1)) };
  },
};

/** `Slanted` there. */
const slanted = {
  ...toy,
  async infer(pixels) {
    const probabilities = new Uint8Array(pixels.length);
    for (let at = 0; at < pixels.length / 3; at++) {
      const background = (pixels[3 * at] + (at % 192) + 2 * Math.trunc(at / 192)) % 256;
      probabilities.set([background, 0, 255 - (background >> 1)], 3 * at);
    }
    return { probabilities, redCell: 0 };
  },
};

async function tiled({ image, red_cell_px }) {
  const { cell, nucleus, width, height } = await segmentField(drawn(...image), slanted, red_cell_px);
  return { cell: digest(cell), nucleus: digest(nucleus), size: [width, height] };
}

async function picture(png) {
  return decodeRgb(new Uint8Array(Buffer.from(png, "base64")), "x.png");
}

async function separated({ png }) {
  const { width, height, data } = await picture(png);
  const [cell, nucleus] = [0, 1].map((channel) => data.filter((_, at) => at % 3 === channel));
  const { labels, instances } = findInstances({ width, height, cell, nucleus, zoom: [1, 1], redCells: [] }, 28);
  return { labels: digest(labels), instances };
}

async function foundIn({ png, red_cell_px }) {
  const { found, classes } = await findCells(await picture(png), toy, red_cell_px === null ? null : givenScale(red_cell_px));
  return { ...found, mask: digest(classes().map((value) => [0, 128, 255][value])) };
}

const answers = {
  preprocess: asked.preprocess.map(({ image, input: [width, height], fit }) =>
    digest(preprocess(drawn(...image), { width, height, fit })),
  ),
  png: await Promise.all(asked.png.map(({ png }) => decode(png))),
  calibration: asked.calibration.map(({ units, temperature }) =>
    Array.from(applyTemperature(Float32Array.from(units, (unit) => unit / 256), temperature)),
  ),
  scaling: asked.scaling.map(({ image, size, box }) =>
    digest((box ? part(drawn(...image), ...size, box) : rescaled(drawn(...image), ...size)).data),
  ),
  tiles: await Promise.all(asked.tiles.map(tiled)),
  busiest: asked.busiest.map(({ image }) => busiest(drawn(...image))),
  instances: await Promise.all(asked.instances.map(separated)),
  fields: await Promise.all(asked.fields.map(foundIn)),
  cellsCsv: cellsCsv(given.found),
  csv: csv(given.predictions, given.labels),
  json: jsonLines(given.predictions),
};
process.stdout.write(JSON.stringify(answers));
