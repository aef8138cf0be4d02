"use strict";
// Refresh the facts every five seconds.
async function refresh() {
  try {
    const answer = await fetch("/health", { headers: { accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const facts = page.getElementById("facts");
    if (facts) document.getElementById("facts").replaceWith(facts);
  } catch {
    // the rig may be restarting: try again at the next refresh
  }
}
setInterval(refresh, 5000);
