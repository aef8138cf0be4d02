"""Run folders: what every later command reads of a training, and how its files are written."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import platform
import subprocess
import time
import zlib
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..console.progress import Progress
from ..edge_runtime import files
from ..edge_runtime.bundle import FROM_KERAS, is_keras
from ..edge_runtime.errors import NO_ROOM, DataError, UsageError
from ..edge_runtime.preprocess import InputSpec
from ..models import registry
from ..models.head import add_head
from ..models.narrow import with_channels
from ..models.registry import BuildArgs
from .batches import Images, plain
from .data import cache
from .data.dataset import positive_labels
from .data.split import SIDES, Split, load_split
from .evaluation.metrics import metrics_of
from .reports.report import write_report

SCHEMA = 1


def load_run(run: Path) -> dict[str, Any]:
    """The ``run.json`` of a complete run: what every command that takes a RUN begins with.

    Raises:
        DataError: there is none, or ``run`` is something else, a model file say; then with what can be done with that.
    """
    check_is_run(run)
    if not (run / "run.json").exists():
        started = (run / "settings.json").exists()
        hint = "the training was not finished: give its `edgeall train` command again" if started else "check the path"
        raise DataError(f"{run}: not a complete run (no run.json)", hint=hint)
    facts = read_json(run / "run.json", "give the command that made the run again")
    if facts.get("schema") != SCHEMA:
        raise DataError(f"{run}/run.json: schema {facts.get('schema')} is not {SCHEMA}", hint="train again")
    return facts


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """An object that `write_json` wrote. Raises DataError, with the hint, where it is damaged or missing."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
        said = "no object"
    except FileNotFoundError:
        raise DataError(f"{path}: missing", hint=hint) from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})", hint="check its owner and mode") from error
    except (ValueError, RecursionError) as error:
        said = str(error)
    raise DataError(f"{path}: {'empty' if not path.stat().st_size else f'damaged ({said})'}", hint=hint)


def is_whole(run: Path) -> bool:
    """Whether a run is complete: its ``run.json`` was written, last of all, and is still readable."""
    return _holds_object(run / "run.json")


def _holds_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return False


def is_damaged(file: Path) -> bool:
    """Whether a JSON file of ours is there and can't be read as one."""
    return file.exists() and not _holds_object(file)


def start_over(out: Path) -> str:
    """The hint where a folder can't be gone on with."""
    return f"remove {out} and give the command again, or choose another --out"


def read_history(run: Path) -> list[dict[str, str]]:
    """The rows of a run's ``history.csv``. Raises DataError where it is missing or damaged."""
    path = run / "history.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        if rows and all(row.get("stage") and row.get("epoch") for row in rows):
            return rows
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        pass
    raise DataError(f"{path}: missing or damaged", hint="train again")


def check_is_run(run: Path) -> None:
    """Raises DataError for a file and for a Keras SavedModel; a folder may still be no run."""
    keras = is_keras(run)
    if run.is_dir() and ((run / "run.json").exists() or not keras):
        return
    if not run.exists():
        raise DataError(f"{run}: not a complete run (no such folder)", hint="check the path")
    hint = "give the folder that `edgeall train --out` made"
    if (run.parent / "run.json").exists():
        hint = f"give its folder: {run.parent}"
    elif keras:
        hint = FROM_KERAS
    elif run.suffix == ".tflite":
        hint = "`edgeall run`, `evaluate` and `bench` take a .tflite file; this takes a folder made by `edgeall train`"
    what = "a Keras model" if keras else "a model file" if run.suffix == ".tflite" else "a file"
    raise DataError(f"{run}: {what}, not a run folder made by `edgeall train`", hint=hint)


def run_digest(run: Path) -> str:
    """sha256 of ``run.json``: one name for exactly this training, put into every model made of it."""
    return hashlib.sha256((run / "run.json").read_bytes()).hexdigest()


def load_model(run: Path, facts: dict[str, Any]) -> Any:
    """The trained float32 Keras model of a run, rebuilt flat from its settings. Raises DataError if it is damaged."""
    settings = {**facts["settings"], "weights": "none"}
    backbone = registry.get(settings["model"]).build(build_args(settings))
    model = add_head(backbone, len(facts["labels"]), settings["dropout"])
    if facts["model"].get("channels"):  # of a run that `edgeall prune --macs` made
        model = with_channels(model, facts["model"]["channels"])
    path = run / "model.keras"
    # Not Keras's load_model: it jumps about inside the archive, and each step back reads all of it anew.
    try:
        with ZipFile(path) as archive:
            weights = archive.read("model.weights.h5")
    except (FileNotFoundError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise _damaged(path, error) from error
    with files.scratch() as folder:
        extracted = folder / "model.weights.h5"
        extracted.write_bytes(weights)
        try:
            model.load_weights(extracted)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, *NO_ROOM):
                raise  # nothing that the file could do anything about
            raise _damaged(path, error) from error
    return model


def _damaged(path: Path, error: Exception) -> DataError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path}: missing or damaged ({said})", hint="train again")


def load_own_split(run: Path, facts: dict[str, Any]) -> Split:
    """The split of a run. Raises DataError if ``split.json`` is not the one the run was trained on."""
    split = load_split(run / "split.json")
    if split.sha256 != facts["split"]["sha256"]:
        raise DataError(f"{run}/split.json: not the split this run was trained on", hint="restore it, or train again")
    return split


def build_args(settings: dict[str, Any]) -> BuildArgs:
    """What the registry builds the run's backbone from."""
    size = settings["input_size"]
    return BuildArgs(height=size, width=size, alpha=settings["alpha"], weights=settings["weights"])


def input_spec(settings: dict[str, Any]) -> InputSpec:
    """The input contract of the run's model."""
    spec = registry.get(settings["model"])
    size = settings["input_size"]
    return InputSpec(height=size, width=size, mean=spec.mean, std=spec.std)


def load_sides(split: Split, root: Path, spec: InputSpec, cache_dir: Path, progress: Progress) -> dict[str, Images]:
    """The preprocessed images of every side, in the order of the split's entries."""
    pixels = cache.pixels(image_folder(root), split.entries, spec, cache_dir, progress)
    index = {label: number for number, label in enumerate(split.labels)}
    labels = np.array([index[entry.label] for entry in split.entries], np.int64)
    sides = np.array([entry.side for entry in split.entries])
    rows = {side: np.flatnonzero(sides == side) for side in SIDES}
    return {side: Images(pixels, rows[side], labels[rows[side]], spec) for side in SIDES}


def versions() -> dict[str, str | None]:
    """What makes the numbers; None for a package that goes by another name here (tensorflow-cpu)."""
    packages = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_revision() -> str | None:
    """The git commit that this edgeall runs from, ``-dirty`` with changes on top; None outside a checkout of it."""
    here = Path(__file__).resolve().parent.parent
    try:
        top, commit = _git(here, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top) != here:  # installed into somebody else's repository
            return None
        return commit + ("-dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout


def image_folder(data: Path) -> Path:
    """What image paths are relative to: the data folder, or the manifest's."""
    return data if data.is_dir() else data.parent


def data_root(facts: dict[str, Any]) -> Path:
    """Where the run read its images: the folder or the manifest."""
    return Path(facts["data"]["root"])


def complete_run(
    out: Path,
    run: dict[str, Any],
    model: Any,
    split: Split,
    sides: dict[str, Images],
    history: list[dict[str, Any]],
    started: float,
    evaluated: Sequence[str] = SIDES,
) -> dict[str, Any]:
    """Evaluate a trained model on every side and write all that makes ``out`` a complete run, ``run.json`` last.

    Args:
        out: the run folder; ``split.json`` is there already.
        run: settings, unit, data, model, timing, replicas, versions, source_revision and device; what can be worked
            out here is added.
        model: float32, as it is to be saved.
        split: of the run.
        sides: from `edgeall.train.runs.load_sides`.
        history: every epoch of every stage, see `edgeall.train.fit.Row`.
        started: ``time.perf_counter()`` at the start, for the total time.
        evaluated: the sides to evaluate on. Without the test side there is no report: `edgeall search` looks at that
            side for the one run it chose.

    Returns:
        What was written to ``run.json``.
    """
    settings = run["settings"]
    probabilities = {side: model.predict(plain(sides[side], 64), verbose=0) for side in evaluated}
    positive = positive_of(settings["positive"], split.labels)
    run = {
        "schema": SCHEMA,
        "edgeall_version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "labels": list(split.labels),
        "positive_labels": list(positive),
        "split": {
            "sha256": split.sha256,
            "level": split.level,
            "fold": settings["fold"],
            "embargo": split.embargo,
            "left_out": split.left_out,
            **{side: len(sides[side]) for side in SIDES},
        },
        "metrics": {
            side: metrics_of(
                split.side(side), split.labels, probabilities[side], positive, side, split.level, settings["seed"]
            )
            for side in evaluated
        },
        **run,
        "timing": {**run["timing"], "total_s": time.perf_counter() - started},
    }
    write_history(out / "history.csv", history)
    write_predictions(out / "predictions.csv", split, sides, probabilities)
    with files.replacing(out / "model.keras") as temporary:
        model.save(temporary)
    if "test" in evaluated:
        write_report(out, run)
    files.sync_tree(out)  # what run.json vouches for reaches the disk before it
    write_json(out / "run.json", run)
    return run


def positive_of(positive: str | None, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that count as positive: those named, comma-separated, or what their names tell.

    Raises:
        UsageError: a name that is no label.
    """
    if positive is None:
        return positive_labels(labels)
    chosen = tuple(part.strip() for part in positive.split(","))
    unknown = [label for label in chosen if label not in labels]
    if unknown:
        raise UsageError(f"--positive {unknown[0]}: no such class", hint=f"there are: {', '.join(labels)}")
    return chosen


def write_json(path: Path, value: Any) -> None:
    """Atomically, indented."""
    files.write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_predictions(
    path: Path, split: Split, sides: dict[str, Images], probabilities: dict[str, NDArray[np.float32]]
) -> None:
    """One row per image of every evaluated side: path, side, label, predicted, and the probability of each class."""
    # A file name on disk need not be valid Unicode: its bytes are written as they are.
    with (
        files.replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["path", "side", "label", "predicted", *(f"p_{label}" for label in split.labels)])
        for side in probabilities:
            for entry, row in zip(split.side(side), probabilities[side], strict=True):
                predicted = split.labels[int(row.argmax())]
                writer.writerow([entry.path, side, entry.label, predicted, *(f"{value:.9g}" for value in row)])


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One row per epoch of every stage, see `edgeall.train.fit.Row`."""
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
