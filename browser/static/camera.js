/** The camera: its picture is classified again and again; a kept picture becomes a result. */

import { wantedCells } from "./cells.js";
import { ask } from "./client.js";
import { element } from "./page.js";
import { addResult, verdict } from "./results.js";

/**
 * @typedef {object} Looking
 * @property {boolean} explains whether the model has class-activation maps
 * @property {boolean} segments whether it is a segmentation model
 */

const video = /** @type {HTMLVideoElement} */ (element("view"));
/** @type {MediaStream | null} */
let stream = null;
let keep = false;

/**
 * @param {Looking} looking
 * @param {(error: unknown) => void} fail shows an error
 */
export function connectCamera(looking, fail) {
  element("camera").onclick = () => (stream ? stop() : begin(looking).catch(fail));
  element("keep").onclick = () => (keep = true);
}

/** @param {Looking} looking */
async function begin(looking) {
  if (!navigator.mediaDevices) throw new Error("the camera needs an https address");
  const wanted = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1440 } };
  stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  video.srcObject = stream;
  show(true);
  try {
    await video.play();
    while (stream) await look(looking);
  } finally {
    stop();
  }
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = video.srcObject = null;
  show(false);
}

/** @param {boolean} on */
function show(on) {
  element("camera").ariaPressed = String(on);
  element("live").hidden = element("keep").hidden = !on;
  element("live-result").replaceChildren();
}

/**
 * Classify the picture of this moment.
 * @param {Looking} looking
 */
async function look({ explains, segments }) {
  const kept = keep;
  keep = false;
  const [frame, picture] = await Promise.all([createImageBitmap(video), kept ? createImageBitmap(video) : null]);
  const name = `camera ${new Date().toISOString()}`;
  const wanted = { explain: kept && explains, cells: kept || segments ? wantedCells() : null };
  const { prediction, map } = await ask("classifyFrame", { name, frame, ...wanted }, [frame]);
  if (kept) addResult(prediction, picture, map);
  else map?.close();
  if (stream) element("live-result").replaceChildren(...verdict(prediction));
  await new Promise(requestAnimationFrame); // a hidden page pauses here
}
