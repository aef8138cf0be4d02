"use strict";
// The camera's picture once a second, with the scale bar of the chosen objective.
let view = document.getElementById("view");
const svg = document.getElementById("boxes");

function draw() {
  const { bar, barText, size } = view.dataset;
  const [width, height] = [view.naturalWidth, view.naturalHeight];
  svg.replaceChildren();
  if (!bar || size !== `${width} ${height}`) return; // the scale is for frames of another size
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.append(...scaleBar(width, height, { px: Number(bar), text: barText }));
}

async function refresh() {
  const next = view.cloneNode();
  next.src = `/objectives/picture.jpg?at=${Date.now()}`;
  try {
    await next.decode();
  } catch {
    next.src = "/static/dark.svg"; // the rig does not answer: nothing old is shown
  }
  view.replaceWith(next);
  view = next;
  draw();
  setTimeout(refresh, 1000);
}
refresh();
