/** The camera: its picture is classified again and again; a kept picture becomes a result. */

import { ask } from "./client.js";
import { addResult, element, verdict } from "./results.js";

const video = /** @type {HTMLVideoElement} */ (element("view"));
/** @type {MediaStream | null} */
let stream = null;
let keep = false;

/**
 * @param {boolean} explains whether the model has class-activation maps
 * @param {(error: unknown) => void} fail shows an error
 */
export function connectCamera(explains, fail) {
  element("camera").onclick = () => (stream ? stop() : begin(explains).catch(fail));
  element("keep").onclick = () => (keep = true);
}

/** @param {boolean} explains */
async function begin(explains) {
  if (!navigator.mediaDevices) throw new Error("the camera needs an https address");
  const wanted = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1440 } };
  stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  video.srcObject = stream;
  show(true);
  try {
    await video.play();
    while (stream) await look(explains);
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
 * @param {boolean} explains
 */
async function look(explains) {
  const kept = keep;
  keep = false;
  const [frame, picture] = await Promise.all([createImageBitmap(video), kept ? createImageBitmap(video) : null]);
  const name = `camera ${new Date().toISOString()}`;
  const { prediction, map } = await ask("classifyFrame", { name, frame, explain: kept && explains }, [frame]);
  if (kept) addResult(prediction, picture, map);
  if (stream) element("live-result").replaceChildren(...verdict(prediction));
  await new Promise(requestAnimationFrame); // a hidden page pauses here
}
