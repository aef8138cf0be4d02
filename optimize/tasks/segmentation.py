"""Quantization of a segmentation network: Dice against float32, and the agreement of all pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.errors import UsageError
from ...edge_runtime.images import decode_rgb
from ...edge_runtime.manifest import Manifest
from ...edge_runtime.preprocess import preprocess
from ...edge_runtime.segmenter import STEPS, Segmentation, Segmenter
from ...edge_runtime.tools.golden_images import golden_png
from ...edge_runtime.vision.tiles import TileSegmenter
from ...models.keras_compat import exact_float32, keras
from ...train.batches import Images, plain
from ...train.evaluation.robustness import robustness_text
from ...train.evaluation.text import metrics_text
from ...train.run_info import RunInfo
from ...train.segmentation.assess import KerasSegmenter, Score, assess_images, figures
from ...train.segmentation.batches import training_tiles, validation_tiles
from ...train.segmentation.images import RED_CELL_PX, MaskedImages
from ...train.segmentation.objective import OBJECTIVE
from ...train.segmentation.report import draw_overlays, write_masks_report
from ...train.segmentation.results import MaskRobustness
from ...train.segmentation.robustness import robustness_of_masks
from ...train.segmentation.tiles import plain_tiles
from ...train.stage import Stage
from ...train.tasks.segmentation import TILES
from ..packaging.card import model_card
from ..packaging.contents import golden_candidates, manifest_of
from ..packaging.pack import pack
from ..quantization.activations import stratified
from ..quantization.config import QuantizeConfig
from ..quantization.gate import gate_error
from ..quantization.job import Converted, Folded, Job
from ..quantization.placement import images_at_once
from ..quantization.result import Agreement, ClassDice, SegmentationResult, conversion_facts
from ..quantization.summary import quantize_text
from .registry import Distillation, QuantizationTask

GOLDEN_IMAGES = 2
METRICS = (
    *("split", "images", "ci_unit", "dice", "dice_ci95", "dice_nucleus", "dice_nucleus_ci95", "dice_cell"),
    *("dice_cell_ci95", "nc_error", "red_cell_error", "panoptic", "per_class", "mean_iou", "aji"),
)
"""Figures of the verified subset that the manifest holds."""
FAR = (0.5, 2.0)
"""Scales of half of the calibration tiles, relative to the network's. The network also tells how far a scale is off; at
its own scale alone, the range of that output would end at a fraction of an octave."""
_UNUSED = ("target_sensitivity", "review_budget", "explain")
"""Settings that only classification has."""


class SegmentationQuantization(QuantizationTask):
    """See `QuantizationTask`."""

    name = "segmentation"

    def check(self, config: QuantizeConfig, facts: RunInfo) -> None:
        given = [name for name in _UNUSED if getattr(config, name) not in (None, False)]
        if given:
            option = given[0].replace("_", "-")
            raise UsageError(f"--{option} is for classification; {config.run} is a segmentation run", hint="remove it")

    def predictions(self, model: Any, images: MaskedImages) -> NDArray[Any]:
        masks: NDArray[np.float32] = model.predict(plain(_tiles(images), 2 * images_at_once(model)), verbose=0)[0]
        return masks

    def epoch_images(self, images: MaskedImages) -> int:
        return TILES

    def sample(self, images: MaskedImages, count: int, seed: int) -> Images:
        near = stratified(_tiles(images), -(-count // 2), seed)
        far = [stratified(_tiles(images, scale), count // 4, seed) for scale in FAR]
        parts = [near, *(part for part in far if len(part))]
        order = np.random.default_rng(seed).permutation(sum(map(len, parts)))
        pixels = np.concatenate([part.pixels[part.rows] for part in parts])[order]
        labels = np.concatenate([part.labels for part in parts])[order]
        return Images(pixels, np.arange(len(pixels)), labels, near.spec)

    def outputs(self, network: Any, explain: bool) -> Any:
        mask, red_cell = network.outputs
        return keras.Model(network.input, [red_cell, mask])

    def distillation(self, job: Job, stage: Stage, folded: Any) -> Distillation:
        settings, training = job.facts.settings, job.subsets["train"]

        def batches(epoch: int) -> Any:
            tiles = training_tiles(
                training,
                stage.batch_size,
                augment=settings.augment,
                seed=settings.seed + 1,
                epoch=epoch,
                count=stage.images,
            )
            return tiles.map(lambda pixels, targets: (pixels, tuple(folded(pixels, training=False))))

        return Distillation(batches, validation_tiles(job.subsets["validation"], stage.batch_size), OBJECTIVE)

    def validation_drop(self, job: Job, network: Folded) -> Callable[[bytes], float]:
        images = job.subsets["validation"]

        def dice(segmenter: TileSegmenter) -> float:
            return float(
                np.mean([score.dice for score in assess_images(segmenter, images, "validation", job.progress)])
            )

        with exact_float32():
            reference = dice(KerasSegmenter(network.folded, job.spec))
        return lambda flatbuffer: 100.0 * (reference - dice(_open(job, flatbuffer, f"{job.config.scheme} model")))

    def finish(self, job: Job, network: Folded, converted: Converted) -> SegmentationResult:
        segmenter = _open(job, converted.flatbuffer, f"{job.config.scheme} model")
        scores = assess_images(segmenter, job.verified_images, f"verifying {job.config.scheme}", job.progress)
        measured = _verify(job, network, converted, segmenter, scores)
        _check_drop(job, measured, converted)
        robust = robustness_of_masks(segmenter, job.verified_images, job.progress) if job.config.robust else None
        measured["robustness"] = robust
        manifest = _pack(job, converted, segmenter, measured)
        return _report(job, segmenter, measured, manifest, [score.dice for score in scores])


TASK = SegmentationQuantization()


def _tiles(images: MaskedImages, scale: float = 1.0) -> Images:
    """The pictures of a subset as tiles, see `plain_tiles`; their labels are the laboratories."""
    pixels, _, _ = plain_tiles(images, scale)
    names = sorted({entry.label for entry in images.entries})
    if len(pixels) == len(images):
        labels = np.array([names.index(entry.label) for entry in images.entries], np.int64)
    else:
        labels = np.zeros(len(pixels), np.int64)
    return Images(np.ascontiguousarray(pixels), np.arange(len(pixels)), labels, images.spec)


def _open(job: Job, flatbuffer: bytes, name: str) -> Segmenter:
    return Segmenter.from_flatbuffer(flatbuffer, job.facts.labels, job.spec, red_cell_px=RED_CELL_PX, name=name)


def _verify(
    job: Job, network: Folded, converted: Converted, segmenter: Segmenter, scores: Sequence[Score]
) -> dict[str, Any]:
    """The fields of the result: Dice of whole images by the device's code, and the agreement of the tiles."""
    images, subset, level = job.verified_images, job.config.subset, job.split.level
    pixels = _tiles(images).pixels
    exact = segmenter
    if job.config.scheme != "float32":
        exact = _open(job, converted.float32, "float32 model")
    exact_scores = assess_images(KerasSegmenter(network.folded, job.spec), images, "verifying Keras", job.progress)
    found, reference = (figures(each, subset, level, job.seed) for each in (scores, exact_scores))
    return conversion_facts(job, network, converted) | {
        "test_images": len(images),
        "float_dice": reference.dice,
        "dice": found.dice,
        "drop_points": 100.0 * (reference.dice - found.dice),
        **vars(_compared(segmenter, pixels, network.probabilities)),
        "tflite_float": _compared(exact, pixels, network.probabilities),
        "per_class": {
            label: ClassDice(reference.per_class[label].dice, row.dice, row.iou, row.images)
            for label, row in found.per_class.items()
        },
        "metrics": found,
    }


def _compared(segmenter: Segmenter, pixels: NDArray[np.uint8], reference: NDArray[np.float32]) -> Agreement:
    """Share of pixels with the class that Keras gives, and the largest difference of a probability."""
    same, largest = [], 0.0
    for tile, wanted in zip(pixels, reference, strict=True):
        found = segmenter.infer(tile)
        same.append((found.classes == wanted.argmax(axis=2)).mean())
        largest = max(largest, float(np.abs(found.probabilities / np.float32(STEPS) - wanted).max()))
    return Agreement(float(np.mean(same)), largest)


def _check_drop(job: Job, measured: Mapping[str, Any], converted: Converted) -> None:
    """Raise GateError where the Dice drops by more than ``max_drop``."""
    config = job.config
    if config.max_drop is not None and measured["drop_points"] > config.max_drop:
        lost = (
            f"{measured['drop_points']:.2f} hundredths of {config.subset} Dice "
            f"({measured['float_dice']:.4f} to {measured['dice']:.4f})"
        )
        raise gate_error(config, lost, "segmentation", converted.auto_float)


def _pack(job: Job, converted: Converted, segmenter: Segmenter, measured: dict[str, Any]) -> Manifest:
    """Write the packed model to ``config.out``."""
    config, facts, split = job.config, job.facts, job.split
    source, drawn = golden_candidates(config.golden, facts, split, job.root)
    candidates = drawn if config.golden == "synthetic" else _test_tiles(job)
    values = measured["metrics"].to_json()
    metrics = {key: values[key] for key in METRICS if key in values} | {"float_dice": measured["float_dice"]}
    robust: MaskRobustness | None = measured["robustness"]
    if robust is not None:
        metrics |= {
            "robust_suite": robust.suite,
            "robust_worst_at": f"{robust.worst_at.corruption} at severity {robust.worst_at.severity}",
            "robust_dice_mean": robust.mean,
            "robust_dice_worst": robust.worst,
        }
    sections = {"task": "segmentation", "segmentation": {"red_cell_px": RED_CELL_PX}}
    manifest = manifest_of(config.run, facts, split, job.spec, measured, metrics, source, sections)
    golden = choose_golden(segmenter, candidates)
    pack(converted.flatbuffer, manifest, golden, model_card(manifest), config.out)
    return manifest


def _report(
    job: Job, segmenter: Segmenter, measured: dict[str, Any], manifest: Manifest, dice: Sequence[float]
) -> SegmentationResult:
    """The result, and the HTML report of a model that was verified on the test subset."""
    out = job.config.out
    report = out.with_suffix(".report.html") if job.config.subset == "test" else None
    shown = str(report) if report else None
    result = SegmentationResult(**measured, out=str(out), file_bytes=out.stat().st_size, report=shown)
    if report:
        texts = [
            ("What the conversion cost", quantize_text(result)),
            ("On the test subset", metrics_text(result.metrics)),
        ]
        if result.robustness is not None:
            texts.append(("Under changes of the microscope", robustness_text(result.robustness)))
        images = job.verified_images
        overlays = draw_overlays(segmenter, images, dice)
        write_masks_report(report, f"{manifest.name}, {result.scheme}", texts, overlays, result.synthetic)
    return result


def _test_tiles(job: Job) -> Iterator[Image.Image]:
    pixels = _tiles(job.subsets["test"]).pixels
    return (Image.fromarray(tile) for tile in pixels[:: max(len(pixels) // 48, 1)])


def choose_golden(segmenter: Segmenter, images: Iterator[Image.Image]) -> list[tuple[str, bytes, Segmentation]]:
    """The images in which the rarest class has most pixels: file name, PNG file and the model's answer, for `pack`."""
    ranked: list[tuple[int, int, bytes, Segmentation]] = []
    for index, image in enumerate(images):
        file = golden_png(image, segmenter.input)
        answer = segmenter.infer(preprocess(decode_rgb(file, "golden image"), segmenter.input))
        rarest = int(np.bincount(answer.classes.ravel(), minlength=len(segmenter.labels)).min())
        ranked.append((-rarest, index, file, answer))
    chosen = sorted(ranked, key=lambda item: item[:2])[:GOLDEN_IMAGES]
    return [(f"{index}.png", file, answer) for index, (_, _, file, answer) in enumerate(chosen)]
