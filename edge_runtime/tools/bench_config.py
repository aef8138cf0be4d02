"""The settings of `edgeall.edge_runtime.tools.bench.bench`. Imports nothing heavy: the command line takes them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Attributes:
        images: a folder, or one image. Images below folders with the name of a label also give the accuracy, in a
            separate untimed pass over all of them. None times the model's golden images.
        threads: of the interpreter in the single stream.
        seconds: minimum duration of each timed loop.
        min_queries: minimum number of images in each timed loop.
        repetitions: of the single stream.
        sweep: also measure the single stream with other numbers of threads, and the offline scenario with every
            layout of interpreters and threads on the cores.
        profile: also time each operator, see `edgeall.edge_runtime.tools.profile`.
        labels_file: foreign models only, like the three below; see `Classifier.open`.
        mean: see `Classifier.open`.
        std: see `Classifier.open`.
        input_size: see `Classifier.open`.
    """

    images: Path | None = None
    threads: int = 1
    seconds: float = 5.0
    min_queries: int = 50
    repetitions: int = 1
    sweep: bool = False
    profile: bool = False
    labels_file: str | os.PathLike[str] | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    input_size: int | None = None
