"""`RunSettings`: what a run was made with, as ``settings`` of its ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..edge_runtime.manifest import TASKS
from ..edge_runtime.results import Result
from .config import TrainSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings(Result):
    """The settings of a run that later commands read; the attributes are those of `edgeall.train.config.TrainSettings`.

    Attributes:
        recorded: every setting as it stands in the file: also those of pruning and joining, and those of another
            version.
    """

    task: str
    model: str
    input_size: int
    seed: int
    augment: str
    alpha: float | None
    weights: str
    batch_size: int
    dropout: float
    dense: int | None = None
    class_weights: bool
    positive: str | None
    fold: str | None
    recorded: Mapping[str, object] = field(repr=False)

    @classmethod
    def of(cls, settings: TrainSettings) -> RunSettings:
        """Those of a training."""
        return cls.read(settings.as_json())

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> RunSettings:
        """From the JSON object. A run of a version without tasks is a classifier."""
        known = {item.name: found[item.name] for item in fields(cls) if item.name in found}
        return cls(**{**known, "task": found.get("task") or TASKS[0], "recorded": found})

    def with_(self, **changes: object) -> RunSettings:
        """These settings, some of them changed or added."""
        return self.read({**self.recorded, **changes})

    def to_json(self) -> dict[str, Any]:
        """Every setting, in the order of the file."""
        return dict(self.recorded)
