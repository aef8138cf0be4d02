"""Settings of one pruning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...edge_runtime.errors import UsageError

EPOCHS = {"macs": 16, "sparsity": 10}
"""Default epochs. A network that lost channels has more to relearn, and its epochs are faster."""
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class PruneConfig:
    """Settings of `edgeall.optimize.prune.prune`. Exactly one of ``sparsity`` and ``macs`` is given.

    Attributes:
        run: complete run folder; it may have been pruned before.
        out: folder of the new run; the same command resumes an unfinished one.
        sparsity: target share of zeros in the kernels of prunable layers, in (0, 1), see
            `edgeall.optimize.pruning.sparsity.prunable`.
        macs: target share of the run's multiply-accumulates that is left, in (0, 1).
        epochs: training epochs after channel pruning (``macs``), or during and after zeroing (``sparsity``); None:
            `EPOCHS`.
        learning_rate: peak learning rate, in (0, 1].
        data: current location of the images; None: where the run read them.
        force: overwrite another run in ``out``.
        cache_dir: folder of the pixel cache; None: the default one.
    """

    run: Path
    out: Path
    sparsity: float | None = None
    macs: float | None = None
    epochs: int | None = None
    learning_rate: float = LEARNING_RATE
    data: Path | None = None
    force: bool = False
    cache_dir: Path | None = None

    @property
    def kind(self) -> str:
        """``sparsity`` or ``macs``."""
        return "macs" if self.sparsity is None else "sparsity"

    @property
    def target(self) -> float:
        """The value of ``sparsity`` or ``macs``."""
        target = self.macs if self.sparsity is None else self.sparsity
        assert target is not None
        return target

    @property
    def training_epochs(self) -> int:
        """``epochs``, or the default of the kind."""
        return EPOCHS[self.kind] if self.epochs is None else self.epochs

    def check(self) -> None:
        """Raise UsageError for invalid settings."""
        given = [value for value in (self.sparsity, self.macs) if value is not None]
        if len(given) != 1:
            wanted = "either --sparsity or --macs, not both" if given else "how much to prune: --sparsity or --macs"
            raise UsageError(f"give {wanted}", hint="--sparsity 0.75 for zeros, --macs 0.5 for fewer channels")
        if not 0 < self.target < 1:  # refuses NaN too
            raise UsageError(f"--{self.kind} must be above 0 and below 1, got {self.target:g}")
        if not 0 < self.learning_rate <= 1:
            raise UsageError(f"--learning-rate must be in (0, 1], got {self.learning_rate:g}")
        if self.training_epochs < 1:
            raise UsageError(f"--epochs must be at least 1, got {self.training_epochs}")
