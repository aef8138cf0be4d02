"""A candidate of a search, and its cost on this machine, measured before any training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import UsageError
from ...edge_runtime.preprocess import InputSpec, normalize
from ...models import registry
from ...models.head import add_head
from ...models.keras_compat import keras
from ...models.narrow import with_channels
from ...models.registry import BuildArgs
from ..pruning.channels import Budget, round_up
from ..quantization.convert import convert
from ..quantization.fold import fold_batch_normalization
from ..quantization.placement import ptq
from ..quantization.schemes import INTEGER_SCHEMES

ROUNDS = 5
"""Rounds of timing; the fastest one counts."""
MIN_QUERIES = 20
"""Smallest number of images timed in a round."""
UNDISTURBED = 0.9
"""A call counts if its thread had the processor for this share of the time."""
PATIENCE = 10
"""A round may take so many times its seconds to get `MIN_QUERIES` calls that count."""
OVERHEAD_BYTES = 32 * 1024
"""Largest size of manifest, labels, model card, archive and the tensor names of a trained network."""
GOLDEN_IMAGES = 2
"""Golden images in a packed model, see `edgeall.edge_runtime.tools.golden_images.golden_png`."""


@dataclass(frozen=True)
class Candidate:
    """A point of the search space.

    Attributes:
        model: backbone.
        alpha: width multiplier; None for a backbone without.
        input_size: width and height in pixels.
        macs: share of the multiply-accumulates that channel pruning leaves; 1: no pruning.
        scheme: conversion scheme, one of `edgeall.optimize.quantization.convert.SCHEMES`.
        learning_rate: peak of the fine-tuning; None, as for the settings below: that of `train`. See
            `edgeall.train.config.TrainSettings` for ``dropout``, ``weight_decay``, ``augment`` and ``unfreeze``.
    """

    model: str
    alpha: float | None
    input_size: int
    macs: float
    scheme: str
    learning_rate: float | None = None
    dropout: float | None = None
    weight_decay: float | None = None
    augment: str | None = None
    unfreeze: int | None = None

    @property
    def base(self) -> str:
        """Name of the trained network, shared by every pruning and scheme."""
        return "-".join([self._shape, *self._training])

    @property
    def network(self) -> str:
        """Name of the converted network, shared by every scheme."""
        return self.base + self._pruning

    @property
    def cost_key(self) -> str:
        """Equal for candidates of equal cost: both integer schemes give the same graph, however it was trained."""
        return f"{self._shape}{self._pruning}-{'int8' if self.scheme in INTEGER_SCHEMES else self.scheme}"

    @property
    def _shape(self) -> str:
        return "-".join([self.model, *([] if self.alpha is None else [f"{self.alpha:g}"]), str(self.input_size)])

    @property
    def _pruning(self) -> str:
        return "" if self.macs == 1 else f"-macs{self.macs:g}"

    @property
    def _training(self) -> list[str]:
        """The settings of the training that differ from the default, as parts of a file name."""
        short = {"lr_finetune": "lr", "weight_decay": "decay", "augment": ""}
        return [f"{short.get(name, name)}{value}" for name, value in self.training.items()]

    @property
    def training(self) -> dict[str, Any]:
        """The settings of `edgeall.train.config.TrainSettings` that the search chose."""
        chosen: dict[str, Any] = {"lr_finetune": self.learning_rate, "dropout": self.dropout}
        chosen |= {"weight_decay": self.weight_decay, "augment": self.augment, "unfreeze": self.unfreeze}
        return {name: value for name, value in chosen.items() if value is not None}

    def describe(self) -> str:
        """Text, as in ``mobilenet_v2 0.35, 96 px, 75 % of the MACs, qat-int8, dropout 0.4``."""
        model = self.model if self.alpha is None else f"{self.model} {self.alpha:g}"
        pruned = [] if self.macs == 1 else [f"{self.macs:.0%} of the MACs".replace("%", " %")]
        training = [f"{name.replace('_', ' ')} {value}" for name, value in self.training.items()]
        return ", ".join([model, f"{self.input_size} px", *pruned, self.scheme, *training])

    def contains(self, other: Candidate) -> bool:
        """Whether this is the same network as ``other``, or larger in every respect, in the same scheme."""
        mine, its = asdict(self), asdict(other)
        return (
            self.model == other.model
            and self.cost_key.rpartition("-")[2] == other.cost_key.rpartition("-")[2]
            and all((mine[key] or 0) >= (its[key] or 0) for key in ("alpha", "input_size", "macs"))
        )


def spec_of(candidate: Candidate) -> InputSpec:
    """Input contract of a candidate."""
    model, size = registry.get(candidate.model), candidate.input_size
    return InputSpec(height=size, width=size, mean=model.mean, std=model.std)


def untrained(candidate: Candidate, classes: int) -> bytes:
    """The flatbuffer of a network of the candidate's shape, with random weights.

    Latency and size of a network depend on its shapes alone. The channels that pruning keeps depend on the weights;
    here all layers lose the same share, so the cost of a pruned candidate is an estimate. The biases are random,
    because the converter stores the equal, zero biases of an untrained network only once.

    Raises:
        UsageError: pruning cannot leave so few multiply-accumulates, or a layer cannot be quantized.
        EdgeallError: the conversion failed.
    """
    keras.mixed_precision.set_global_policy("float32")
    size = candidate.input_size
    backbone = registry.get(candidate.model).build(BuildArgs(size, size, candidate.alpha, "none"))
    model = add_head(backbone, classes, 0.0)
    if candidate.macs < 1:
        model = with_channels(model, even_channels(Budget(model), candidate.macs))
    random = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([value + random.normal(0.0, 0.01, value.shape) for value in layer.get_weights()])
    return converted(model, candidate)


def converted(model: Any, candidate: Candidate) -> bytes:
    """The flatbuffer of ``model`` in the candidate's scheme, for measuring its cost only.

    The activation ranges of an integer scheme come from noise. Quantization-aware training ends in the same graph.
    """
    spec, folded = spec_of(candidate), fold_batch_normalization(model)
    if candidate.scheme in INTEGER_SCHEMES:
        shape = (4, spec.height, spec.width, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        folded = ptq(folded, spec, [normalize(noise, spec)])
    return convert(folded, candidate.scheme, spec)


def even_channels(budget: Budget, share: float) -> dict[str, int]:
    """Channels to keep of every group, by the same factor, for at most this share of the MACs.

    Raises:
        UsageError: no network is small enough.
    """
    for factor in np.linspace(1.0, 0.0, 257):
        kept = {group.name: round_up(group.channels, math.ceil(factor * group.channels)) for group in budget.groups}
        if budget.macs(kept) <= share * budget.total:
            return kept
    raise UsageError(f"pruning cannot go down to {share:g} of the MACs, only to {budget.smallest():.2f}")


def latency_ms(flatbuffer: bytes, labels: tuple[str, ...], spec: InputSpec, seconds: float) -> float:
    """Milliseconds of one image through the network, by the device's code path on one thread.

    The lowest of the medians of `ROUNDS` rounds, because other programs can only add time. Measured from the uint8
    pixels to the probabilities; reading and resizing the image are equal for all candidates and left out.

    Args:
        seconds: smallest total time of the measurement.
    """
    classifier = Classifier.from_flatbuffer(flatbuffer, labels, spec, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (4, spec.height, spec.width, 3), dtype=np.uint8)
    for image in images:  # the first run packs the weights
        classifier.predict(image)
    return min(median_ms(lambda: classifier.predict(images[0]), seconds / ROUNDS) for _ in range(ROUNDS))


def median_ms(query: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call that keeps one processor busy, over ``seconds`` or more.

    Calls during which another thread had the processor do not count, unless too few others are left.
    """
    counted: list[int] = []
    every: list[int] = []
    begin = time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds or len(counted) < MIN_QUERIES:
        if spent > PATIENCE * seconds and len(every) >= MIN_QUERIES:
            break
        before = time.thread_time_ns()  # the slower clock outside the faster
        start = time.perf_counter_ns()
        query()
        taken = time.perf_counter_ns() - start
        busy = time.thread_time_ns() - before
        every.append(taken)
        if busy >= UNDISTURBED * taken:
            counted.append(taken)
    return float(np.median(counted if len(counted) >= MIN_QUERIES else every)) / 1e6


def file_bytes_at_most(flatbuffer_bytes: int, spec: InputSpec) -> int:
    """Upper bound of the size of a packed model: the network, two uncompressed golden images, and texts."""
    golden = GOLDEN_IMAGES * (3 * max(spec.width // 2, 8) * max(spec.height * 3 // 8, 6) + 1024)
    return flatbuffer_bytes + golden + OVERHEAD_BYTES
