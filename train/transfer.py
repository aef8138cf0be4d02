"""Transfer: a run that starts from the backbone of another run, as it would start from ImageNet weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edge_runtime.errors import UsageError
from ..models import registry
from .config import TrainSettings
from .data.split import Split
from .run_info import RunInfo, TransferInfo
from .runs import load_backbone, load_own_split, load_run, run_digest
from .tasks import registry as tasks


@dataclass(frozen=True)
class Source:
    """The run that ``--weights`` names.

    Attributes:
        run: its folder.
        sha256: of its ``run.json``.
        facts: the content of ``run.json``.
    """

    run: Path
    sha256: str
    facts: RunInfo

    def record(self) -> TransferInfo:
        """The entry in the new run's ``run.json``."""
        return TransferInfo(str(self.run), self.sha256, self.facts.data.dataset_sha256, self.facts.labels)

    def copy_to(self, backbone: Any) -> None:
        """Give a backbone of the same architecture the weights of the run's. The input size may differ.

        Raises DataError if ``model.keras`` is damaged.
        """
        backbone.set_weights(load_backbone(self.run, self.facts).get_weights())


def is_run(weights: str) -> bool:
    """Whether a value of ``--weights`` is the folder of a run."""
    return weights not in registry.WEIGHT_WORDS and Path(weights).is_dir()


def open_source(settings: TrainSettings) -> Source | None:
    """Read the run that ``--weights`` names; None if it names something else.

    Args:
        settings: resolved.

    Raises:
        UsageError: a run with another backbone, or one whose backbone is not that of the registry or not trained.
        DataError: a run that is not complete.
    """
    if not is_run(settings.weights):
        return None
    run = Path(settings.weights)
    name = f"--weights {run}"
    if run.resolve() == settings.out.resolve():
        raise UsageError(f"{name}: is --out itself", hint="choose another --out")
    facts = load_run(run)
    found = facts.model
    kind = "an imported" if found.imported else "an ensemble" if found.members else "a pruned" if found.channels else ""
    if kind:
        raise UsageError(
            f"{name}: is {kind} run, whose backbone has another architecture",
            hint="give a run that `edgeall train` made",
        )
    own, wanted = (facts.settings.model, facts.settings.alpha), (settings.model, settings.alpha)
    if own != wanted:
        given = " ".join(
            f"{option} {value}" for option, value in zip(("--model", "--alpha"), own, strict=True) if value
        )
        raise UsageError(f"{name}: has another backbone", hint=f"give {given}")
    if tasks.of_run(facts).name == "segmentation" and settings.task != "segmentation":
        raise UsageError(
            f"{name}: is a segmentation run, whose network has no deep layers", hint="give a classification run"
        )
    return Source(run, run_digest(run), facts)


def check_source(source: Source | None, split: Split) -> None:
    """Raise UsageError if the weights were trained on images of this test subset, or chosen by them.

    Raises DataError if the source's ``split.json`` is missing or damaged.
    """
    if source is None:
        return
    tested = {entry.sha256 for entry in split.subset("test")}
    own = load_own_split(source.run, source.facts)
    seen = sum(entry.sha256 in tested for side in ("train", "validation") for entry in own.subset(side))
    if seen:
        raise UsageError(
            f"--weights {source.run}: {seen} images of this test subset were used in its training",
            hint=f"train on its split: --split {source.run}",
        )
