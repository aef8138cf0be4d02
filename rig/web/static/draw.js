"use strict";
// Boxes over an image, in the image's own pixels; used by the live page and the page of one frame.
const SVG = "http://www.w3.org/2000/svg";

function drawBoxes(svg, width, height, cells) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const shapes = [];
  for (const cell of cells) {
    const [left, top, right, bottom] = cell.box;
    for (const kind of ["under", "cell"]) {
      const rect = document.createElementNS(SVG, "rect");
      const place = { x: left, y: top, width: right - left, height: bottom - top, rx: 6 };
      for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
      rect.classList.add(kind);
      if (kind === "cell" && cell.review) rect.classList.add("ask");
      if (kind === "cell" && cell.chosen) rect.classList.add("chosen");
      shapes.push(rect);
    }
    if (cell.label) {
      const text = document.createElementNS(SVG, "text");
      const size = Math.round(height / 32);
      text.setAttribute("x", left + 4);
      text.setAttribute("y", top > size * 1.4 ? top - size * 0.35 : bottom + size);
      text.setAttribute("font-size", size);
      text.textContent = cell.label;
      shapes.push(text);
    }
  }
  svg.replaceChildren(...shapes);
}

// A scale bar at the lower right of a picture; its length and text come from the rig.
function scaleBar(width, height, bar) {
  const unit = height / 28;
  const rect = document.createElementNS(SVG, "rect");
  const place = { x: width - unit - bar.px, y: height - 1.2 * unit, width: bar.px, height: unit / 4 };
  for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
  rect.classList.add("ruler");
  const text = document.createElementNS(SVG, "text");
  for (const [name, value] of [["x", width - unit], ["y", height - 1.6 * unit], ["font-size", unit], ["text-anchor", "end"]]) {
    text.setAttribute(name, value);
  }
  text.textContent = bar.text;
  return [rect, text];
}

// Whether a key is a shortcut of the page, not text input or a browser shortcut.
function isShortcut(event) {
  return !(event.ctrlKey || event.metaKey || event.altKey || event.repeat) &&
    !event.target.closest("input:not([type=radio]), textarea, select");
}
