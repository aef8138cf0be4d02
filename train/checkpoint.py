"""The state of a training stage between epochs, and its checkpoint file."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..edge_runtime.errors import DataError
from ..edge_runtime.tools.atomic import atomic_write
from .stage import Row, Stage
from .workers import ALONE, Workers


@dataclass(frozen=True)
class TrainingState:
    """Everything that a resumed training needs. Written as one file, which holds the old state or the new one.

    Attributes:
        history: a row per epoch.
        kept_loss: the lowest validation loss.
        kept_epoch: the epoch of that loss; 0 for the weights at the start.
        kept_weights: the averaged weights of that epoch.
        average: the running average of the weights.
    """

    history: list[Row]
    kept_loss: float
    kept_epoch: int
    kept_weights: list[Any]
    average: list[Any]

    @classmethod
    def fresh(cls, model: Any, loss: float, workers: Workers = ALONE) -> TrainingState:
        return cls([], loss, 0, workers.weights(model), workers.weights(model))

    def finished(self, stage: Stage) -> bool:
        """Whether no epoch is left, or the last `Stage.patience` epochs were worse than the best one before them.

        The weights at the start do not count. Fine-tuning begins with a rising learning rate, which loses what the
        head had learned: for ten epochs or more a stage that will be better than the start is worse.
        """
        done = len(self.history)
        return done >= stage.epochs or done - self._best_epoch(stage.settle) >= stage.patience

    def _best_epoch(self, settle: int) -> int:
        """The epoch with the lowest validation loss, the last of equal ones, not before ``settle``; 0 without one."""
        best, lowest = 0, float("inf")
        for row in self.history[max(settle - 1, 0) :]:
            if row["val_loss"] <= lowest:
                best, lowest = row["epoch"], row["val_loss"]
        return best

    def after(self, row: Row, settling: bool = False) -> TrainingState:
        """The state after another epoch. The epoch is kept unless an earlier loss was lower or its loss is NaN."""
        history = [*self.history, row]
        if settling or row["val_loss"] <= self.kept_loss:
            kept = [np.copy(value) for value in self.average]
            return TrainingState(history, row["val_loss"], row["epoch"], kept, self.average)
        return TrainingState(history, self.kept_loss, self.kept_epoch, self.kept_weights, self.average)

    def save(self, path: Path, model: Any, weights: list[Any]) -> None:
        facts = {"history": self.history, "kept_epoch": self.kept_epoch, "kept_loss": self.kept_loss}
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
        arrays |= {f"weight_{index}": value for index, value in enumerate(weights)}
        arrays |= {f"kept_{index}": value for index, value in enumerate(self.kept_weights)}
        arrays |= {f"average_{index}": value for index, value in enumerate(self.average)}
        arrays |= {f"optimizer_{index}": value.numpy() for index, value in enumerate(model.optimizer.variables)}
        with atomic_write(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, saved: bytes, name: Path, model: Any, workers: Workers) -> TrainingState:
        """Read what `save` wrote. A checksum covers every byte. Raises DataError if the file is damaged."""
        shapes = [tuple(value.shape) for value in model.weights]

        def of_each(kind: str) -> list[Any]:
            found = [arrays[f"{kind}_{index}"] for index in range(len(shapes))]
            if [value.shape for value in found] != shapes:
                raise ValueError("of another network")
            return found

        try:
            with np.load(io.BytesIO(saved)) as arrays:
                facts = json.loads(str(arrays["facts"]))
                history, kept_epoch = list(facts["history"]), int(facts["kept_epoch"])
                kept_loss = facts.get("kept_loss")
                weights, kept, average = of_each("weight"), of_each("kept"), of_each("average")
                optimizer = [arrays[f"optimizer_{index}"] for index in range(len(model.optimizer.variables))]
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0] if saved else "empty"
            raise DataError(
                f"{name}: the checkpoint is damaged ({said})",
                hint="remove it and repeat the command: this stage then starts over, earlier stages are kept",
            ) from error
        if kept_loss is None:
            raise DataError(
                f"{name}: written by an older edgeall with another rule for the kept epoch; it cannot be resumed",
                hint="start over with --force, or use another --out",
            )
        workers.put(model, weights)
        for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
            variable.assign(value)
        return cls(history, float(kept_loss), kept_epoch, kept, average)
