"use strict";
// The progress of learning twice a second, until it has ended.
const bar = document.getElementById("progress");
const text = document.getElementById("progress-text");

async function refresh() {
  try {
    const answer = await fetch("/learn/state", { headers: { accept: "application/json" } });
    const state = answer.ok && !answer.redirected ? await answer.json() : null;
    if (state && state.phase !== "learning") {
      location.reload();
      return;
    }
    if (state) {
      bar.max = Math.max(state.total, 1);
      bar.value = state.done;
      text.textContent = `${state.done} / ${state.total}`;
    }
  } catch {
    // the rig may be restarting: try again
  }
  setTimeout(refresh, 500);
}
if (bar) refresh();
