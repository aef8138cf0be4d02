"""Out-of-distribution detection: candidate scores on the same features.

python benchmarks/novelty.py DATA FOREIGN BCCD MODEL...

Each MODEL (packed, with a second output) lies beside the split.json it was made with. Every score is fitted on at
most 512 images of the train subset. Its threshold is exceeded by 1 % of the validation subset. It is measured on the
test subset and on images that are no fields of that set: photographs (FOREIGN, whole and in crops), black, white, flat
and noise frames, the test subset far out of focus, and fields of another laboratory (BCCD, its JPEGImages). No score is
fitted on those. Mild changes of the test subset, as by another microscope, should not be detected. Written to
`novelty.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.ood import distance, roots
from edgeall.edge_runtime.preprocess import preprocess

FITTED_ON, CLEAN_SHARE = 512, 0.01
REVIEWED, CLEAN = 90.0, 5.0
"""Limits, %: of all foreign images together at least, of the clean test subset at most."""
Features = NDArray[np.float32]
Score = Callable[[Features, NDArray[np.float32]], NDArray[np.floating[Any]]]
"""Of features ``(n, features)`` and probabilities ``(n, labels)``: ``(n,)``, higher where newer."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("foreign", type=Path)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    sections, met = [], True
    for model in arguments.models:
        text, good = measured(model, arguments.data, arguments.foreign, arguments.bccd)
        sections.append(text)
        met = met and good
    page = report(sections)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "novelty.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def measured(model: Path, data: Path, foreign: Path, bccd: Path) -> tuple[str, bool]:
    """One model's section, and whether its own score meets the limits."""
    classifier = Classifier.open(model, threads=1)
    assert classifier.bundle is not None
    assert classifier.bundle.ood_detector is not None, f"{model}: has no out-of-distribution score"
    familiar, labels = classifier.bundle.ood_detector, classifier.labels
    entries = json.loads(model.with_name("split.json").read_text(encoding="utf-8"))["entries"]
    sides: dict[str, list[dict[str, str]]] = {side: [] for side in ("train", "validation", "test")}
    for entry in entries:
        sides[entry["side"]].append(entry)
    generator = np.random.default_rng(0)
    chosen = [sides["train"][index] for index in generator.permutation(len(sides["train"]))[:FITTED_ON]]

    def asked(images: Iterable[Image.Image]) -> tuple[Features, NDArray[np.float32]]:
        answers = [classifier.infer(preprocess(image, classifier.input)) for image in images]
        features = [classifier.pooled(answer.units) for answer in answers if answer.units is not None]
        return np.stack(features), np.stack([answer.probabilities for answer in answers])

    def side(some: list[dict[str, str]]) -> Iterable[Image.Image]:
        return (open_rgb(data / entry["path"]) for entry in some)

    train, truth = asked(side(chosen))[0], np.array([labels.index(entry["label"]) for entry in chosen])
    validation, test = asked(side(sides["validation"])), asked(side(sides["test"]))
    fields = [open_rgb(data / entry["path"]) for entry in sides["test"][:: max(len(sides["test"]) // 100, 1)]]
    new = {kind: asked(images) for kind, images in foreign_images(foreign, bccd, fields, generator).items()}
    changed = {kind: asked(map(change, fields)) for kind, change in MILD.items()}
    scores = candidates(train, truth) | {
        "**the model's own**": lambda features, _: distance(features, familiar) / familiar.threshold
    }
    rows, own = [], (0.0, 100.0)
    for name, score in scores.items():
        threshold = float(np.quantile(score(*validation), 1 - CLEAN_SHARE)) if "own" not in name else 1.0
        clean = score(*test)
        found = {kind: score(*pair) for kind, pair in new.items()}
        every = np.concatenate(list(found.values()))
        shares = [100 * float((values > threshold).mean()) for values in (clean, every, *found.values())]
        mild = [100 * float((score(*pair) > threshold).mean()) for pair in changed.values()]
        rows.append([name, f"{area(clean, every):.4f}", *(f"{share:.1f}" for share in (*shares, *mild))])
        if "own" in name:
            own = (min(shares[2:]), shares[0])
    met = own[0] >= REVIEWED and own[1] <= CLEAN
    kinds = [f"{kind} ({len(pair[0])})" for kind, pair in new.items()]
    heads = ["score", "AUROC", f"clean ({len(test[0])})", "all foreign", *kinds, *changed]
    manifest = classifier.bundle.manifest
    assert manifest is not None
    lines = [
        f"## {model.parent.name}/{model.name}",
        "",
        f"{manifest.training['backbone']} {manifest.training['alpha']:g}, {manifest.quantization['scheme']}, trained "
        f"with --augment {manifest.training['augment']}, {manifest.training['split_level']}-level split; "
        f"{classifier.bundle.file_bytes:,} bytes. Every kind of foreign image at least {REVIEWED:g} %: "
        f"{own[0]:.1f}; clean at most {CLEAN:g} %: {own[1]:.1f}: **{'met' if met else 'MISSED'}**.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines), met


def candidates(train: Features, truth: NDArray[np.int64]) -> dict[str, Score]:
    """Scores by name, fitted."""
    found: dict[str, Score] = {"1 - highest probability": lambda _, probabilities: 1 - probabilities.max(axis=1)}
    for name, change in (("", lambda f: f), ("roots: ", lambda f: np.sqrt(np.abs(f))), ("unit roots: ", roots)):
        known = change(train)
        means = np.stack([known[truth == label].mean(axis=0) for label in np.unique(truth)])
        within = known - means[np.unique(truth, return_inverse=True)[1]]
        spread = within.var(axis=0)
        found[f"{name}Mahalanobis, diagonal"] = nearest(change, means, 1 / np.sqrt(spread + spread.mean() / 10))
        found[f"{name}Mahalanobis, full (too large to travel)"] = nearest(change, means, whitening(within))
        centre = known.mean(axis=0)
        axes = np.linalg.svd(known - centre, full_matrices=False)[2]
        for count in (4, 8, 16):
            found[f"{name}Mahalanobis in {count} axes"] = inside(change, means, truth, known, axes[:count])
            found[f"{name}residual beside {count} axes"] = beside(change, centre, axes[:count])
    return found


def nearest(change: Callable[[Features], Features], means: Any, whitener: Any) -> Score:
    """Squared distance from the nearest class mean, in coordinates of unit variance.

    Args:
        whitener: one factor for each coordinate, or a matrix ``(coordinates, new coordinates)``.
    """

    def white(values: Any) -> Any:
        return values @ whitener if whitener.ndim == 2 else values * whitener

    centres = [white(mean) for mean in means]

    def score(features: Features, _: NDArray[np.float32]) -> NDArray[np.float64]:
        places = white(change(features))
        return np.min([np.square(places - centre).sum(axis=1) for centre in centres], axis=0)

    return score


def whitening(within: Any) -> Any:
    """Of the covariance of rows, shrunk by a hundredth towards the same variance for all."""
    cov = np.cov(within.T).astype(np.float32)
    cov += np.eye(len(cov), dtype=np.float32) * (0.01 * np.trace(cov) / len(cov))
    return np.linalg.inv(np.linalg.cholesky(cov)).T


def inside(change: Callable[[Features], Features], means: Any, truth: Any, known: Any, axes: Any) -> Score:
    """The same within a few principal axes."""
    places = known @ axes.T
    centres = means @ axes.T
    within = places - centres[np.unique(truth, return_inverse=True)[1]]
    return nearest(lambda features: change(features) @ axes.T, centres, whitening(within))


def beside(change: Callable[[Features], Features], centre: Any, axes: Any) -> Score:
    """Squared distance from the plane that the axes span."""

    def score(features: Features, _: NDArray[np.float32]) -> NDArray[np.float64]:
        offset = change(features) - centre
        return np.asarray((offset**2).sum(axis=1) - ((offset @ axes.T) ** 2).sum(axis=1))

    return score


def area(known: NDArray[Any], new: NDArray[Any]) -> float:
    """Under the ROC curve: how often a foreign image's score is above a clean one's."""
    ordered = np.sort(known)
    below, upto = np.searchsorted(ordered, new, "left"), np.searchsorted(ordered, new, "right")
    return float((below + upto).mean() / 2 / len(ordered))


def foreign_images(
    foreign: Path, bccd: Path, fields: list[Image.Image], generator: np.random.Generator
) -> dict[str, list[Image.Image]]:
    """Images by kind."""
    photographs = [open_rgb(path) for path in sorted(foreign.iterdir()) if path.suffix in (".png", ".jpg")]
    size = (224, 224, 3)
    noisy = [generator.normal(generator.uniform(60, 200), generator.uniform(20, 80), size) for _ in range(20)]
    return {
        "photographs": photographs,
        "crops of them": [_crop(image, generator) for image in photographs for _ in range(12)],
        "BCCD fields": [open_rgb(path) for path in sorted(bccd.iterdir())],
        "black": [_image(np.abs(generator.normal(0, sigma, size))) for sigma in range(10)],
        "white": [_image(255 - np.abs(generator.normal(0, sigma, size))) for sigma in range(10)],
        "flat": [_image(generator.uniform(0, 255, 3) + generator.normal(0, 2, size)) for _ in range(30)],
        "noise": [_image(frame) for frame in (*noisy, *(generator.uniform(0, 255, size) for _ in range(10)))],
        "out of focus, sigma 5": [_blurred(image, 5) for image in fields],
        "out of focus, sigma 10": [_blurred(image, 10) for image in fields],
    }


def _crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = min(image.size) * generator.uniform(0.25, 0.9)
    left, top = generator.uniform(0, image.width - side), generator.uniform(0, image.height - side)
    return image.crop((int(left), int(top), int(left + side), int(top + side)))


def _image(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _blurred(image: Image.Image, sigma: float) -> Image.Image:
    """By so many pixels in a field of 224."""
    return image.filter(ImageFilter.GaussianBlur(sigma * min(image.size) / 224))


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


MILD: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "5 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.95),
    "10 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "contrast 0.9": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
    "colour 0.85": lambda image: ImageEnhance.Color(image).enhance(0.85),
    "blue -8 %": lambda image: _image(np.asarray(image) * np.array([1, 1, 0.92])),
    "blur 0.7": lambda image: _blurred(image, 0.7),
    "JPEG 60": _jpeg,
}


def report(sections: list[str]) -> str:
    """The Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    lines = [
        "# How unfamiliar images are told",
        "",
        f"`python benchmarks/novelty.py`, {datetime.now(timezone.utc):%Y-%m-%d}. Every score is fitted on up to "
        f"{FITTED_ON} training images; its threshold is what {100 * CLEAN_SHARE:g} % of the validation subset exceed. "
        "Columns after AUROC (all foreign images against the clean test subset) are shares sent to review, in %; the "
        f"last {len(MILD)} are mild changes of test images, where less is better. Brackets: images. The decision: "
        "[0010](../../docs/decisions/0010-novelty.md).",
        "",
        *sections,
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
