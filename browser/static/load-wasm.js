/** Loads the runtime's WebAssembly, which is stored compressed. Stands in for the npm package `@litertjs/wasm-utils`. */

/**
 * Called by LiteRT.js with the script that belongs to the WebAssembly.
 * @template T
 * @param {new (module: unknown) => T} Library
 * @param {string | URL} script
 * @returns {Promise<T>}
 */
export async function createWasmLib(Library, script) {
  const url = String(script);
  const compiled = compile(url.replace(/\.js$/, ".wasmz"));
  compiled.catch(() => {}); // reported below
  importScripts(url);
  const wasm = await compiled;
  const module = await /** @type {any} */ (self).ModuleFactory({
    mainScriptUrlOrBlob: url, // its threads run the same script
    printErr: (/** @type {string} */ line) => /^(INFO|WARNING)/.test(line) || console.error(line),
    /**
     * @param {WebAssembly.Imports} imports
     * @param {(instance: WebAssembly.Instance, module: WebAssembly.Module) => void} done
     */
    instantiateWasm(imports, done) {
      WebAssembly.instantiate(wasm, imports).then((instance) => done(instance, wasm));
      return {};
    },
  });
  return new Library(module);
}

/**
 * Compiles while it fetches and unpacks.
 * @param {string} url
 */
async function compile(url) {
  const response = await fetch(url);
  if (!response.ok || !response.body) throw new Error(`${response.url}: ${response.status}`);
  const plain = response.body.pipeThrough(new DecompressionStream("gzip"));
  return WebAssembly.compileStreaming(new Response(plain, { headers: { "content-type": "application/wasm" } }));
}
