"""How a comparison makes and measures models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...edge_runtime.errors import UsageError
from ...train.data import cache
from ..quantization.schemes import SCHEMES, check_scheme


@dataclass(frozen=True)
class CompareOptions:
    """Options of `edgeall.optimize.experiments.compare.compare_runs`.

    Attributes:
        schemes: of `edgeall.optimize.quantization.convert.SCHEMES`.
        qat_epochs: epochs of ``qat-int8`` where it has to be trained.
        seconds: approximate time for which each model is timed, see `edgeall.optimize.experiments.latency.interleaved`.
        data: current location of the images; None: where the runs read them.
        cache_dir: folder of the pixel cache; None: the default one.
    """

    schemes: tuple[str, ...] = ("float32", "ptq-int8", "qat-int8")
    qat_epochs: int = 4
    seconds: float = 3.0
    data: Path | None = None
    cache_dir: Path | None = None

    def checked(self) -> CompareOptions:
        """These options with the schemes in the order of `SCHEMES`. Raises UsageError for invalid ones."""
        if not self.schemes:
            raise UsageError("no scheme to compare", hint=f"there are: {', '.join(SCHEMES)}")
        for scheme in self.schemes:
            check_scheme(scheme)
        if self.qat_epochs < 1 or not self.seconds > 0:
            raise UsageError("--qat-epochs must be at least 1, and --seconds above 0")
        ordered = tuple(scheme for scheme in SCHEMES if scheme in self.schemes)
        return replace(self, schemes=ordered, cache_dir=cache.ready(self.cache_dir))
