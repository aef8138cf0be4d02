"""What another laboratory costs a classifier, and what `edgeall adapt` gets back with a few labelled images of it.

python benchmarks/laboratories.py DATA --weights FILE --write benchmarks/results/laboratories.md

DATA holds cells/{pbc,bccd}, masks/all-idb2 and cnmc; FILE is MobileNetV2 0.35 with ImageNet weights, without its top.
Five types of white cell: trained on the Barcelona laboratory (PBC), tested on BCCD. Leukaemia against healthy cells:
trained on ALL-IDB2, tested on C-NMC's sample. The white cells are measured as they are and as `edgeall cells --central`
frames them, in both laboratories. Each model is trained and quantized once by `edgeall`; a complete one in
--work is used again. Each draw takes labelled images of the other laboratory, learns from them by the function behind
`edgeall adapt`, and is tested on all images of that laboratory that were not drawn. Where the product would not write
a file, because nothing was gained by more than chance, the old model counts. No limit: it reports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np

from edgeall.edge_runtime.adaptation.head import as_read, find_layer, read_head
from edgeall.edge_runtime.adaptation.learn import learn
from edgeall.edge_runtime.adaptation.site import Site, read_site
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import DataError
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.ood import is_out_of_distribution, read_ood_detector

DRAWS = 20
COUNTS = (10, 25, 50, 100)
SMALL_COUNTS = (10, 16)
"""Of C-NMC's sample, which has 32 cells."""
TRAINING = ("--model", "mobilenet_v2", "--alpha", 0.35, "--input-size", 96, "--epochs-finetune", 12)
"""Twelve epochs instead of the default of 39 for this number of images, to train in four minutes of one core."""


@dataclass(frozen=True)
class Task:
    """A model, and the images of both laboratories as it sees them."""

    name: str
    model: Path
    classifier: Classifier
    home: Site
    site: Site
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """One draw: balanced accuracy and accuracy on the images of the site that were not drawn, and at home.

    ``claimed`` is the balanced accuracy that the product states, from the images that it left out. ``unfamiliar`` is
    the share of the site's other images that the OOD detector sends to review.
    """

    written: bool
    balanced: float
    accuracy: float
    home: float
    claimed: float
    unfamiliar: float
    learned: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/laboratories"))
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--write", type=Path, help="write the Markdown page here")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tasks = [_cells(arguments), _framed_cells(arguments), _leukaemia(arguments)]
    page = report(arguments, tasks)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")
    return 0


def _cells(arguments: argparse.Namespace) -> Task:
    model = _model(arguments, "pbc", arguments.data / "cells" / "pbc")
    return _task(arguments, "White cells as they are: PBC to BCCD", model, arguments.data / "cells" / "bccd", COUNTS)


def _framed_cells(arguments: argparse.Namespace) -> Task:
    """The same, framed alike by the cell finder."""
    home, site = (_framed(arguments, name) for name in ("pbc", "bccd"))
    model = _model(arguments, "pbc-framed", home)
    return _task(arguments, "White cells, framed by `edgeall cells --central`: PBC to BCCD", model, site, COUNTS)


def _framed(arguments: argparse.Namespace, name: str) -> Path:
    out = arguments.work / f"{name}-cells"
    if not (out / "cells.csv").exists():
        command.answer("cells", arguments.data / "cells" / name, "--central", "--out", out)
    return out / "crops"


def _leukaemia(arguments: argparse.Namespace) -> Task:
    """Blasts (``all``) and healthy cells (``hem``)."""
    home, site = arguments.work / "all-idb2", arguments.work / "cnmc"
    images = sorted((arguments.data / "masks" / "all-idb2" / "images").iterdir())
    _copy(home, ((path, "all" if path.stem.endswith("_1") else "hem") for path in images))
    _copy(site, ((path, path.parent.name) for path in sorted((arguments.data / "cnmc").glob("fold_*/*/*.bmp"))))
    model = _model(arguments, "idb2", home)
    return _task(arguments, "Blasts against healthy cells: ALL-IDB2 to C-NMC's sample", model, site, SMALL_COUNTS)


def _model(arguments: argparse.Namespace, name: str, data: Path) -> Path:
    """The packed model of a laboratory, trained and quantized unless it is there."""
    run, model = arguments.work / name, arguments.work / f"{name}.tflite"
    if not (run / "run.json").exists():
        command.answer("train", "--data", data, "--weights", arguments.weights, *TRAINING, "--out", run)
    if not model.exists():
        command.answer("quantize", run, "--data", data, "--out", model)
    return model


def _task(arguments: argparse.Namespace, name: str, model: Path, site: Path, counts: tuple[int, ...]) -> Task:
    classifier = Classifier.open(model, threads=1)
    run = model.with_suffix("")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    entries = json.loads((run / "split.json").read_text(encoding="utf-8"))["entries"]
    root, kept = Path(facts["data"]["root"]), arguments.work / f"{model.stem}-test"
    _copy(kept, ((root / entry["path"], entry["label"]) for entry in entries if entry["side"] == "test"))
    return Task(name, model, classifier, read_site(classifier, kept, True), read_site(classifier, site, True), counts)


def _copy(folder: Path, images: Iterable[tuple[Path, str]]) -> None:
    """Copy images into one folder per label, unless it is there."""
    if folder.exists():
        return
    for path, label in images:
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / label / path.name)


def drawn_images(truth: np.ndarray, count: int, even: bool, seed: int) -> np.ndarray:
    """Indices of ``count`` images: as they come, or of each class in turn, at most half of the images of a class."""
    order = np.random.default_rng(seed).permutation(len(truth))
    if not even:
        return order[:count]
    of_class = [[index for index in order if truth[index] == label] for label in np.unique(truth)]
    queues = [images[: (len(images) + 1) // 2] for images in of_class]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return np.array(turns[:count])


def one_draw(task: Task, count: int, even: bool, seed: int) -> Drawn:
    """Learn from some images of the site, and test on the others."""
    site, bundle = task.site, task.classifier.bundle
    assert bundle is not None and site.truth is not None and task.home.truth is not None
    chosen = drawn_images(site.truth, count, even, seed)
    rest = np.setdiff1d(np.arange(len(site)), chosen)
    flatbuffer, detector, claimed, written, learned = bundle.flatbuffer, bundle.ood_detector, float("nan"), False, 0
    try:
        found = learn(task.classifier, _some(site, chosen))
        assert found.labelled is not None
        written, claimed = found.is_better, found.labelled.after.balanced_accuracy
        learned = len(task.classifier.labels) - len(found.labelled.left_alone)
    except DataError:  # fewer than two classes with five images
        found = None
    if found is not None and written:
        flatbuffer = found.flatbuffer
        if found.detector is not None:
            assert found.decisions.novelty is not None
            detector = read_ood_detector(found.decisions.novelty.to_json(), found.detector, "drawn")
    layer = find_layer(read_graph(flatbuffer, "drawn"), "drawn")
    head = read_head(flatbuffer, layer)
    predicted, at_home = (
        head.logits(as_read(features, layer)).argmax(axis=1) for features in (site.features[rest], task.home.features)
    )
    return Drawn(
        written=written,
        balanced=balanced(predicted, site.truth[rest]),
        accuracy=float((predicted == site.truth[rest]).mean()),
        home=balanced(at_home, task.home.truth),
        claimed=claimed,
        unfamiliar=float("nan")
        if detector is None
        else float(is_out_of_distribution(site.features[rest], detector).mean()),
        learned=learned,
    )


def balanced(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean recall of the classes that occur."""
    return float(np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)]))


def _some(site: Site, chosen: np.ndarray) -> Site:
    assert site.truth is not None
    return replace(
        site,
        paths=tuple(site.paths[index] for index in chosen),
        sha256=tuple(site.sha256[index] for index in chosen),
        truth=site.truth[chosen],
        probabilities=site.probabilities[chosen],
        features=site.features[chosen],
    )


def report(arguments: argparse.Namespace, tasks: Sequence[Task]) -> str:
    """The Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    cost = _cost(arguments, tasks[0])
    lines = [
        "# What another laboratory costs",
        "",
        f"`python benchmarks/laboratories.py DATA --weights FILE`, {datetime.now(timezone.utc):%Y-%m-%d}. MobileNetV2 "
        "0.35 at 96 pixels, 12 epochs of fine-tuning, everything else default, ptq-int8. Each row: "
        f"{arguments.draws} draws of labelled images; mean of the draws, and in brackets the range that holds 95 % of "
        "them. Accuracies are of the images of the other laboratory that were not drawn, in %. Where `edgeall adapt` "
        "would write no file, the old model counts. Home is split by image, which is optimistic. Research use only, "
        "not a diagnosis.",
        "",
        "*even*: of each class in turn, as somebody who chooses the cells would label them, at most half of the images "
        "of a class. *as they come*: at random. *learned*: classes with at least five labelled images; the others keep "
        "their part of the last layer. *stated*: balanced accuracy that the product states, from images that it left "
        "out. *unfamiliar*: sent to review by the out-of-distribution detector.",
        "",
        *(line for task in tasks for line in _section(arguments, task)),
        "## Cost",
        "",
        f"`edgeall adapt` with {cost['images']} cells of BCCD on one core: {cost['cpu_seconds']:.2f} s of CPU time "
        f"({cost['seconds']:.2f} s wall, {cost['own_seconds']:.2f} s of it after the start of Python), "
        f"{cost['peak_bytes'] / 1e6:.0f} MB at most. Load of the machine: {os.getloadavg()[0]:.1f}.",
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines)


def _section(arguments: argparse.Namespace, task: Task) -> list[str]:
    labels, truth = task.classifier.labels, task.site.truth
    assert truth is not None and task.home.truth is not None
    before, at_home = (site.probabilities.argmax(axis=1) for site in (task.site, task.home))
    counts = ", ".join(f"{label} {int((truth == index).sum())}" for index, label in enumerate(labels))
    detector = task.classifier.ood_detector
    unfamiliar = "" if detector is None else f"; unfamiliar {_percent(_flagged(task, detector))}"
    lines = [
        f"## {task.name}",
        "",
        f"The other laboratory has {len(task.site)} cells ({counts}). Without any of them: balanced accuracy "
        f"{_percent(balanced(before, truth))}, accuracy {_percent((before == truth).mean())}{unfamiliar}. At home, "
        f"{len(task.home)} test images: balanced {_percent(balanced(at_home, task.home.truth))}.",
        "",
        "| labelled | drawn | learned | files written | balanced accuracy | accuracy | stated | unfamiliar | "
        "balanced at home |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for even in (True, False):
        for count in task.counts:
            draws = [one_draw(task, count, even, seed) for seed in range(arguments.draws)]
            print(task.name, count, even, file=sys.stderr, flush=True)
            cells: list[Any] = [
                len(drawn_images(truth, count, even, 0)),
                "even" if even else "as they come",
                f"{np.mean([draw.learned for draw in draws]):.1f} of {len(labels)}",
                f"{sum(draw.written for draw in draws)} of {len(draws)}",
                *(_spread([getattr(draw, name) for draw in draws]) for name in ("balanced", "accuracy", "claimed")),
                *(_spread([getattr(draw, name) for draw in draws]) for name in ("unfamiliar", "home")),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def _flagged(task: Task, detector: Any) -> float:
    return float(is_out_of_distribution(task.site.features, detector).mean())


def _cost(arguments: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What one adaptation with 50 even images takes as a program, on one core."""
    assert task.site.truth is not None
    folder = arguments.work / "fifty"
    shutil.rmtree(folder, ignore_errors=True)
    chosen = drawn_images(task.site.truth, 50, True, 0)
    labels = task.classifier.labels
    _copy(folder, ((task.site.paths[index], labels[task.site.truth[index]]) for index in chosen))
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})  # the program inherits it
    try:
        done = [
            command.run("adapt", task.model, "--data", folder, "--out", arguments.work / "fifty.tflite", "--force")
            for _ in range(3)
        ]
    finally:
        os.sched_setaffinity(0, mine)
    best = min(done, key=lambda one: one.cpu_seconds)
    return {
        "images": len(chosen),
        "seconds": best.seconds,
        "cpu_seconds": best.cpu_seconds,
        "own_seconds": best.answer["seconds"],
        "peak_bytes": max(one.peak_bytes for one in done),
    }


def _spread(values: Sequence[float]) -> str:
    found = [value for value in values if value == value]
    if not found:
        return "-"
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{100 * np.mean(found):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
