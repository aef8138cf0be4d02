/**
 * The thread that runs the model, so that the page stays responsive. A classic script: the runtime needs
 * `importScripts`.
 */

// What takes longest begins first, before all modules are here. Its errors are those of the task `start`.
import("./network.js").then(({ startedRuntime }) => startedRuntime()).catch(() => {});
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
