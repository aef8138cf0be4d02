"""Flat field and white balance of the rig: does the correction improve a model's results under another lamp?

python benchmarks/flat_field.py DATA MODEL [--every 1] [--out FILE.md]

MODEL lies beside the split.json that it was made with; its test subset is used. Each drawn lamp has vignetting, an
off-centre peak and a colour. It is multiplied over the real images, with sensor noise. An empty field is drawn with the
same lamp, in the colour of the data's own background, and the rig measures the correction from five pictures of it. The
images are judged with and without the correction. The limits: with it, accuracy over all drawn lamps is not lower and
not more images are sent to review; no more are wrong and not sent than without a drawn lamp; and without a drawn lamp
accuracy falls by at most `MOST_LOST`. Exits with 1 when one is missed; then the rig must not apply it by default.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import prediction
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.edge_runtime.tools.device import describe_device
from edgeall.rig.optics.flat_field import FlatField, flat_field, measure_empty_field

MOST_LOST = 0.5
"""Percentage points of accuracy."""
EMPTY = 240.0
"""Maximum grey level of the drawn empty field."""
NOISE = 2.0
"""Sensor noise, grey levels."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Lamp:
    """A lamp: the share of the light that the darkest corner keeps; its colour; its brightest place, 0..1."""

    name: str
    corner: float = 1.0
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    centre: tuple[float, float] = (0.5, 0.5)

    def surface(self, height: int, width: int) -> NDArray[np.float64]:
        """Relative light, ``(height, width, 3)``: a raised cosine around the centre."""
        x = (np.arange(width) + 0.5) / width - self.centre[0]
        y = (np.arange(height) + 0.5) / height - self.centre[1]
        far = np.hypot(x[None, :], y[:, None])
        light = 1 - (1 - self.corner) * (1 - np.cos(np.pi * far / far.max())) / 2
        return light[..., None] * np.array(self.colour)


LAMPS = (
    Lamp("none"),
    Lamp("vignetting, corners 75 %", 0.75, centre=(0.45, 0.55)),
    Lamp("vignetting, corners 50 %", 0.5, centre=(0.55, 0.45)),
    Lamp("vignetting, corners 35 %", 0.35, centre=(0.4, 0.5)),
    Lamp("yellow", colour=(1.0, 0.93, 0.78)),
    Lamp("strong yellow", colour=(1.0, 0.85, 0.58)),
    Lamp("blue", colour=(0.82, 0.92, 1.0)),
    Lamp("strong blue", colour=(0.64, 0.82, 1.0)),
    Lamp("green", colour=(0.85, 1.0, 0.85)),
    Lamp("corners 60 %, yellow", 0.6, (1.0, 0.9, 0.7), (0.6, 0.55)),
    Lamp("corners 60 %, blue", 0.6, (0.72, 0.86, 1.0), (0.4, 0.45)),
    Lamp("corners 40 %, yellow", 0.4, (1.0, 0.87, 0.64), (0.4, 0.4)),
)


@dataclass(frozen=True)
class Score:
    """Of the images under one lamp: shares that are right, sent to review, and wrong without a review."""

    right: float
    review: float
    missed: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use each so-manieth test image")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    classifier = Classifier.open(arguments.model, threads=1)
    entries = json.loads((arguments.model.parent / "split.json").read_text())["entries"]
    test = [each for each in entries if each["side"] == "test"][:: arguments.every]
    images = [np.asarray(Image.open(arguments.data / each["path"]).convert("RGB")) for each in test]
    labels = [each["label"] for each in test]
    own = np.median([np.percentile(each.reshape(-1, 3), 97, axis=0) for each in images], axis=0)
    own *= min(1.0, EMPTY / own.max())  # the data's background is saturated; an empty field must not be
    scores = {}
    for number, lamp in enumerate(LAMPS):
        rng = np.random.default_rng(number)
        shifted = [_under(lamp, each, rng) for each in images]
        empty = [_noisy(np.broadcast_to(own, (960, 1280, 3)) * lamp.surface(960, 1280), rng, NOISE) for _ in range(5)]
        surface = measure_empty_field(empty)
        correction = flat_field(surface, (images[0].shape[1], images[0].shape[0]))
        scores[lamp.name] = (
            _score(classifier, shifted, labels, None),
            _score(classifier, shifted, labels, correction),
        )
        print(lamp.name, scores[lamp.name], file=sys.stderr)
    page, met = report(arguments, len(images), own, scores)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if met else 1


def _under(lamp: Lamp, image: Pixels, rng: np.random.Generator) -> Pixels:
    if lamp == LAMPS[0]:
        return image
    return _noisy(image * lamp.surface(*image.shape[:2]), rng, NOISE)


def _noisy(pixels: NDArray[np.float64], rng: np.random.Generator, noise: float) -> Pixels:
    grain = rng.standard_normal(pixels.shape, np.float32)
    return np.clip(pixels + noise * grain + 0.5, 0, 255).astype(np.uint8)


def _score(classifier: Classifier, images: list[Pixels], labels: list[str], correction: FlatField | None) -> Score:
    right = review = missed = 0
    for pixels, label in zip(images, labels, strict=True):
        seen = correction.apply(pixels) if correction else pixels
        found = prediction(classifier, "", classifier.infer(preprocess(Image.fromarray(seen), classifier.input)))
        right += found.label == label
        review += found.review
        missed += found.label != label and not found.review
    return Score(right / len(images), review / len(images), missed / len(images))


def report(
    arguments: argparse.Namespace, count: int, own: NDArray[np.float64], scores: dict[str, tuple[Score, Score]]
) -> tuple[str, bool]:
    """A Markdown page, and whether the limit was met."""
    drawn = [pair for name, pair in scores.items() if name != LAMPS[0].name]
    mean = {
        name: tuple(100 * float(np.mean([getattr(pair[at], name) for pair in drawn])) for at in (0, 1))
        for name in ("right", "review", "missed")
    }
    plain, balanced = scores[LAMPS[0].name]
    lost = 100 * (plain.right - balanced.right)
    better = mean["right"][1] >= mean["right"][0], mean["review"][1] <= mean["review"][0]
    few = mean["missed"][1] <= 100 * plain.missed + 1e-9
    met = all(better) and few and lost <= MOST_LOST
    said = {True: "met", False: "**MISSED**"}
    lines = [
        "# Flat field and white balance",
        "",
        f"`python benchmarks/flat_field.py DATA {arguments.model.name} --every {arguments.every}`,"
        f" {datetime.now(timezone.utc):%Y-%m-%d}. {count} images of the model's test subset (real fields), under drawn"
        " lamps with sensor noise; correction measured from five drawn pictures of the empty field, in the colour of"
        f" the data's own background ({', '.join(f'{each:.0f}' for each in own)}). Without | with the correction, %.",
        "",
        "| lamp | accuracy | with | sent to review | with | wrong, not sent | with |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, pair in scores.items():
        values = [f"{100 * getattr(each, kind):.2f}" for kind in mean for each in pair]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    values = [f"**{each:.2f}**" for kind in mean for each in mean[kind]]
    lines += [
        "| **mean of drawn lamps** | " + " | ".join(values) + " |",
        "",
        f"With the correction, over all drawn lamps: accuracy not lower, {said[better[0]]}; not more sent to review,"
        f" {said[better[1]]}. Without a drawn lamp the white balance costs {lost:.2f} points of accuracy (limit"
        f" {MOST_LOST:g}: {said[lost <= MOST_LOST]}). Wrong and not sent to review: {mean['missed'][1]:.2f} % with the"
        f" correction (limit {100 * plain.missed:.2f} %, that without a drawn lamp: {said[few]}),"
        f" {mean['missed'][0]:.2f} % uncorrected, where a strong lamp sends many images to review, also those that the"
        " model gets wrong anyway. The correction measures"
        f" {'better: the rig applies it by default' if met else 'NOT better: off by default'}.",
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
    ]
    return "\n".join([*lines, ""]), met


if __name__ == "__main__":
    sys.exit(main())
