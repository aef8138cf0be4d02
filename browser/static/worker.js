/**
 * The thread that runs the model, so that the page stays responsive. A classic script: the runtime needs
 * `importScripts`.
 */

const engine = import("./engine.js");

onmessage = async ({ data: { id, task, values } }) => {
  const worker = /** @type {any} */ (self);
  try {
    const tasks = /** @type {Record<string, Function>} */ ((await engine).tasks);
    const { result, move = [] } = await tasks[task](values);
    worker.postMessage({ id, result }, move);
  } catch (error) {
    const { message = String(error), hint = "" } = /** @type {any} */ (error);
    worker.postMessage({ id, error: { message, hint } });
  }
};
