/**
 * Decompress; stops above a limit, so that a crafted file does not fill the memory.
 * @param {Uint8Array[]} parts of the compressed bytes, one after the other
 * @param {"deflate" | "deflate-raw" | "gzip"} format
 * @param {number} limit bytes
 * @returns {Promise<Uint8Array>} at most `limit` bytes, but for the last block
 */
export async function inflate(parts, format, limit) {
  const blob = new Blob(/** @type {BlobPart[]} */ (parts));
  const reader = blob.stream().pipeThrough(new DecompressionStream(format)).getReader();
  const blocks = [];
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      blocks.push(value);
      length += value.length;
      if (length > limit) break;
    }
  } catch (error) {
    // Bytes after the end of the compressed data are an error for the browser only: what was read is complete.
    if (length < limit) throw error;
  }
  reader.cancel().catch(() => {});
  const out = new Uint8Array(length);
  let at = 0;
  for (const block of blocks) {
    out.set(block, at);
    at += block.length;
  }
  return out;
}
