"use strict";
// Keyboard review: 1 to 9 choose a label, up and down a cell; right shows the older frame, N the next to review.
// "Why this label" replaces the image with the class-activation map of the field or of the chosen cell.
const form = document.getElementById("review");
const image = document.getElementById("picture");
const boxes = document.getElementById("boxes");
const radios = form ? [...form.querySelectorAll("input[name=cell]")] : [];

function draw() {
  if (!image || !image.naturalWidth) return;
  const cells = radios.map((radio) => ({ box: radio.dataset.box.split(" ").map(Number), chosen: radio.checked }));
  drawBoxes(boxes, image.naturalWidth, image.naturalHeight, cells);
  const { bar, barText } = image.dataset;
  if (bar) boxes.append(...scaleBar(image.naturalWidth, image.naturalHeight, { px: Number(bar), text: barText }));
  [...boxes.querySelectorAll("rect.cell")].forEach((box, index) => box.addEventListener("click", () => choose(index)));
}

// A click on a box chooses its cell, and the label keys apply to it.
function choose(index) {
  radios[index].checked = true;
  radios[index].focus({ preventScroll: true });
  radios[index].dispatchEvent(new Event("change"));
  radios[index].scrollIntoView({ block: "nearest" });
}

if (image) image.addEventListener("load", draw);
for (const radio of radios) radio.addEventListener("change", draw);
draw();
const chosen = radios.find((radio) => radio.checked);
if (chosen) chosen.scrollIntoView({ block: "nearest" });

document.addEventListener("keydown", (event) => {
  if (!isShortcut(event)) return;
  const label = form && form.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
  const link = { ArrowRight: "older", n: "needed", N: "needed" }[event.key];
  const target = link && document.getElementById(link);
  if (label) {
    event.preventDefault();
    form.requestSubmit(label);
  } else if (target && !(event.key === "ArrowRight" && event.target.type === "radio")) {
    event.preventDefault();
    location.assign(target.href);
  }
});

const explain = document.getElementById("explain");
if (explain) {
  const plain = image.src;
  const show = (map) => {
    const { dataset } = radios.find((radio) => radio.checked) || explain;
    explain.setAttribute("aria-pressed", String(map));
    image.parentElement.classList.toggle("map", map);
    boxes.toggleAttribute("hidden", map);
    image.src = map ? dataset.map : plain;
  };
  const pressed = () => explain.getAttribute("aria-pressed") === "true";
  explain.addEventListener("click", () => show(!pressed()));
  for (const radio of radios) radio.addEventListener("change", () => pressed() && show(true));
}
