/** Opens a `model.tflite`: verifies that it is complete before the runtime reads it. See `edge_runtime/bundle.py`. */

import { COPY_AGAIN, openArchive } from "./archive.js";
import { BundleError, EdgeallError } from "./errors.js";
import { readGraph } from "./flatbuffer.js";
import { parseManifest } from "./manifest.js";
import { readOodDetector } from "./ood.js";

/** @typedef {import("./archive.js").Archive} Archive */
/** @typedef {import("./flatbuffer.js").Graph} Graph */
/** @typedef {import("./manifest.js").Manifest} Manifest */
/** @typedef {import("./ood.js").OodDetector} OodDetector */

/**
 * @typedef {object} Golden a golden image, with the outputs that it had where the model was packed
 * @property {string} name
 * @property {Uint8Array} image the PNG file
 * @property {string} pixelsSha256
 * @property {number[]} probabilities of a classifier
 * @property {number[] | null} units of a classifier with integer outputs
 * @property {Uint8Array | null} mask of a segmentation model: the PNG file of the expected mask
 * @property {number} redCell of a segmentation model
 */

/**
 * @typedef {object} Bundle a verified model file
 * @property {string} name
 * @property {Uint8Array} flatbuffer
 * @property {Graph} graph
 * @property {Manifest} manifest
 * @property {Golden[]} golden
 * @property {OodDetector | null} oodDetector
 * @property {boolean} signed whether a signature was required and is valid
 */

const MANIFEST = "edgeall.json";
const LABELS = "labels.txt";
const GOLDEN = "golden/golden.json";
const SIGNATURE = "signature.json";
const MAX_GOLDEN = 16;
const MAX_SIGNED_MEMBERS = 2 * MAX_GOLDEN;

/**
 * @param {Uint8Array} file
 * @param {string} name for errors
 * @param {string | null} publicKey the required signer's raw Ed25519 key in base64; null: no signature is required
 * @returns {Promise<Bundle>}
 */
export async function openBundle(file, name, publicKey) {
  if (!globalThis.crypto?.subtle)
    throw new EdgeallError("this page can't verify the model without HTTPS", "open it by an https address");
  if (!file.length) throw new BundleError(`${name}: the file is empty`, "copy the file again");
  const archive = openArchive(file, name);
  if (publicKey !== null) await checkSignature(file, archive, name, publicKey);
  if (!archive?.has(MANIFEST))
    throw new BundleError(`${name}: truncated or damaged, its archive (${MANIFEST}, labels) is missing`, COPY_AGAIN);
  const manifest = parseManifest(await archive.text(MANIFEST), name);
  const flatbuffer = file.slice(0, Math.max(0, Math.min(manifest.flatbufferBytes, archive.begin)));
  if ((await sha256(flatbuffer)) !== manifest.flatbufferSha256)
    throw new BundleError(`${name}: flatbuffer does not match its digest`, COPY_AGAIN);
  if (archive.begin !== manifest.flatbufferBytes)
    throw new BundleError(`${name}: unexpected bytes between the flatbuffer and its archive`, COPY_AGAIN);
  const labels = (await archive.text(LABELS)).replace(/[\r\n]+$/, "").split("\n");
  if (labels.length !== manifest.labels.length || labels.some((label, at) => label.trim() !== manifest.labels[at]))
    throw new BundleError(`${name}: ${LABELS} and ${MANIFEST} have different labels`, COPY_AGAIN);
  const { novelty } = manifest;
  return {
    name,
    flatbuffer,
    graph: graphOf(flatbuffer, name),
    manifest,
    golden: await readGolden(archive, manifest, name),
    oodDetector: novelty ? readOodDetector(novelty, await archive.read("novelty.bin"), name) : null,
    signed: publicKey !== null,
  };
}

/**
 * @param {Uint8Array} bytes
 * @returns {Promise<string>} in hexadecimal
 */
export async function sha256(bytes) {
  const digest = await crypto.subtle.digest("SHA-256", /** @type {BufferSource} */ (bytes));
  return Array.from(new Uint8Array(digest), (value) => value.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {Uint8Array} flatbuffer
 * @param {string} name
 */
function graphOf(flatbuffer, name) {
  try {
    return readGraph(flatbuffer);
  } catch {
    throw new BundleError(`${name}: the flatbuffer is truncated or damaged`, "copy the file again");
  }
}

/**
 * @param {Uint8Array} file
 * @param {Archive | null} archive
 * @param {string} name
 * @param {string} publicKey
 */
async function checkSignature(file, archive, name, publicKey) {
  const members = archive?.members.map((member) => member.name) ?? [];
  if (!archive || !members.includes(SIGNATURE))
    throw new BundleError(`${name}: not signed`, "sign it with `edgeall sign`");
  if (members.length > MAX_SIGNED_MEMBERS || new Set(members).size < members.length)
    throw new BundleError(`${name}: its archive has a duplicate name, or more members than \`edgeall sign\` signs`);
  /** @type {Record<string, string>} */
  const digests = {};
  for (const member of members.filter((each) => each !== SIGNATURE).sort())
    digests[member] = await sha256(await archive.read(member));
  const facts = { flatbuffer: await sha256(file.subarray(0, Math.max(archive.begin, 0))), members: digests };
  const text = `edgeall signature 1\n${ascii(JSON.stringify(facts))}`;
  let signature, signer;
  try {
    const signed = JSON.parse(await archive.text(SIGNATURE));
    [signature, signer] = [fromBase64(signed.signature), String(signed.public_key)];
  } catch {
    throw new BundleError(`${name}: ${SIGNATURE} is not what \`edgeall sign\` writes`, "sign the file again");
  }
  if (await isSignedBy(publicKey, signature, new TextEncoder().encode(text))) return;
  if (signer !== publicKey)
    throw new BundleError(`${name}: signed with another key than the one required`, "sign it with `edgeall sign`");
  throw new BundleError(`${name}: changed after it was signed`, "copy the file again from its signer");
}

/**
 * @param {string} publicKey
 * @param {Uint8Array} signature
 * @param {Uint8Array} text
 */
async function isSignedBy(publicKey, signature, text) {
  let key;
  try {
    key = await crypto.subtle.importKey("raw", fromBase64(publicKey), "Ed25519", false, ["verify"]);
  } catch {
    throw new EdgeallError("this browser can't check Ed25519 signatures", "update the browser");
  }
  return crypto.subtle.verify("Ed25519", key, /** @type {BufferSource} */ (signature), /** @type {BufferSource} */ (text));
}

/**
 * JSON as Python writes it.
 * @param {string} json
 */
function ascii(json) {
  return json.replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** @param {string} text */
function fromBase64(text) {
  return Uint8Array.from(atob(text), (unit) => unit.charCodeAt(0));
}

/**
 * @param {Archive} archive
 * @param {Manifest} manifest
 * @param {string} name
 * @returns {Promise<Golden[]>}
 */
async function readGolden(archive, manifest, name) {
  const invalid = new BundleError(`${name}: ${GOLDEN} is not what \`edgeall quantize\` writes`, COPY_AGAIN);
  const text = await archive.text(GOLDEN);
  let entries;
  try {
    entries = JSON.parse(text).images;
  } catch {
    throw invalid;
  }
  if (!Array.isArray(entries) || !entries.length || entries.length > MAX_GOLDEN)
    throw new BundleError(`${name}: ${GOLDEN} must list 1 to ${MAX_GOLDEN} images`, COPY_AGAIN);
  const golden = [];
  for (const entry of entries) {
    const { probabilities = [], units = null, mask, red_cell: redCell = 0, pixels_sha256: pixelsSha256 } = entry ?? {};
    const isMask = manifest.task === "segmentation";
    const labels = manifest.labels.length;
    const valid = isMask
      ? typeof mask === "string" && Number.isFinite(redCell)
      : isVector(probabilities, labels) && (units === null || isVector(units, labels));
    if (!valid) throw invalid;
    const image = await archive.read(`golden/${entry.name}`);
    const expected = isMask ? await archive.read(`golden/${mask}`) : null;
    const facts = { probabilities, units, mask: expected, redCell };
    golden.push({ name: String(entry.name), image, pixelsSha256: String(pixelsSha256), ...facts });
  }
  return golden;
}

/**
 * @param {unknown} values
 * @param {number} length
 */
function isVector(values, length) {
  return Array.isArray(values) && values.length === length && values.every(Number.isFinite);
}
