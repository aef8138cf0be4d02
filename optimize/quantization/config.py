"""Settings of one quantization."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ...edge_runtime.errors import UsageError
from .schemes import CLUSTERS, GOLDEN_SOURCES, INTEGER_SCHEMES, SCHEMES, check_golden, check_scheme


@dataclass(frozen=True)
class QuantizeConfig:
    """Settings of `edgeall.optimize.quantize.quantize`.

    Attributes:
        run: complete run folder.
        scheme: one of `edgeall.optimize.quantization.schemes.SCHEMES`.
        out: file to write.
        max_drop: largest accepted loss of accuracy against Keras float32, in percentage points; of a segmentation
            network, of Dice in hundredths.
        auto_float: where an integer scheme loses more than ``max_drop`` on the validation subset, leave as few layers
            as it takes in float, see `edgeall.optimize.quantization.auto_float`.
        epochs: fine-tuning epochs of ``qat-int8``.
        learning_rate: peak learning rate of ``qat-int8``, in (0, 1].
        representative: number of training images on which activation ranges are measured (integer schemes).
        data: current location of the images; None: where the run read them.
        golden: source of the golden images: ``test``, the test subset, or ``synthetic``, for data that must not be
            passed on.
        subset: subset on which the result is verified and the manifest's metrics are computed. `edgeall search`
            verifies candidates on ``validation`` and only the chosen one on ``test``.
        float_layers: layers of an integer scheme whose weights and output stay in float. Layers that read such an
            output compute in float too.
        clusters: ``qat-int8`` only: largest number of different values in the weights of each prunable layer; the
            file compresses better. See `edgeall.optimize.pruning.cluster`.
        layer_report: measure the rounding error of each layer on the validation subset (integer schemes). A path:
            also write it there, see `edgeall.optimize.quantization.node_data`.
        robust: measure accuracy under corruptions as well, see `edgeall.train.evaluation.robustness.robustness`. The
            mean and the worst case go into the file.
        target_sensitivity: see `edgeall.edge_runtime.tools.decisions.review_rule`.
        review_budget: largest share of images sent to review as uncertain; 0: no rule.
        explain: the second output is the last feature map instead of its mean; `edgeall run --explain` needs it.
        force: overwrite ``out``.
        cache_dir: folder of the pixel cache; None: the default one.
    """

    run: Path
    scheme: str = field(metadata={"choices": SCHEMES})
    out: Path
    max_drop: float | None = None
    auto_float: bool = False
    epochs: int = 4
    learning_rate: float = 3e-5
    representative: int = 256
    data: Path | None = None
    golden: str = field(default="test", metadata={"choices": GOLDEN_SOURCES})
    subset: str = "test"
    float_layers: tuple[str, ...] = ()
    clusters: int | None = None
    layer_report: bool | Path = False
    robust: bool = False
    target_sensitivity: float | None = None
    review_budget: float | None = None
    explain: bool = False
    force: bool = False
    cache_dir: Path | None = None

    @property
    def integer(self) -> bool:
        """Whether the scheme is fully integer."""
        return self.scheme in INTEGER_SCHEMES

    @property
    def remedies(self) -> tuple[str, ...]:
        """Options that may lower the drop."""
        return "--scheme qat-int8", "more --epochs"

    def check(self) -> None:
        """Raise UsageError for invalid settings or an ``out`` that cannot be written."""
        check_scheme(self.scheme)
        if not 0 < self.learning_rate <= 1:
            raise UsageError(f"--learning-rate must be in (0, 1], got {self.learning_rate:g}")
        check_golden(self.golden)
        needing = ("auto_float", "float_layers", "layer_report")
        if given := [name for name in needing if not self.integer and getattr(self, name)]:
            option = given[0].replace("_", "-")
            raise UsageError(f"--{option} requires an int8 scheme", hint=f"use {' or '.join(INTEGER_SCHEMES)}")
        if self.auto_float and self.max_drop is None:
            raise UsageError("--auto-float without --max-drop", hint="give the allowed drop, as in --max-drop 0.5")
        if self.clusters is not None and (self.scheme != "qat-int8" or not CLUSTERS[0] <= self.clusters <= CLUSTERS[1]):
            raise UsageError(
                f"--clusters {self.clusters} with {self.scheme}",
                hint=f"give a number from {CLUSTERS[0]} to {CLUSTERS[1]} with --scheme qat-int8",
            )
        self._check_file(self.out, "--out", "model.tflite")
        if isinstance(self.layer_report, Path):
            if self.layer_report == self.out:
                raise UsageError(f"{self.out}: both --out and --layer-report", hint="choose another --layer-report")
            self._check_file(self.layer_report, "--layer-report", "layers.json")

    def _check_file(self, file: Path, option: str, example: str) -> None:
        if file.is_dir():
            raise UsageError(f"{file}: is a folder", hint=f"name the file, as in {option} {example}")
        if file.exists() and not self.force:
            raise UsageError(f"{file}: exists", hint=f"choose another {option}, or --force to overwrite it")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=file.parent):
                pass
        except OSError as error:
            raise UsageError(f"{file}: can't be written ({error.strerror})", hint=f"choose another {option}") from error
