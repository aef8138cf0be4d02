/** The page's side of the worker: one promise for each task. */

import { EdgeallError } from "./errors.js";

const worker = new Worker("worker.js");
/** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
const waiting = new Map();
let last = 0;

worker.onmessage = (/** @type {MessageEvent} */ { data: { id, result, error } }) => {
  const { resolve, reject } = /** @type {NonNullable<ReturnType<typeof waiting.get>>} */ (waiting.get(id));
  waiting.delete(id);
  if (error) reject(new EdgeallError(error.message, error.hint));
  else resolve(result);
};

worker.onerror = (/** @type {ErrorEvent} */ event) => {
  event.preventDefault();
  for (const { reject } of waiting.values()) reject(new EdgeallError(`the page can't run here (${event.message})`));
  waiting.clear();
};

/**
 * @param {"start" | "openCells" | "classifyFile" | "classifyFrame"} task
 * @param {object} values
 * @param {Transferable[]} [move]
 * @returns {Promise<any>}
 */
export function ask(task, values, move = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject });
    worker.postMessage({ id: last, task, values }, move);
  });
}
