"use strict";
// The live view: events bring the data; pictures are fetched as fast as this browser shows them.
const $ = (id) => document.getElementById(id);
let view = $("view");
const bars = [...$("bars").children];
const csrf = document.querySelector("meta[name=csrf]").content;
const capture = $("capture");
const slide = $("slide");
let latest = null; // the newest event
let shown = null; // the event whose picture is on the screen
let loading = false;
let problems = "";
let capturing = false;
let heard = Date.now(); // when the last event came
let cleared = 0; // how often the picture was blanked
const STALE_MS = 6000; // the rig sends an event at least every second

function text(id, value) {
  const element = $(id);
  if (element.textContent !== value) element.textContent = value;
}

function fill(bar, fraction) {
  bar.lastElementChild.setAttribute("width", 100 * fraction);
}

function blankPicture() {
  cleared += 1;
  shown = null;
  const next = view.cloneNode();
  delete next.dataset.picture;
  next.src = "/static/dark.svg";
  view.replaceWith(next);
  view = next;
  $("boxes").replaceChildren();
}

// Nothing on the page may look like a result of now.
function disconnected() {
  text("connection", _("No connection to the rig; trying again."));
  $("light").className = "light bad";
  text("title", _("No connection"));
  text("advice", _("what the camera sees now is not known"));
  fill($("focus"), 0);
  for (const id of ["focus-text", "probability"]) text(id, "");
  for (const id of ["label", "rate", "camera"]) text(id, "–");
  text("files", "");
  $("needs-review").hidden = true;
  for (const bar of bars) {
    fill(bar.querySelector("svg"), 0);
    bar.querySelector("span").textContent = "";
  }
  if (capture) capture.disabled = true;
  latest = null;
  blankPicture();
}

function showEvent(now) {
  const light = $("light");
  if (!light.classList.contains(now.level)) light.className = `light ${now.level}`;
  text("title", now.title);
  text("advice", now.advice);
  fill($("focus"), now.focus);
  text("focus-text", now.focus ? `${decimal(100 * now.focus, 0)} %` : "");
  text("label", now.label || "–");
  text("probability", now.probability);
  $("needs-review").hidden = !now.review;
  text("needs-review", now.review);
  $("verdict").classList.toggle("doubt", Boolean(now.review));
  if (capture) capture.disabled = capturing || now.picture === null;
  for (const bar of bars) {
    const found = now.bars[bar.firstElementChild.textContent];
    if (!found) return location.reload(); // the rig was restarted with another model
    const [value, caption] = found;
    fill(bar.querySelector("svg"), value);
    bar.querySelector("span").textContent = caption;
  }
  text("rate", now.rate);
  text("camera", now.camera);
  text("files", now.files);
  const lines = [...now.problems.map((text) => ["bad", text]), ...now.notes.map((text) => ["warn", text])];
  if (lines.join() !== problems) {
    problems = lines.join();
    $("problems").replaceChildren(...lines.map(([level, message]) => {
      const line = document.createElement("p");
      line.className = `notice ${level}`;
      line.textContent = message;
      return line;
    }));
  }
  const session = now.session ? `${now.session.id}${now.asks ? " asks" : ""}` : "";
  if (session !== slide.dataset.session) {
    // Another viewer started or ended a slide. Do not reload while the user is typing.
    const typing = [...slide.querySelectorAll("input:not([type=hidden]), textarea")].some((field) => field.value !== field.defaultValue);
    if (!typing) location.reload();
  } else if (now.session) {
    text("frames", String(now.session.frames));
    showCount(now.count);
  }
}

let reached = null; // whether the target was reached at the last event

function showCount(count) {
  if (!count) return;
  text("tally", count.text);
  text("count", String(count.total));
  text("target", count.target ? `/ ${count.target}` : "");
  const list = $("shares");
  while (list.children.length > count.shares.length) list.lastElementChild.remove();
  count.shares.forEach(([label, number, fraction], index) => {
    if (!list.children[index]) list.append(bars[0].cloneNode(true));
    const row = list.children[index];
    row.firstElementChild.textContent = label;
    fill(row.querySelector("svg"), fraction);
    row.querySelector("span").textContent = `${number} · ${decimal(100 * fraction, 1)} %`;
  });
  const now = count.target > 0 && count.total >= count.target;
  if (now && reached === false) {
    text("reached", _("{count} of {target}: the count is complete.", { count: count.total, target: count.target }));
    // Before a click, a browser allows no sound.
    if (toneOn() && navigator.userActivation && navigator.userActivation.hasBeenActive) playTone();
  }
  reached = now;
}

const tone = $("tone");
function toneOn() {
  return localStorage.getItem("edgeall-tone") !== "off"; // kept in this browser
}
function playTone() {
  const audio = new AudioContext();
  const sound = audio.createOscillator();
  const volume = audio.createGain();
  volume.gain.value = 0.15;
  sound.connect(volume).connect(audio.destination);
  sound.start();
  sound.stop(audio.currentTime + 0.4);
  sound.addEventListener("ended", () => audio.close());
}
if (tone) {
  tone.setAttribute("aria-pressed", String(toneOn()));
  tone.addEventListener("click", () => {
    localStorage.setItem("edgeall-tone", toneOn() ? "off" : "on");
    tone.setAttribute("aria-pressed", String(toneOn()));
    if (toneOn()) playTone();
  });
}

async function fetchPicture() {
  if (latest && latest.picture === null && view.dataset.picture) blankPicture();
  if (loading || !latest || latest.picture === null || (shown && shown.picture === latest.picture)) return;
  loading = true;
  const event = latest;
  const before = cleared;
  const next = view.cloneNode();
  next.src = `/live/${event.picture}.jpg`;
  try {
    await next.decode(); // so that picture and boxes change in one step
    if (before === cleared) {
      shown = event;
      next.dataset.picture = event.picture;
      view.replaceWith(next);
      view = next;
      drawBoxes($("boxes"), event.size[0], event.size[1], event.cells);
      if (event.bar) $("boxes").append(...scaleBar(event.size[0], event.size[1], event.bar));
    }
    setTimeout(fetchPicture, 0);
  } catch {
    setTimeout(fetchPicture, 1000); // the rig is busy or stopped
  }
  loading = false;
}

let source = null;
function listen() {
  source = new EventSource("/events");
  source.onmessage = (message) => {
    latest = JSON.parse(message.data);
    heard = Date.now();
    text("connection", "");
    showEvent(latest);
    fetchPicture();
  };
  source.onerror = async () => {
    disconnected();
    if (source.readyState !== EventSource.CLOSED) return; // the browser reconnects by itself
    const answer = await fetch("/", { method: "HEAD", headers: { accept: "text/html" } }).catch(() => null);
    if (answer && answer.redirected) location.assign("/login");
    else setTimeout(listen, 3000);
  };
}
listen();
// A rig that hangs keeps its connections open.
setInterval(() => {
  if (!document.hidden && latest && Date.now() - heard > STALE_MS) disconnected();
}, 1000);
// Close the stream while the tab is hidden, to save network traffic.
document.addEventListener("visibilitychange", () => {
  source.close();
  if (document.hidden) disconnected();
  else listen();
});

// Starting or ending a slide opens another page: its event must not reload this one in the meantime.
document.addEventListener("submit", () => source.close());

async function takeCapture() {
  if (!capture || capture.disabled) return;
  capturing = capture.disabled = true;
  const result = $("capture-result");
  try {
    const answer = await fetch("/capture", { method: "POST", headers: { "x-csrf-token": csrf } });
    if (answer.status === 403) return location.reload(); // the form's key has changed
    if (!answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      throw new Error(page.querySelector("main.message h1, #main h1 + p").textContent);
    }
    const { frame, image_lost: lost } = await answer.json();
    const link = document.createElement("a");
    link.href = `/frames/${frame}`;
    link.textContent = _("frame {number}", { number: frame });
    result.classList.toggle("lost", Boolean(lost));
    const told = lost
      ? _("No image was saved: {reason}. The result is recorded as {frame}.", { reason: lost })
      : _("Captured as {frame}.");
    const [before, after] = told.split("{frame}");
    result.replaceChildren(before, link, after);
  } catch (error) {
    result.textContent = _("Not captured: {reason}", { reason: error.message });
  }
  capturing = false;
  capture.disabled = !latest || latest.picture === null;
}

if (capture) capture.addEventListener("click", takeCapture);
document.addEventListener("keydown", (event) => {
  if (isShortcut(event) && event.key.toLowerCase() === "c") takeCapture();
});
