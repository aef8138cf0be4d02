"use strict";
// Review by keys: a label's key submits it; U undoes the last review, arrows walk, ? shows the keys.
const form = document.getElementById("review");
const keys = document.getElementById("keys");

document.addEventListener("keydown", (event) => {
  if (!isShortcut(event)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const label = form && form.querySelector(`button[data-key="${CSS.escape(key)}"]`);
  const link = document.getElementById({ ArrowLeft: "before", ArrowRight: "after" }[key] || "");
  const undo = document.getElementById("undo");
  if (label) form.requestSubmit(label);
  else if (link) location.assign(link.href);
  else if (key === "u" && undo) undo.requestSubmit();
  else if (key === "?") keys.open = !keys.open;
  else return;
  event.preventDefault();
});
