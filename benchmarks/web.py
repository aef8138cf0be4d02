"""The app of `edgeall web` in Chromium, compared with `edgeall run` on real images.

python benchmarks/web.py MODEL IMAGES [--images 1000] [--fields DIR] [--number-of-fields 100] [--litertjs FILE]
    [--out benchmarks/results/web.md]

Outputs of PNG and JPEG files, bit for bit; milliseconds per image beside the native interpreter; cold start; size. With
--fields, also the cells that the page finds, compared with those of `edgeall cells`, and the time per field.
Needs Chromium and playwright. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import base64
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from command import EDGEALL, answer, machine_lines, revision
from playwright.sync_api import sync_playwright
from web_cells import CellFields, Cells, cell_limits, cell_lines

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.images import SUFFIXES, open_rgb
from edgeall.edge_runtime.pipeline import classify_one
from edgeall.edge_runtime.preprocess import preprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMED = 200
"""Images of each measurement of time, in batches that alternate with those of the native interpreter."""
BATCH = 20
STARTS = 5
MAX_MB, MAX_START_S, MAX_SINGLE, MAX_THREADED, MIN_JPEG = 12.0, 3.0, 3.0, 1.5, 99.9
CLASSIFY = """async (names) => {
  const { ask } = await import("./client.js");
  const answers = [];
  for (const name of names) {
    const file = await (await fetch(`images/${name}`)).blob();
    const begun = performance.now();
    const { prediction, scores, milliseconds } = await ask("classifyFile", { name, file });
    answers.push({ ...prediction, scores, ...milliseconds, whole: performance.now() - begun });
  }
  return answers;
}"""
PIXELS = """async ([name, input]) => {
  const [{ decodeRgb }, { preprocess }] = await Promise.all([import("./images.js"), import("./preprocess.js")]);
  const bytes = new Uint8Array(await (await fetch(`images/${name}`)).arrayBuffer());
  const pixels = preprocess(await decodeRgb(bytes, name), input);
  let text = "";
  for (let at = 0; at < pixels.length; at += 8192) text += String.fromCharCode(...pixels.subarray(at, at + 8192));
  return btoa(text);
}"""


@dataclass(frozen=True)
class Agreement:
    """Answers of the page compared with those of `edgeall run`.

    Attributes:
        images: number of images.
        labels: with the same label.
        reasons: with the same reason for review, or none.
        scores: with the same raw outputs, bit for bit.
        largest: largest difference of a raw output, in its units.
        probability: largest difference of a probability.
    """

    images: int
    labels: int
    reasons: int
    scores: int
    largest: float
    probability: float


@dataclass(frozen=True)
class Times:
    """Medians in milliseconds per image: of the page, and of the native interpreter measured in turns with it."""

    threads: int
    model: float
    native_model: float
    whole: float
    native_whole: float


def agreement(classifier: Classifier, folder: Path, answers: list[dict[str, Any]]) -> Agreement:
    labels = reasons = scores = 0
    largest = probability = 0.0
    for found in answers:
        path = folder / found["image"]
        expected = classify_one(classifier, str(path))
        units = classifier.predict_units(preprocess(open_rgb(path), classifier.input))
        difference = float(np.abs(units.astype(np.float64) - np.array(found["scores"])).max())
        labels += found["label"] == expected.label
        reasons += found["reason"] == expected.reason
        scores += difference == 0
        largest = max(largest, difference)
        probability = max(probability, abs(found["probability"] - expected.probability))
    return Agreement(len(answers), labels, reasons, scores, largest, probability)


def deviations(page: Any, classifier: Classifier, folder: Path, names: list[str]) -> tuple[int, int, float]:
    """JPEG files whose pixels differ from Pillow's; the largest difference, and the share of values that differ."""
    spec = classifier.input
    wanted = {"width": spec.width, "height": spec.height, "fit": spec.fit}
    images, largest, values = 0, 0, 0
    for name in names:
        found = np.frombuffer(base64.b64decode(page.evaluate(PIXELS, [name, wanted])), np.uint8)
        apart = np.abs(found.astype(int) - preprocess(open_rgb(folder / name), spec).reshape(-1))
        images, largest, values = (
            images + bool(apart.any()),
            max(largest, int(apart.max())),
            values + int((apart > 0).sum()),
        )
    return images, largest, values / (len(names) * spec.width * spec.height * 3)


def answers(page: Any, names: list[str]) -> list[dict[str, Any]]:
    """The page's own, in batches."""
    return [
        each for start in range(0, len(names), BATCH) for each in page.evaluate(CLASSIFY, names[start : start + BATCH])
    ]


def times(page: Any, classifier: Classifier, folder: Path, names: list[str]) -> Times:
    """Batches of the page and of the native interpreter with one thread, in turns."""
    ours: list[dict[str, Any]] = []
    model, whole = [], []
    page.evaluate(CLASSIFY, names[:BATCH])  # warm
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        ours += page.evaluate(CLASSIFY, batch)
        for name in batch:
            begun = time.perf_counter()
            pixels = preprocess(open_rgb(folder / name), classifier.input)
            prepared = time.perf_counter()
            classifier.infer(pixels)
            model.append(1e3 * (time.perf_counter() - prepared))
            whole.append(1e3 * (time.perf_counter() - begun))
    threads = int(page.locator("#facts dd").last.text_content())
    medians = (statistics.median(each[key] for each in ours) for key in ("model", "whole"))
    page_model, page_whole = medians
    return Times(threads, page_model, statistics.median(model), page_whole, statistics.median(whole))


@contextmanager
def served(app: Path) -> Iterator[str]:
    """The address of `edgeall web --serve`."""
    command = [EDGEALL, "web", "--serve", "--out", str(app), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield next(line.split()[-1] for line in process.stderr if "http://" in line)
    finally:
        process.terminate()
        process.wait()


def opened(context: Any, address: str, isolated: bool = True) -> Any:
    """A page whose model is ready; without isolation it has one thread."""
    page = context.new_page()

    def plain(route: Any) -> None:
        response = route.fetch()
        headers = {name: value for name, value in response.headers.items() if not name.startswith("cross-origin-")}
        route.fulfill(response=response, headers=headers)

    if not isolated:
        page.route(lambda url: url in (address, f"{address}worker.js"), plain)
    page.goto(address)
    page.locator("body[data-state=ready]").wait_for()
    page.locator("details summary").click()
    return page


def cold_start(playwright: Any, profile: Path, address: str, image: Path) -> float:
    """Seconds from the address to the first label, in a new process of a browser that was there before."""
    context = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=["--no-sandbox"])
    page = context.pages[0]
    begun = time.perf_counter()
    page.goto(address)
    page.locator("body[data-state=ready]").wait_for()
    page.locator("#files").set_input_files(image)
    page.locator("#list .label").wait_for()
    seconds = time.perf_counter() - begun
    page.get_by_text("works offline").wait_for()
    context.close()
    return seconds


@dataclass(frozen=True)
class Measured:
    """All results. ``apart``: see `deviations`, None without JPEG files; ``starts``: seconds, the first visit first."""

    app: dict[str, Any]
    found: dict[str, Agreement]
    apart: tuple[int, int, float] | None
    timed: list[Times]
    cells: Cells | None
    starts: list[float]
    chromium: str


def chosen(folder: Path, number: int) -> list[Path]:
    """Images of a folder, evenly."""
    every = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    step = max(1, len(every) / number)
    return [every[int(index * step)] for index in range(min(number, len(every)))]


def copied(arguments: argparse.Namespace, app: Path) -> dict[str, list[str]]:
    """Names of the images by kind. Copies them into the app: ``images/``, each also as PNG; ``fields/`` as they are."""
    jpeg, png = [], []
    (app / "images").mkdir()
    for number, path in enumerate(chosen(arguments.images_folder, arguments.images)):
        png.append(f"{number:05d}.png")
        open_rgb(path).save(app / "images" / png[-1])
        if path.suffix.lower() in (".jpg", ".jpeg"):
            jpeg.append(f"{number:05d}.jpg")
            shutil.copy(path, app / "images" / jpeg[-1])
    if arguments.fields:
        (app / "fields").mkdir()
        for number, path in enumerate(chosen(arguments.fields, arguments.number_of_fields)):
            shutil.copy(path, app / "fields" / f"{number:05d}{path.suffix.lower()}")
    return {"PNG": png, "JPEG": jpeg}


def measure(arguments: argparse.Namespace, folder: Path) -> Measured:
    """Write the app into a folder, and measure it."""
    app = folder / "app"
    given = ("--litertjs", arguments.litertjs) if arguments.litertjs else ()
    facts = answer("web", arguments.model, "--out", app, *given)
    files = copied(arguments, app)
    images, png, jpeg = app / "images", files["PNG"], files["JPEG"]
    fields = CellFields(app / "fields", folder / "cells") if arguments.fields else None
    classifier = Classifier.open(arguments.model, threads=1)
    with served(app) as address, sync_playwright() as playwright:
        profile = folder / "profile"
        starts = [cold_start(playwright, profile, address, images / png[0]) for _ in range(STARTS + 1)]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(service_workers="block")
        context.set_default_timeout(120_000)
        single, threaded = opened(context, address, isolated=False), opened(context, address)
        found = {kind: agreement(classifier, images, answers(single, names)) for kind, names in files.items() if names}
        apart = deviations(single, classifier, images, jpeg[:TIMED]) if jpeg else None
        pages = single, threaded
        timed = [times(page, classifier, images, png[:TIMED]) for page in pages]
        cells = (
            fields.measure([(page, each.threads) for page, each in zip(pages, timed, strict=True)]) if fields else None
        )
        version = browser.version
        browser.close()
    return Measured(facts, found, apart, timed, cells, starts, version)


def limits_of(measured: Measured) -> list[tuple[str, str, str, bool]]:
    """What, measured, limit, and whether it is met."""
    again, size = statistics.median(measured.starts[1:]), measured.app["bytes"] / 1e6
    png, jpeg = measured.found["PNG"], measured.found.get("JPEG")
    equal = min(png.labels, png.reasons)
    limits = [
        ("PNG: outputs identical", f"{png.scores} of {png.images}", "all", png.scores == png.images),
        ("PNG: label and reason equal", f"{equal} of {png.images}", "all", equal == png.images),
        ("MB of the app", f"{size:.2f}", f"{MAX_MB:g}", size <= MAX_MB),
        ("s to the first answer, browser started anew", f"{again:.2f}", f"{MAX_START_S:g}", again <= MAX_START_S),
    ]
    if jpeg:
        share = 100 * jpeg.labels / jpeg.images
        limits.append(("JPEG: labels equal", f"{jpeg.labels} of {jpeg.images}", f"{MIN_JPEG} %", share >= MIN_JPEG))
    for each, limit in zip(measured.timed, (MAX_SINGLE, MAX_THREADED), strict=True):
        what, ratio = f"model, threads: {each.threads}; ratio to native with one", each.model / each.native_model
        limits.append((what, f"{ratio:.2f}", f"{limit:g}", ratio <= limit))
    return limits + (cell_limits(measured.cells, (MAX_SINGLE, MAX_THREADED)) if measured.cells else [])


def report(measured: Measured) -> str:
    """The page of results."""
    facts, png, jpeg = measured.app, measured.found["PNG"], measured.found.get("JPEG")
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    lines = [
        "# The app in the browser",
        "",
        f"`python benchmarks/{shlex.join(words)}`, edgeall {revision('browser', 'edge_runtime')}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}.",
        f"Chromium {measured.chromium}, headless; LiteRT.js {facts['litertjs']}. Model `{facts['model']}`, "
        f"{facts['flatbuffer_sha256'][:16]}.",
        "",
        "| what | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {what} | {value} | {limit} | {'yes' if ok else 'NO'} |"
            for what, value, limit, ok in limits_of(measured)
        ),
        "",
        "Medians in ms per image, the native interpreter with one thread, in turns with the page:",
        "",
        "| threads of the page | page: model | native: model | page: file to answer | native: file to answer |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {t.threads} | {t.model:.2f} | {t.native_model:.2f} | {t.whole:.2f} | {t.native_whole:.2f} |"
            for t in measured.timed
        ),
        "",
        *(cell_lines(measured.cells) if measured.cells else []),
        f"First visit, everything fetched from this machine: {measured.starts[0]:.2f} s to the first answer.",
        f"PNG: the largest difference of a probability is {png.probability:.1e}.",
    ]
    if jpeg and measured.apart:
        images, largest, values = measured.apart
        lines += [
            f"JPEG: outputs identical for {jpeg.scores} of {jpeg.images}; largest difference {jpeg.largest:g}, of a",
            f"probability {jpeg.probability:.1e}; reason equal for {jpeg.reasons}. Pixels of {min(TIMED, jpeg.images)}",
            f"files: {images} differ from Pillow's, in {100 * values:.4f} % of the values, by at most {largest}.",
        ]
    return "\n".join([*lines, "", *machine_lines(), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a packed classifier")
    parser.add_argument("images_folder", metavar="IMAGES", type=Path, help="folder")
    parser.add_argument("--images", type=int, default=1000, help="number of images, evenly from the folder")
    parser.add_argument("--fields", metavar="DIR", type=Path, help="folder of smear fields whose cells are found")
    parser.add_argument("--number-of-fields", type=int, default=100, help="evenly from the folder")
    parser.add_argument("--litertjs", type=Path, help="see `edgeall web`")
    parser.add_argument("--out", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments, Path(folder))
    page = report(measured)
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if all(met for *_, met in limits_of(measured)) else 1


if __name__ == "__main__":
    sys.exit(main())
