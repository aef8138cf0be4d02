/**
 * The service worker: keeps all files of the page, each verified by its digest, so that it works without a network.
 *
 * A new version is fetched completely before it replaces the old one, when no page of the old one is open.
 */

importScripts("files.js"); // written by `edgeall web`: FILES, the app's version, digests and headers

const { version, digests, headers } = self.FILES;
const PREFIX = `edgeall ${registration.scope} `;
const CACHE = PREFIX + version;

addEventListener("install", (/** @type {any} */ event) => {
  event.waitUntil(keepAll());
});

addEventListener("activate", (/** @type {any} */ event) => {
  event.waitUntil(removeOthers().then(() => clients.claim()));
});

addEventListener("fetch", (/** @type {any} */ event) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.href.startsWith(registration.scope)) event.respondWith(answer(url));
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  const requests = Object.entries(digests).map(
    ([path, integrity]) => new Request(path, { integrity, cache: "no-cache" }),
  );
  await cache.addAll(requests);
}

async function removeOthers() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name)));
}

/**
 * The kept file; from the network if there is none.
 * @param {URL} url inside the page's scope
 */
async function answer(url) {
  url.hash = url.search = "";
  if (url.href === registration.scope) url.pathname += "index.html";
  const kept = await (await caches.open(CACHE)).match(url.href);
  if (!kept) return fetch(url.href);
  // With these headers the page is cross-origin isolated, which threads need, whatever the server sends.
  const all = new Headers(kept.headers);
  for (const [name, value] of Object.entries(headers)) all.set(name, value);
  return new Response(kept.body, { status: kept.status, headers: all });
}
