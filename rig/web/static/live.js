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

function text(id, value) {
  const element = $(id);
  if (element.textContent !== value) element.textContent = value;
}

function fill(bar, fraction) {
  bar.lastElementChild.setAttribute("width", 100 * fraction);
}

function showEvent(now) {
  const light = $("light");
  if (!light.classList.contains(now.level)) light.className = `light ${now.level}`;
  text("title", now.title);
  text("advice", now.advice);
  fill($("focus"), now.focus);
  text("focus-text", now.focus ? `${Math.round(100 * now.focus)} %` : "");
  text("label", now.label || "–");
  text("probability", now.probability);
  $("needs-review").hidden = !now.review;
  text("needs-review", now.review);
  for (const bar of bars) {
    const found = now.bars[bar.firstElementChild.textContent];
    if (!found) return location.reload(); // the rig was restarted with another model
    const [value, caption] = found;
    fill(bar.querySelector("svg"), value);
    bar.querySelector("span").textContent = caption;
  }
  text("rate", now.rate);
  text("camera", now.camera);
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
  const session = now.session ? String(now.session.id) : "";
  if (session !== slide.dataset.session) {
    // Another viewer started or ended a slide. Do not reload while the user is typing.
    const typing = [...slide.querySelectorAll("input:not([type=hidden]), textarea")].some((field) => field.value !== field.defaultValue);
    if (!typing) location.reload();
  } else if (now.session) {
    text("frames", String(now.session.frames));
  }
}

async function fetchPicture() {
  if (loading || !latest || latest.picture === null || (shown && shown.picture === latest.picture)) return;
  loading = true;
  const event = latest;
  const next = view.cloneNode();
  next.src = `/live/${event.picture}.jpg`;
  try {
    await next.decode(); // so that picture and boxes change in one step
    shown = event;
    next.dataset.picture = event.picture;
    view.replaceWith(next);
    view = next;
    drawBoxes($("boxes"), event.size[0], event.size[1], event.cells);
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
    text("connection", "");
    showEvent(latest);
    fetchPicture();
  };
  source.onerror = async () => {
    text("connection", "No connection to the rig; trying again.");
    $("light").className = "light bad";
    text("title", "No connection");
    text("advice", "");
    if (source.readyState !== EventSource.CLOSED) return; // the browser reconnects by itself
    const answer = await fetch("/", { method: "HEAD", headers: { accept: "text/html" } }).catch(() => null);
    if (answer && answer.redirected) location.assign("/login");
    else setTimeout(listen, 3000);
  };
}
listen();
// Close the stream while the tab is hidden, to save network traffic.
document.addEventListener("visibilitychange", () => {
  source.close();
  if (!document.hidden) listen();
});

// Starting or ending a slide opens another page: its event must not reload this one in the meantime.
document.addEventListener("submit", () => source.close());

async function takeCapture() {
  if (!capture || capture.disabled) return;
  capture.disabled = true;
  const result = $("capture-result");
  try {
    const answer = await fetch("/capture", { method: "POST", headers: { "x-csrf-token": csrf } });
    if (!answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      throw new Error(page.querySelector("main.message h1, #main h1 + p").textContent);
    }
    const { frame } = await answer.json();
    const link = document.createElement("a");
    link.href = `/frames/${frame}`;
    link.textContent = `frame ${frame}`;
    result.replaceChildren("Captured as ", link, ".");
  } catch (error) {
    result.textContent = `Not captured: ${error.message}`;
  }
  capture.disabled = false;
}

if (capture) capture.addEventListener("click", takeCapture);
document.addEventListener("keydown", (event) => {
  if (isShortcut(event) && event.key.toLowerCase() === "c") takeCapture();
});
