"""Would normalizing the stain on the device help? A network trained on normalized fields, beside one that wasn't.

python benchmarks/stain.py DATA --weights FILE --beside RUN

Reinhard et al. 2001, "Color transfer between images": mean and standard deviation of each of three decorrelated
channels, brought to those of the whole data. A copy of DATA, every image normalized, is trained on with the settings of
RUN (its split, alpha, augmentation and epochs); then both models see the test side under the corruptions of
`edgeall evaluate --robustness`, the second one behind the normalization. Written to `stain.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import command
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.device import describe_device
from edgeall.edge_runtime.images import find_images, open_rgb
from edgeall.edge_runtime.parallel import Layout, Pool
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.train.corruptions import CORRUPTIONS, SEVERITIES, corrupted

LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
"""From RGB to the responses of cones, and from their logarithms to lightness and two opponent colours (Reinhard)."""
Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and standard deviation of the three channels."""
Entry = tuple[str, str]
"""Path of a test image, and its label."""
FEW = 200
"""Images that the data's own statistics are taken from."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--beside", type=Path, required=True, metavar="RUN", help="with its ptq-int8.tflite in it")
    parser.add_argument("--work", type=Path, default=Path("runs/stain"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    images = list(find_images(arguments.data))
    target = _mean([statistics(_lab(open_rgb(path))) for path in images[:: max(len(images) // FEW, 1)]])
    normalize = partial(normalized, target=target)
    model = _trained(arguments, images, normalize)
    test = {}
    for name, path, run, change in (
        ("as they are", arguments.beside / "ptq-int8.tflite", arguments.beside, lambda image: image),
        ("normalized", model, model.parent, normalize),
    ):
        split = json.loads((run / "split.json").read_text(encoding="utf-8"))
        entries = [(entry["path"], entry["label"]) for entry in split["entries"] if entry["side"] == "test"]
        test[name] = _accuracies(Classifier.open(path, threads=1), arguments.data, entries, change)
    page = report(arguments, test)
    print(page)
    (arguments.out / "stain.md").write_text(page, encoding="utf-8")
    return 0


def statistics(lab: NDArray[np.float64]) -> Statistics:
    """Of an image's channels ``(pixels, 3)``."""
    return lab.mean(axis=0), lab.std(axis=0)


def normalized(image: Image.Image, target: Statistics) -> Image.Image:
    """An RGB image with the target's statistics."""
    lab = _lab(image)
    mean, deviation = statistics(lab)
    changed = (lab - mean) / np.maximum(deviation, 1e-6) * target[1] + target[0]
    cones = 10 ** (changed @ np.linalg.inv(LAB).T)
    pixels = 256 * (cones @ np.linalg.inv(LMS).T) - 1
    shape = (image.height, image.width, 3)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(shape))


def _lab(image: Image.Image) -> NDArray[np.float64]:
    pixels = (np.asarray(image, np.float64).reshape(-1, 3) + 1) / 256
    return np.log10(pixels @ LMS.T) @ LAB.T


def _mean(found: list[Statistics]) -> Statistics:
    means, deviations = (np.mean(values, axis=0) for values in zip(*found, strict=True))
    return means, deviations


def _trained(
    arguments: argparse.Namespace, images: list[Path], normalize: Callable[[Image.Image], Image.Image]
) -> Path:
    """A ptq-int8 model of the normalized copy; what an earlier call has finished is kept."""
    copy, run = arguments.work / "images", arguments.work / "run"
    for path in images:
        out = (copy / path.relative_to(arguments.data)).with_suffix(".png")
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            normalize(open_rgb(path)).save(out)
    settings = json.loads((arguments.beside / "settings.json").read_text())["settings"]
    words = {name: settings[name] for name in ("alpha", "augment", "epochs_finetune", "split_by", "seed")}
    options = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
    if not (run / "run.json").exists():
        command.answer("train", "--data", copy, "--weights", arguments.weights, *options, "--out", run)
    command.answer("quantize", run, "--scheme", "ptq-int8", "--out", run / "ptq-int8.tflite", "--force")
    return run / "ptq-int8.tflite"


def _accuracies(
    classifier: Classifier, data: Path, entries: list[Entry], change: Callable[[Image.Image], Image.Image]
) -> dict[str, list[float]]:
    """Accuracy of clean images under ``clean``, and of each corruption by severity."""
    originals = {path.relative_to(data).with_suffix(""): path for path in find_images(data)}

    def load(cell: tuple[Entry, str, int]) -> NDArray[np.uint8]:
        (path, _), kind, severity = cell
        image = open_rgb(originals[Path(path).with_suffix("")])
        if severity:
            image = corrupted(image, kind, severity, path)
        return preprocess(change(image), classifier.input)

    cells = [(entry, "clean", 0) for entry in entries]
    cells += [(entry, kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES for entry in entries]
    right: dict[tuple[str, int], list[bool]] = {}
    with Pool(classifier, Layout(2, 1)) as pool:
        for ((_, label), kind, severity), outcome in pool.map(load, cells):
            if isinstance(outcome, Exception):
                raise outcome
            said = classifier.labels[int(outcome.probabilities.argmax())]
            right.setdefault((kind, severity), []).append(said == label)
    found: dict[str, list[float]] = {}
    for (kind, _), values in right.items():
        found.setdefault(kind, []).append(float(np.mean(values)))
    return found


def report(arguments: argparse.Namespace, test: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown page."""
    names = list(test)
    changed = {
        name: [value for kind, values in found.items() if kind != "clean" for value in values]
        for name, found in test.items()
    }
    rows = [
        ("**clean**", [f"{100 * test[name]['clean'][0]:.2f}" for name in names]),
        ("**mean**", [f"{100 * np.mean(changed[name]):.2f}" for name in names]),
        ("**worst**", [f"{100 * min(changed[name]):.2f}" for name in names]),
    ]
    rows += [
        (kind, [" ".join(f"{100 * value:.1f}" for value in test[name][kind]) for name in names])
        for kind in test[names[0]]
        if kind != "clean"
    ]
    lines = [
        "# Stain normalization at run time",
        "",
        f"`python benchmarks/stain.py DATA --weights FILE --beside {arguments.beside.name}`, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}. Both trained with the same settings, one on fields normalized by "
        "Reinhard's method, and both ptq-int8; accuracy in % on their own test sides, of unseen blocks, severities 1 "
        "to 5. The corrupted image is normalized as a device would.",
        "",
        f"| | {' | '.join(names)} |",
        "| --- | --- | --- |",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows),
        "",
        *(f"- {key}: {value}" for key, value in describe_device().items() if value is not None),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
