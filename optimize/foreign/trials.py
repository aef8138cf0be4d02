"""What a foreign ``.tflite`` does not say: its normalization, told by the user, by the file or by the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import Bundle
from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import DataError
from ...edge_runtime.foreign import open_foreign
from ...edge_runtime.preprocess import Channels, load_input
from ...models.rewrite import CAFFE, TORCH
from ...train.data.split import SplitEntry
from ...train.data.subsets import SUBSETS
from ...train.imports.conventions import GIVEN, INSIDE, TRIED, Trials, choose, compare, numbers_of
from ...train.runs import image_folder
from .config import PackConfig
from .data import Data

Fact = tuple[tuple[Channels, Channels], str | None]
"""Mean and standard deviation, and the order of the channels; None is RGB or grey."""

FACTS: Mapping[str, Fact] = {
    "0..1": ((0.0, 255.0), None),
    "-1..1": ((127.5, 127.5), None),
    "caffe": ((CAFFE.mean[::-1], 1.0), "BGR"),
    "torch": ((TORCH.mean, TORCH.std), None),
    INSIDE: ((0.0, 1.0), None),
}
"""`edgeall.train.imports.conventions.CONVENTIONS` as input contracts."""
METADATA = "its TFLite metadata"
QUANTIZATION = "its quantization: integer inputs are the pixels"


@dataclass(frozen=True)
class Known:
    """A foreign model with all facts.

    Attributes:
        classifier: with the chosen normalization.
        normalization: its name.
        how: how it is known.
        trials: of a model with a float input; None for integer inputs.
        labels_named: whether the labels come from the user or from the file.
    """

    classifier: Classifier
    normalization: str
    how: str
    trials: Trials | None
    labels_named: bool

    @property
    def input_text(self) -> str:
        """The input in words."""
        spec, model = self.classifier.input, self.classifier.model.input
        return f"{model.dtype} {spec.width}x{spec.height} {spec.color}, {spec.normalization}"


def know(bundle: Bundle, config: PackConfig, data: Data, cache_dir: Path, progress: Progress) -> Known:
    """Find out how the model normalizes. Raises UsageError if neither the user, the file nor the data tell."""
    given = _given(config)
    tensor = bundle.graph.main.tensors[bundle.graph.main.inputs[0]]
    labels = _labels(config, bundle, data)
    named_labels = config.labels is not None or bundle.labels is not None

    def opened(fact: Fact | None) -> Classifier:
        normalization, color = fact or (None, None)
        return open_foreign(bundle, 1, labels, normalization, config.input_size, color)

    if tensor.type != "FLOAT32":
        classifier = opened(given and given[1])
        _check_labels(classifier, data, config)
        how = "named" if given else METADATA if bundle.normalization is not None else QUANTIZATION
        return Known(classifier, given[0] if given else GIVEN, how, None, named_labels)
    facts: dict[str, Fact] = dict(FACTS)
    if tensor.shape[-1] == 1:
        facts = {name: facts[name] for name in ("0..1", "-1..1", INSIDE)}
    how, named = "measured", None
    if given is not None:
        facts, how, named = {given[0]: given[1], **facts}, "named", given[0]
    elif bundle.normalization is not None:
        facts, how, named = {METADATA: (bundle.normalization, None), **facts}, METADATA, METADATA
    models = {name: opened(fact) for name, fact in facts.items()}
    _check_labels(next(iter(models.values())), data, config)
    trials = _tried(models, config, data, progress)
    choice = choose(trials, named, False, str(config.model))
    if choice.warning:
        progress.note(f"warning: {config.model}: {choice.warning}")
    return Known(models[choice.normalization], choice.normalization, how, trials, named_labels)


def _given(config: PackConfig) -> tuple[str, Fact] | None:
    """The normalization that the user named."""
    if config.mean is not None or config.std is not None:
        from ...edge_runtime.foreign import given_normalization

        found = [
            None if text is None else numbers_of(name, text)
            for name, text in (("--mean", config.mean), ("--std", config.std))
        ]
        mean, std = (value[0] if value is not None and len(value) == 1 else value for value in found)
        return GIVEN, (given_normalization(mean, std), None)
    name = INSIDE if config.normalized_inside else config.normalization
    return None if name is None else (name, FACTS[name])


def _labels(config: PackConfig, bundle: Bundle, data: Data) -> tuple[str, ...] | Path | None:
    """The label file, the labels of the data if the file has none, or None for those of the file."""
    if config.labels is not None:
        return config.labels
    return None if bundle.labels is not None else tuple(sorted(data.split.labels))


def _check_labels(classifier: Classifier, data: Data, config: PackConfig) -> None:
    unknown = [label for label in data.split.labels if label not in classifier.labels]
    if unknown:
        raise DataError(
            f"{config.data}: class {unknown[0]} is not one of the {len(classifier.labels)} labels of {config.model}",
            hint="rename the folder, or give the labels with --labels FILE",
        )


def _tried(models: Mapping[str, Classifier], config: PackConfig, data: Data, progress: Progress) -> Trials:
    """All normalizations on the same images."""
    first = next(iter(models.values()))
    entries = _sample(data, config.seed)
    folder = image_folder(config.data)
    truth = np.array([first.labels.index(entry.label) for entry in entries])
    pixels = [load_input(folder / entry.path, first.input) for entry in entries]
    progress.note(f"trying {len(models)} normalizations on {len(entries)} images")

    def predict(model: Classifier) -> NDArray[np.float32]:
        return np.stack([model.predict(image) for image in pixels])

    return compare(predict, models, truth)


def _sample(data: Data, seed: int) -> list[SplitEntry]:
    """Up to `TRIED` images in random order; of the train and validation subsets if there are any."""
    names: tuple[Any, ...] = SUBSETS[:2] if data.divided else SUBSETS
    entries = [entry for name in names for entry in data.split.subset(name)]
    order = np.random.default_rng(seed).permutation(len(entries))[:TRIED]
    return [entries[index] for index in sorted(order)]
