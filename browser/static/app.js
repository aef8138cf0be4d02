/** The page: the model is checked first; then files and the camera give results. */

import { connectCamera } from "./camera.js";
import { connectCells, wantedCells } from "./cells.js";
import { ask } from "./client.js";
import { element } from "./page.js";
import { addResult, connectResults } from "./results.js";

/**
 * @typedef {object} Facts what the worker says of the model
 * @property {"classification" | "segmentation"} task
 * @property {string} name
 * @property {string} created
 * @property {string} unit
 * @property {string[]} labels
 * @property {number} golden
 * @property {boolean} signed
 * @property {string} digest
 * @property {number} threads
 * @property {boolean} explains
 * @property {{digest: string, golden: number}} cells the same of the model of cells
 */

const files = /** @type {HTMLInputElement} */ (element("files"));

async function main() {
  try {
    const app = await (await fetch("app.json")).json();
    const address = (/** @type {string} */ name) => new URL(name, location.href).href;
    const cells = app.cells && { ...app.cells, model: address(app.cells.model) };
    ready(await ask("start", { model: address(app.model), publicKey: app.public_key, cells }));
  } catch (error) {
    refuse(error);
  }
  await keepOffline();
}

/** @param {Facts} facts */
function ready(facts) {
  document.title = `edgeall ${facts.name}`;
  element("name").textContent = facts.name;
  const segments = facts.task === "segmentation";
  if (segments) element("input-title").textContent = "Find cells";
  element("unit").textContent = facts.unit === "cell" ? "One cell in each image." : "One smear field in each image.";
  const rows = {
    labels: facts.labels.join(", "),
    created: facts.created,
    digest: `${facts.digest} matches`,
    "golden images": `${facts.golden} as packed`,
    "cell finder": `${facts.cells.digest} matches; its golden images are checked when cells are wanted`,
    signature: facts.signed ? "valid, by the key of this page" : "not required",
    threads: String(facts.threads),
  };
  for (const [name, value] of Object.entries(rows)) {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, text.textContent] = [name, value];
    text.id = `fact-${name.replaceAll(" ", "-")}`;
    element("facts").append(term, text);
  }
  connectResults(facts.labels, segments);
  connectCells(segments || facts.unit !== "cell", segments, () => openCells(facts.cells));
  connectCamera({ explains: facts.explains, segments }, trouble);
  files.onchange = () => take(Array.from(files.files ?? []), facts.explains);
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    take(Array.from(event.dataTransfer?.files ?? []), facts.explains);
  };
  element("status").hidden = true;
  element("ready").hidden = false;
  document.body.dataset.state = "ready";
}

/**
 * Open the model of cells, which is checked then: a classifier need not wait for it.
 * @param {Facts["cells"]} facts
 */
async function openCells({ digest, golden }) {
  const fact = element("fact-cell-finder");
  try {
    await ask("openCells", {});
    fact.textContent = `${digest} matches; ${golden} golden images as packed`;
  } catch (error) {
    fact.textContent = `refused: ${textOf(error)}`;
    trouble(error);
    throw error;
  }
}

/** @param {unknown} error */
function refuse(error) {
  const status = element("status");
  status.textContent = textOf(error);
  status.classList.add("bad");
  status.role = "alert";
  document.body.dataset.state = "refused";
}

/** @param {any} error */
function textOf(error) {
  return error.hint ? `${error.message}: ${error.hint}.` : `${error.message}.`;
}

/** @param {unknown} error */
function trouble(error) {
  element("trouble").textContent = textOf(error);
  element("trouble").hidden = false;
}

/**
 * Classify files one after the other.
 * @param {File[]} chosen
 * @param {boolean} explain
 */
async function take(chosen, explain) {
  element("trouble").hidden = true;
  files.value = "";
  for (const file of chosen) {
    try {
      const { prediction, map } = await ask("classifyFile", { name: file.name, file, explain, cells: wantedCells() });
      addResult(prediction, prediction.error ? null : await createImageBitmap(file), map);
    } catch (error) {
      trouble(error);
      return;
    }
  }
}

/** Keep the page's files for use without a network. */
async function keepOffline() {
  if (!("serviceWorker" in navigator)) return;
  try {
    const kept = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    const tell = () => {
      const isOld = kept.active && kept.waiting; // the first version waits for a moment too
      element("offline").textContent = isOld ? "new version: close all windows of this page" : "works offline";
    };
    const watch = (/** @type {ServiceWorker | null} */ worker) => worker?.addEventListener("statechange", tell);
    kept.onupdatefound = () => watch(kept.installing);
    watch(kept.waiting); // from an earlier visit: it becomes active as soon as the last old page is gone
    await navigator.serviceWorker.ready;
    tell();
  } catch {
    element("offline").textContent = navigator.onLine ? "needs the network" : "";
  }
}

main();
