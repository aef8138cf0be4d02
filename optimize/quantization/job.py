"""The steps of a quantization that all tasks share: open the run, fold it, convert it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.preprocess import InputSpec
from ...models.graph import targets
from ...models.keras_compat import exact_float32
from ...train.data import cache
from ...train.data.split import Split, check_split
from ...train.run_info import RunInfo
from ...train.runs import data_root, input_spec, load_model, load_own_split, load_run
from ...train.tasks import registry as training
from ..tasks import registry as tasks
from .activations import REPORT_IMAGES, activation_extremes, layer_report
from .config import QuantizeConfig
from .convert import convert
from .fold import fold_batch_normalization
from .layer_error import LayerError
from .placement import Placement, Range, input_range, place, range_of, ranges, rounded, rounded_second
from .result import AutoFloat

FOLD_TOLERANCE = 1e-4
"""Largest accepted change of a probability by folding BatchNormalization; `check_folding` has the one exception."""
ROUNDING = 2.0**-22
"""Relative change of every weight that simulates the rounding of float32."""


@dataclass(frozen=True)
class Job:
    """The opened run, and what every step reads: ``subsets`` are its preprocessed images by subset."""

    config: QuantizeConfig
    progress: Progress
    facts: RunInfo
    root: Path
    split: Split
    spec: InputSpec
    subsets: dict[str, Any]

    @property
    def task(self) -> tasks.QuantizationTask:
        return tasks.of_run(self.facts)

    @property
    def verified_images(self) -> Any:
        return self.subsets[self.config.subset]

    @property
    def seed(self) -> int:
        return int(self.facts.settings.seed)


@dataclass(frozen=True)
class Folded:
    """The folded float network; ``placement`` is None for a float scheme.

    ``probabilities`` are those of Keras float32 before folding, of the verified images, see
    `QuantizationTask.predictions`.
    """

    folded: Any
    placement: Placement | None
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class IntegerNetwork:
    """The float network whose weights an integer scheme quantizes.

    Attributes:
        network: folded.
        measured: extremes of the activations by layer, those of ``second`` among them.
        second: name of the layer behind the second output.
    """

    network: Any
    measured: dict[str, Range]
    second: str


@dataclass(frozen=True)
class Converted:
    """The flatbuffers, and what they were made from.

    Attributes:
        flatbuffer: of the scheme.
        float32: for comparison.
        output: name of the layer behind the second output.
        integer: None for a float scheme.
        layers: rounding error of each layer, if it was measured.
        auto_float: the search for float layers, if there was one.
    """

    flatbuffer: bytes
    float32: bytes
    output: str
    integer: IntegerNetwork | None = None
    layers: list[LayerError] | None = None
    auto_float: AutoFloat | None = None


def open_job(config: QuantizeConfig, progress: Progress) -> Job:
    """Open the run and its data, and refuse what would only fail at the end."""
    cache_dir = cache.ready(config.cache_dir)
    facts = load_run(config.run)
    tasks.of_run(facts).check(config, facts)
    root = config.data or data_root(facts)
    split = load_own_split(config.run, facts)
    check_split(split, root)
    spec = input_spec(facts.settings)
    subsets = training.of_run(facts).load(split, root, spec, cache_dir, progress)
    return Job(config, progress, facts, root, split, spec, subsets)


def fold(job: Job) -> Folded:
    """Fold BatchNormalization, and decide what an integer scheme rounds."""
    model = load_model(job.config.run, job.facts)
    folded = fold_batch_normalization(model)
    placement = place(folded, input_range(job.spec), job.config.float_layers) if job.config.integer else None
    with exact_float32():
        probabilities = job.task.predictions(model, job.verified_images)
        check_folding(probabilities, folded, lambda model: job.task.predictions(model, job.verified_images))
    return Folded(folded, placement, probabilities)


def check_folding(before: NDArray[Any], folded: Any, predictions: Callable[[Any], NDArray[Any]]) -> None:
    """Check that folding left the network what it was.

    In a network of a hundred layers that is hardly trained, rounding alone can exceed `FOLD_TOLERANCE`. Its effect is
    measured then: folding may change a prediction no more than changing the last bits of all weights does.

    Args:
        before: the predictions of the network before folding.
        folded: it is unchanged in the end.
        predictions: of a model, for the same images.
    """
    after = predictions(folded)
    difference = float(np.abs(before - after).max())
    if difference <= FOLD_TOLERANCE:
        return
    weights, generator = folded.get_weights(), np.random.default_rng(0)
    signs = [generator.choice(np.array([-1, 1], np.float32), value.shape) for value in weights]
    folded.set_weights([value * (1 + ROUNDING * sign) for value, sign in zip(weights, signs, strict=True)])
    noise = float(np.abs(predictions(folded) - after).max())
    folded.set_weights(weights)
    if not difference <= FOLD_TOLERANCE + noise:  # a NaN is refused too
        raise EdgeallError(
            f"folding BatchNormalization changed a probability by {difference:.2g}, rounding alone by {noise:.2g}; "
            "please report this"
        )


def convert_network(job: Job, network: Folded) -> Converted:
    """Convert to the scheme, and to float32 for comparison."""
    config, spec = job.config, job.spec
    job.progress.note(f"converting to {config.scheme}")
    float32 = convert(network.folded, "float32", spec)
    if network.placement is None:
        whole = job.task.outputs(network.folded, config.explain)
        return Converted(convert(whole, config.scheme, spec), float32, whole.output_names[0])
    integer = _integer_network(job, network.folded, network.placement)
    flatbuffer, output = convert_integer(job, integer, network.placement)
    return Converted(flatbuffer, float32, output, integer)


def convert_integer(job: Job, integer: IntegerNetwork, placement: Placement) -> tuple[bytes, str]:
    """The flatbuffer of an integer scheme, and the name of the layer behind its second output."""
    spanned = ranges(placement, integer.measured)
    whole = job.task.outputs(rounded(integer.network, placement, spanned), job.config.explain)
    second = integer.network.get_layer(integer.second)
    if any(layer.name in placement.floats for layer in (second, *targets(second))):
        whole = rounded_second(whole, range_of([integer.measured[integer.second]]))
    allowed = (*placement.floats, *placement.movers)
    return convert(whole, job.config.scheme, job.spec, allowed), whole.output_names[0]


def measure_layers(job: Job, integer: IntegerNetwork, placement: Placement) -> list[LayerError]:
    """Rounding error of each layer on validation images, the worst first."""
    images = job.task.sample(job.subsets["validation"], REPORT_IMAGES, 0)
    return layer_report(integer.network, placement, ranges(placement, integer.measured), images, job.progress)


def _integer_network(job: Job, folded: Any, placement: Placement) -> IntegerNetwork:
    """Measure the activation ranges; ``qat-int8`` also trains them and the weights."""
    config, settings = job.config, job.facts.settings
    images = job.task.sample(job.subsets["train"], config.representative, job.seed)
    second = job.task.outputs(folded, config.explain).output_names[0]
    wanted = replace(placement, spans={**placement.spans, "(second output)": (second,)})
    measured = activation_extremes(folded, wanted, images, settings, job.progress)
    if config.scheme != "qat-int8":
        return IntegerNetwork(folded, measured, second)
    from .qat import quantization_aware  # imports tfmot
    from .qat_training import sparsity_masks, train_quantized

    masks = sparsity_masks(folded, job.facts, job.progress)
    trainable = quantization_aware(folded, placement, measured, masks, config.clusters)
    train_quantized(job, trainable, len(images))
    return IntegerNetwork(trainable.trained(), measured | trainable.measured(), second)
