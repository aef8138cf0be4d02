"""The drift alarm: false alarms on images of the laboratory itself, and changes that it notices within 30 images.

python benchmarks/drift.py DATA MODEL [--other FOLDER]

MODEL (packed, with a second output) lies beside the split.json it was made with. The reference is fitted to its
training images, as `edgeall quantize` does. False alarms are counted over slides of 60 test or validation images in
random order (looks at 15, 30 and 60 images), and over successive images, which may be one real slide. Changed images
are drawn by the robustness suite from the test subset; FOLDER has fields of another laboratory. Written to `drift.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.drift import Drift, F, Group, coordinates, image_facts, read_drift
from edgeall.edge_runtime.images import find_images, open_rgb
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.edge_runtime.tools.device import describe_device
from edgeall.edge_runtime.tools.drift import chosen_runs, fit_drift
from edgeall.train.evaluation.corruptions import CORRUPTIONS, corrupted

SLIDES, LENGTH, NOTICED = 1000, 60, 30
CHANGED, DRAWS, SEVERITIES = 60, 200, (2, 4)
Seen = tuple[F, np.ndarray, int]
"""Facts, features and label of an image."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    begin = time.monotonic()
    classifier = Classifier.open(arguments.model, threads=1)
    entries = json.loads(arguments.model.with_name("split.json").read_text(encoding="utf-8"))["entries"]
    sides = {side: [each for each in entries if each["side"] == side] for side in ("train", "validation", "test")}

    def seen(images: Iterable[Image.Image]) -> list[Seen]:
        found = []
        for image in images:
            pixels = preprocess(image, classifier.input)
            answer = classifier.infer(pixels)
            assert answer.units is not None
            label = int(answer.probabilities.argmax())
            found.append((image_facts(pixels), classifier.pooled(answer.units), label))
        return found

    def side(name: str) -> list[Seen]:
        return seen(open_rgb(arguments.data / each["path"]) for each in sides[name])

    truth = np.array([classifier.labels.index(each["label"]) for each in sides["train"]])
    runs = chosen_runs(truth)
    training = seen(open_rgb(arguments.data / sides["train"][row]["path"]) for row in runs.ravel())
    groups = reference(classifier, training, len(runs))
    lines = [
        "| images of the laboratory itself | slides | false alarms | of the first 30 |",
        "| --- | --- | --- | --- |",
    ]
    random = np.random.default_rng(0)
    for name in ("validation", "test"):
        own = side(name)
        shuffled = [random.permutation(len(own))[:LENGTH] for _ in range(SLIDES)]
        successive = [np.arange(first, first + LENGTH) for first in range(0, len(own) - LENGTH + 1, 5)]
        for how, slides in (("random order", shuffled), ("successive", successive)):
            whole = [alarm(classifier, groups, own, rows) for rows in slides]
            short = [alarm(classifier, groups, own, rows[:NOTICED]) for rows in slides]
            lines.append(f"| {name}, {how} | {len(slides)} | {share(whole)} | {share(short)} |")
    lines += ["", f"| changed images | noticed within {NOTICED}, severity 2 | severity 4 |", "| --- | --- | --- |"]
    some = [sides["test"][row] for row in sorted(random.permutation(len(sides["test"]))[:CHANGED])]
    for kind in CORRUPTIONS:
        cells = []
        for severity in SEVERITIES:
            changed = seen(
                corrupted(open_rgb(arguments.data / each["path"]), kind, severity, each["path"]) for each in some
            )
            draws = [random.permutation(CHANGED)[:NOTICED] for _ in range(DRAWS)]
            cells.append(share([alarm(classifier, groups, changed, rows) for rows in draws]))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    if arguments.other is not None:
        paths = list(find_images(arguments.other))[:120]
        other = seen(open_rgb(path) for path in paths)
        draws = [random.permutation(len(other))[:NOTICED] for _ in range(DRAWS)]
        noticed = share([alarm(classifier, groups, other, rows) for rows in draws])
        lines += [
            "",
            f"Fields of another laboratory ({len(other)} of {arguments.other.name}): {noticed} of the slides.",
        ]
    page = report(lines, arguments.model, len(training), time.monotonic() - begin)
    print(page)
    (arguments.out / "drift.md").write_text(page, encoding="utf-8")
    return 0


def reference(classifier: Classifier, training: Sequence[Seen], runs: int) -> dict[str, Group]:
    """The groups, as `edgeall quantize` stores them."""
    assert classifier.ood_detector is not None
    image = np.stack([facts for facts, _, _ in training])
    features = np.stack([coordinates(each, classifier.ood_detector) for _, each, _ in training])
    predicted = np.array([label for _, _, label in training])
    facts = json.loads(json.dumps(fit_drift(image, features, predicted, runs, len(classifier.labels))))
    assert facts, "too few runs of images"
    print(f"the reference has {len(json.dumps(facts)):,} bytes as JSON", file=sys.stderr)
    return read_drift(facts, len(classifier.labels), "reference")


def alarm(classifier: Classifier, groups: dict[str, Group], images: Sequence[Seen], rows: Iterable[int]) -> bool:
    """Whether a slide of these images raises an alarm at any look."""
    assert classifier.ood_detector is not None
    drift, raised = Drift(groups), False
    for row in rows:
        facts, features, label = images[row]
        drift.add(facts, features, classifier.ood_detector, label)
        raised = raised or drift.finding is not None
    return raised


def share(alarms: Sequence[bool]) -> str:
    return f"{100 * sum(alarms) / len(alarms):.1f} %"


def report(lines: Sequence[str], model: Path, training: int, seconds: float) -> str:
    device = describe_device()
    head = [
        "# Drift alarm",
        "",
        f"Written by `benchmarks/drift.py` on {datetime.now(timezone.utc):%Y-%m-%d}, {device.cpu}, {seconds:.0f} s."
        f" Model: {model.parent.name}/{model.name}; reference from {training} training images in runs.",
        f"An alarm at any of the looks at 15, 30 and, where there are so many, {LENGTH} images counts. Slides of",
        "successive images overlap. Their subset is one stretch of the file numbers of each class, so they are few",
        "real slides. The levels of the alarm were chosen with these figures in view, so they are optimistic.",
        "",
    ]
    return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
