"""Quantization-aware fine-tuning of a run, kept in the run's folder so that it survives a kill."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.files import output_lock
from ...train.data import cache
from ...train.fit import fit
from ...train.run_info import RunInfo
from ...train.stage import FitOptions, Stage
from .placement import WITH_WEIGHTS
from .qat import PLACEMENT, QuantizationAware

if TYPE_CHECKING:
    from .job import Job


def sparsity_masks(folded: Any, facts: RunInfo, progress: Progress) -> dict[str, NDArray[np.float32]]:
    """The zeros that quantization-aware training keeps, by layer; empty unless the run was pruned to sparsity."""
    if facts.pruned is None or facts.pruned.kind != "sparsity":
        return {}
    kernels = {layer.name: layer.get_weights()[0] for layer in folded.layers if type(layer) in WITH_WEIGHTS}
    masks = {name: (kernel != 0).astype(np.float32) for name, kernel in kernels.items() if (kernel == 0).any()}
    weights = sum(mask.size for mask in masks.values())
    zeros = weights - sum(np.count_nonzero(mask) for mask in masks.values())
    progress.note(f"keeping its sparsity of {100 * zeros / max(weights, 1):.3g} %")
    return masks


def train_quantized(job: Job, network: QuantizationAware, calibration_images: int) -> None:
    """Fine-tune in place on the training subset; an interrupted or repeated call resumes.

    The float network is the teacher: the integer network has to reproduce its probabilities, which hold more
    information about an image than the label does. Source: Mishra and Marr 2018, "Apprentice: Using knowledge
    distillation techniques to improve low-precision network accuracy".

    Args:
        job: the checkpoint is ``qat/<digest of what decides the result>.npz`` in its run folder.
        network: it is trained.
        calibration_images: number of images behind the initial ranges.
    """
    config, settings, folded = job.config, job.facts.settings, network.folded
    images = job.task.epoch_images(job.subsets["train"])
    epochs, batch_size = config.epochs, settings.batch_size
    stage = Stage("qat", epochs, config.learning_rate, epochs, images, batch_size, xla=False, soft=True)
    digests = [hashlib.sha256(value.tobytes()).hexdigest() for value in folded.get_weights()]
    masks = {name: int(mask.sum()) for name, mask in network.masks.items()}
    books = {name: integers.tolist() for name, integers in network.codebooks.items()}
    floats = network.placement.floats
    key = cache.digest(
        [PLACEMENT, asdict(stage), calibration_images, settings.to_json(), digests, floats, masks, books]
    )
    checkpoint = config.run / "qat" / f"{key}.npz"
    with output_lock(checkpoint, "quantize"):
        if checkpoint.exists():
            job.progress.note(f"qat: resuming {checkpoint}")
        data = job.task.distillation(job, stage, folded)
        fit(
            network.model,
            stage,
            data.batches,
            data.validation,
            checkpoint,
            job.progress,
            FitOptions(tensorboard=config.run / "tensorboard" / "qat", objective=data.objective),
        )
