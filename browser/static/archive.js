/** Reads the zip archive behind a model's flatbuffer, as `edge_runtime/bundle.py` does. */

import { BundleError } from "./errors.js";
import { inflate } from "./inflate.js";
import { crc32 } from "./png.js";

export const COPY_AGAIN = "copy the file again or re-run `edgeall quantize`";
/** Far above any member that `edgeall quantize` packs. Stops a crafted archive from filling the memory. */
const MAX_MEMBER_BYTES = 16_000_000;
const MAX_DIRECTORY_BYTES = 1_000_000;
const END = 0x06054b50;
const ENTRY = 0x02014b50;
const LOCAL = 0x04034b50;
const DEFLATED = 8;

/**
 * @typedef {object} Member
 * @property {string} name
 * @property {number} method 0 stored, 8 deflated
 * @property {number} crc
 * @property {number} packed bytes
 * @property {number} bytes
 * @property {number} at offset of its header in the file
 */

/** The archive at the end of a file. */
export class Archive {
  /**
   * @param {Uint8Array} file
   * @param {Member[]} members
   * @param {string} name of the file, for errors
   */
  constructor(file, members, name) {
    this.file = file;
    this.members = members;
    this.name = name;
    /** Start of the archive in the file. */
    this.begin = Math.min(...members.map((member) => member.at));
  }

  /** @param {string} member */
  has(member) {
    return this.members.some((each) => each.name === member);
  }

  /**
   * @param {string} member
   * @returns {Promise<Uint8Array>}
   */
  async read(member) {
    const found = this.members.find((each) => each.name === member);
    if (!found) throw new BundleError(`${this.name}: ${member} is missing from its archive`, COPY_AGAIN);
    if (found.bytes > MAX_MEMBER_BYTES)
      throw new BundleError(`${this.name}: ${member} in its archive is larger than ${MAX_MEMBER_BYTES} bytes`);
    try {
      const content = await this.#content(found);
      if (content.length === found.bytes && crc32(content) === found.crc) return content;
    } catch {
      // The error below says so.
    }
    throw new BundleError(`${this.name}: ${member} in its archive is damaged`, COPY_AGAIN);
  }

  /** @param {Member} member */
  async #content({ at, method, packed, bytes }) {
    const view = viewOf(this.file);
    if (view.getUint32(at, true) !== LOCAL) throw new RangeError("not a member");
    const start = at + 30 + view.getUint16(at + 26, true) + view.getUint16(at + 28, true);
    const content = this.file.subarray(start, start + packed);
    if (method === 0) return content;
    if (method !== DEFLATED) throw new RangeError("unknown compression");
    return inflate([content], "deflate-raw", bytes);
  }

  /**
   * @param {string} member
   * @returns {Promise<string>}
   */
  async text(member) {
    return new TextDecoder().decode(await this.read(member));
  }
}

/**
 * @param {Uint8Array} file
 * @param {string} name for errors
 * @returns {Archive | null} null if there is no readable archive
 */
export function openArchive(file, name) {
  try {
    const members = directory(file);
    return members.length ? new Archive(file, members, name) : null;
  } catch {
    return null; // an offset outside the file
  }
}

/** @param {Uint8Array} file */
function viewOf(file) {
  return new DataView(file.buffer, file.byteOffset, file.length);
}

/**
 * @param {Uint8Array} file
 * @returns {Member[]} none if the file has no archive
 */
function directory(file) {
  const view = viewOf(file);
  let end = file.length - 22;
  const lowest = Math.max(0, file.length - 65_557); // the end record with the longest comment
  while (end >= lowest && view.getUint32(end, true) !== END) end--;
  if (end < lowest) return [];
  const bytes = view.getUint32(end + 12, true);
  if (bytes > MAX_DIRECTORY_BYTES) return [];
  const before = end - bytes - view.getUint32(end + 16, true); // bytes in front of the archive that it does not count
  const members = [];
  for (let at = end - bytes; at < end; ) {
    if (view.getUint32(at, true) !== ENTRY) throw new RangeError("not a directory");
    const nameBytes = view.getUint16(at + 28, true);
    members.push({
      name: new TextDecoder().decode(file.subarray(at + 46, at + 46 + nameBytes)),
      method: view.getUint16(at + 10, true),
      crc: view.getUint32(at + 16, true),
      packed: view.getUint32(at + 20, true),
      bytes: view.getUint32(at + 24, true),
      at: view.getUint32(at + 42, true) + before,
    });
    at += 46 + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return members;
}
