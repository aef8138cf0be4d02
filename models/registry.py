"""The registry of backbones: `ModelSpec`, `register`, `get`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edge_runtime.errors import UsageError

WEIGHT_WORDS = ("imagenet", "none")
"""Values of ``--weights`` that are words, not paths."""
FAMILIES = ("densenet", "efficientnet", "inception", "mobilenet_v2", "nasnet", "plain", "resnet", "vgg")
"""Modules of this package that register backbones when imported."""


@dataclass(frozen=True)
class BuildArgs:
    """The arguments for building a backbone.

    Attributes:
        height: input pixels.
        width: input pixels.
        alpha: width multiplier; None for backbones without one.
        weights: ``imagenet`` (downloaded by Keras), ``none``, or the path of a ``no_top`` weights file.
    """

    height: int
    width: int
    alpha: float | None
    weights: str


@dataclass(frozen=True)
class Facts:
    """Size and cost of a backbone at its `ModelSpec.input_hw`, with alpha 1.0 if it has alphas.

    Known without building the network; a test compares each value with the built network.

    Attributes:
        parameters: number of parameters without a head.
        macs: multiply-accumulate operations for one image.
        features: width of the output.
        layers: number of layers of the Keras graph, including the input.
        sparsity_weights: number of weights that ``prune --sparsity`` prunes, with a head of two classes.
        channel_groups: number of groups from which ``prune --macs`` can remove channels.
        int8_obstacle: why it cannot be fully quantized to int8; None if it can.
    """

    parameters: int
    macs: int
    features: int
    layers: int
    sparsity_weights: int
    channel_groups: int
    int8_obstacle: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """How to build one backbone, and what it requires.

    Attributes:
        name: as given to ``--model``.
        build: returns a flat functional Keras model, float input ``(height, width, 3)`` already
            normalized with `mean` and `std`, output the pooled features ``(features,)``.
        input_hw: the size it was designed for.
        sizes: smallest and largest supported height and width.
        mean: normalization, see `edgeall.edge_runtime.preprocess.InputSpec`.
        std: normalization.
        reference: its paper, on one line.
        facts: size and cost, see `Facts`.
        alphas: supported width multipliers; empty if it has none.
        pretrained: whether ``--weights imagenet`` exists.
        unfreeze: default number of last layers that fine-tuning of pretrained weights trains; None means all.
        skips: names of the layers at strides 2, 4, 8 and 16 that a segmentation decoder reads, see
            `edgeall.models.decoder`; empty if there is no decoder for it.
    """

    name: str
    build: Callable[[BuildArgs], Any]
    input_hw: tuple[int, int]
    reference: str
    facts: Facts
    sizes: tuple[int, int] = (32, 512)
    mean: float = 127.5
    std: float = 127.5
    alphas: tuple[float, ...] = ()
    pretrained: bool = True
    unfreeze: int | None = None
    skips: tuple[str, ...] = ()


_REGISTRY: dict[str, ModelSpec] = {}


def register(spec: ModelSpec) -> ModelSpec:
    """Add a backbone. Raises ValueError on a second registration of the same name."""
    if spec.name in _REGISTRY:
        raise ValueError(f"backbone {spec.name!r} is registered twice")
    _REGISTRY[spec.name] = spec
    return spec


def names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    for family in FAMILIES:
        importlib.import_module(f"edgeall.models.{family}")
    return tuple(sorted(_REGISTRY))


def get(name: str) -> ModelSpec:
    """The spec of ``name``. Raises UsageError, which lists the names and the nearest one."""
    known = names()
    if name in _REGISTRY:
        return _REGISTRY[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"no backbone named {name!r}", hint=f"{hint}available: {', '.join(known)}")


def check_args(spec: ModelSpec, args: BuildArgs) -> None:
    """Validate the arguments before any work starts.

    Raises:
        UsageError: an unsupported alpha, a size outside the range, or weights that do not exist.
    """
    if spec.alphas and args.alpha not in spec.alphas:
        listed = ", ".join(f"{alpha:g}" for alpha in spec.alphas)
        raise UsageError(f"{spec.name} does not support alpha {args.alpha}", hint=f"choose one of {listed}")
    if not spec.alphas and args.alpha is not None:
        raise UsageError(f"{spec.name} takes no alpha", hint="leave --alpha out")
    low, high = spec.sizes
    if not (low <= args.height <= high and low <= args.width <= high):
        raise UsageError(f"{spec.name} supports inputs of {low} to {high} pixels, not {args.width}x{args.height}")
    if args.weights == "imagenet" and not spec.pretrained:
        raise UsageError(f"{spec.name} has no pretrained weights", hint="use --weights none")
    if args.weights not in WEIGHT_WORDS and not Path(args.weights).is_file():
        raise UsageError(
            f"{args.weights}: no such weights file",
            hint="give imagenet, none, a .h5 file or a run folder",
        )
