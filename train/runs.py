"""Run folders: reads and writes the files of a training run."""

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
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..console.progress import Progress
from ..edge_runtime.bundle import FROM_KERAS, is_keras
from ..edge_runtime.errors import DISK_FULL, DataError, UsageError
from ..edge_runtime.preprocess import InputSpec
from ..edge_runtime.tools import atomic
from ..edge_runtime.tools.device import Device, describe_device
from ..models import registry
from ..models.joined import join
from ..models.narrow import with_channels
from ..models.registry import BuildArgs
from .batches import Images
from .data import cache
from .data.dataset import positive_labels
from .data.split import Split, load_split
from .data.subsets import SUBSETS
from .run_info import SCHEMA, MemberNetwork, RunInfo, SplitInfo, read_run
from .run_settings import RunSettings
from .tasks import registry as tasks
from .tasks.registry import Trained

IMPORTED = "imported"
"""``settings.model`` of a run that `edgeall import` made. Its network is described in its own ``model.keras``."""


def load_run(run: Path) -> RunInfo:
    """The ``run.json`` of a complete run.

    Raises:
        DataError: the run is not complete, or ``run`` is something else, for example a model file. The hint says what
            to do.
    """
    check_is_run(run)
    if not (run / "run.json").exists():
        started = (run / "settings.json").exists()
        hint = "the training is not finished: repeat its `edgeall train` command" if started else "check the path"
        raise DataError(f"{run}: not a complete run (no run.json)", hint=hint)
    facts = read_json(run / "run.json", "repeat the command that made the run")
    if facts.get("schema") != SCHEMA:
        raise DataError(f"{run}/run.json: schema {facts.get('schema')} is not {SCHEMA}", hint="train again")
    return read_run(facts)


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """A JSON object written by `write_json`. Raises DataError, with ``hint``, if it is damaged or missing."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
        fault = "not an object"
    except FileNotFoundError:
        raise DataError(f"{path}: missing", hint=hint) from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})", hint="check its owner and mode") from error
    except (ValueError, RecursionError) as error:
        fault = str(error)
    raise DataError(f"{path}: {'empty' if not path.stat().st_size else f'damaged ({fault})'}", hint=hint)


def is_whole(run: Path) -> bool:
    """Whether a run is complete: ``run.json``, which is written last, exists and can be read."""
    return _holds_object(run / "run.json")


def _holds_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return False


def is_damaged(file: Path) -> bool:
    """Whether a JSON file exists and cannot be read as an object."""
    return file.exists() and not _holds_object(file)


def start_over(out: Path) -> str:
    """The hint for a folder that cannot be resumed."""
    return f"remove {out} and repeat the command, or choose another --out"


def read_history(run: Path) -> list[dict[str, str]]:
    """The rows of a run's ``history.csv``. Raises DataError if it is missing or damaged."""
    path = run / "history.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
        known = {"stage", "epoch"} <= set(reader.fieldnames or ())  # an imported run has no epoch
        if known and all(row.get("stage") and row.get("epoch") for row in rows):
            return rows
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        pass
    raise DataError(f"{path}: missing or damaged", hint="train again")


def test_probabilities(run: Path, split: Split) -> NDArray[np.float32]:
    """Probabilities of the run's Keras model on its test subset, ``(images, labels)``, from ``predictions.csv``.

    Raises DataError if the file is missing or damaged.
    """
    path = run / "predictions.csv"
    wanted = [entry.path for entry in split.subset("test")]
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = {row["path"]: row for row in csv.DictReader(file) if row["side"] == "test"}
        values = [[float(rows[image][f"p_{label}"]) for label in split.labels] for image in wanted]
    except (FileNotFoundError, KeyError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: missing or damaged ({error!r})", hint="train again") from error
    return np.array(values, np.float32)


def check_is_run(run: Path) -> None:
    """Raise DataError for a file or a Keras SavedModel. Other folders are not checked."""
    keras = is_keras(run)
    if run.is_dir() and ((run / "run.json").exists() or not keras):
        return
    if not run.exists():
        raise DataError(f"{run}: not a complete run (no such folder)", hint="check the path")
    hint = "give the folder made by `edgeall train --out`"
    if (run.parent / "run.json").exists():
        hint = f"give its folder: {run.parent}"
    elif keras:
        hint = FROM_KERAS
    elif run.suffix == ".tflite":
        hint = (
            "give a folder made by `edgeall train`; `edgeall run`, `evaluate` and `bench` take a .tflite file, and "
            "`edgeall pack --scheme ptq-int8` quantizes one"
        )
    what = "a Keras model" if keras else "a model file" if run.suffix == ".tflite" else "a file"
    raise DataError(f"{run}: {what}, not a run folder made by `edgeall train`", hint=hint)


def run_digest(run: Path) -> str:
    """sha256 of ``run.json``. It identifies the training and is stored in every model made from it."""
    return hashlib.sha256((run / "run.json").read_bytes()).hexdigest()


def load_model(run: Path, facts: RunInfo) -> Any:
    """The float32 Keras model of a run, rebuilt flat from its settings. Raises DataError if it is damaged."""
    if _has_imported(facts):
        from ..models.keras_files.build import build
        from ..models.keras_files.flatten import read_network

        return build(read_network(run / "model.keras"))
    model = _untrained(facts, len(facts.labels))
    _load_weights(model, run / "model.keras")
    return model


def load_backbone(run: Path, facts: RunInfo) -> Any:
    """The backbone of a run, from the input to the pooled features, with its trained weights.

    Not for imported, joined or pruned networks. Raises DataError if ``model.keras`` is damaged.
    """
    settings = facts.settings.with_(weights="none")
    backbone = registry.get(settings.model).build(build_args(settings))
    _load_weights(tasks.of_run(facts).add_head(backbone, settings, len(facts.labels)), run / "model.keras")
    return backbone


def _load_weights(model: Any, path: Path) -> None:
    """Load the weights of a ``model.keras``. Raises DataError if it is missing, damaged or of another network."""
    # Keras's load_model seeks inside the archive, and every seek backwards reads it again from the start.
    try:
        with ZipFile(path) as archive:
            weights = archive.read("model.weights.h5")
    except (FileNotFoundError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise _damaged(path, error) from error
    with atomic.scratch() as folder:
        extracted = folder / "model.weights.h5"
        extracted.write_bytes(weights)
        try:
            model.load_weights(extracted)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, *DISK_FULL):
                raise  # not a fault of the file
            raise _damaged(path, error) from error


def _has_imported(network: RunInfo | MemberNetwork) -> bool:
    """Whether a network, or one of an ensemble, is not one of the registry."""
    return network.model.imported is not None or any(map(_has_imported, network.model.members or ()))


def _untrained(network: RunInfo | MemberNetwork, classes: int) -> Any:
    """The network of a run without its weights."""
    if network.model.members:  # a run made by `edgeall ensemble`
        model = join([_untrained(member, classes) for member in network.model.members], classes)
    else:
        settings = network.settings.with_(weights="none")
        backbone = registry.get(settings.model).build(build_args(settings))
        model = tasks.of_run(network).add_head(backbone, settings, classes)
    if network.model.channels:  # a run made by `edgeall prune --macs`
        model = with_channels(model, network.model.channels)
    return model


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path}: missing or damaged ({reason})", hint="train again")


def load_own_split(run: Path, facts: RunInfo) -> Split:
    """The split of a run. Raises DataError if ``split.json`` is not the split that the run was trained on."""
    split = load_split(run / "split.json")
    if split.sha256 != facts.split.sha256:
        raise DataError(f"{run}/split.json: not the split this run was trained on", hint="restore it, or train again")
    return split


def build_args(settings: RunSettings) -> BuildArgs:
    """The arguments with which the registry builds the run's backbone."""
    size = settings.input_size
    return BuildArgs(height=size, width=size, alpha=settings.alpha, weights=settings.weights)


def input_spec(settings: RunSettings) -> InputSpec:
    """The input contract of the run's model."""
    size = settings.input_size
    if settings.model == IMPORTED:  # its normalization is inside, in front of the common one
        return InputSpec(height=size, width=size)
    spec = registry.get(settings.model)
    return InputSpec(height=size, width=size, mean=spec.mean, std=spec.std)


def load_subsets(split: Split, root: Path, spec: InputSpec, cache_dir: Path, progress: Progress) -> dict[str, Images]:
    """The preprocessed images of every subset, in the order of the split's entries."""
    pixels = cache.pixels(image_folder(root), split.entries, spec, cache_dir, progress)
    index = {label: number for number, label in enumerate(split.labels)}
    labels = np.array([index[entry.label] for entry in split.entries], np.int64)
    subsets = np.array([entry.side for entry in split.entries])
    rows = {name: np.flatnonzero(subsets == name) for name in SUBSETS}
    return {name: Images(pixels, rows[name], labels[rows[name]], spec) for name in SUBSETS}


@dataclass(frozen=True)
class Provenance:
    """What a result was made with."""

    versions: dict[str, str | None]
    source_revision: str | None
    device: Device


def provenance() -> Provenance:
    """Versions, source and machine of this process."""
    return Provenance(versions(), source_revision(), describe_device())


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that affect results; None if one has another name (tensorflow-cpu)."""
    packages = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_revision() -> str | None:
    """The git commit of this checkout of edgeall, with ``-dirty`` if it was changed; None without a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        top, commit = _git(here, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top) != here:  # installed inside another repository
            return None
        return commit + ("-dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout


def image_folder(data: Path) -> Path:
    """The folder that image paths are relative to: the data folder, or the folder of the manifest."""
    return data if data.is_dir() else data.parent


def data_root(facts: RunInfo) -> Path:
    """The data folder or manifest of the run."""
    return Path(facts.data.root)


def complete_run(
    out: Path,
    run: RunInfo,
    trained: Trained,
    started: float,
    progress: Progress,
    evaluated: Sequence[str] = SUBSETS,
) -> RunInfo:
    """Evaluate a trained model on its subsets and write the files of a complete run, ``run.json`` last.

    Args:
        out: the run folder, with ``split.json``.
        run: everything but what this function fills in.
        trained: the network and what it was made from.
        started: ``time.perf_counter()`` at the start, for the total time.
        progress: of the evaluation.
        evaluated: the subsets to evaluate. Without test there is no report (`edgeall search`).
    """
    settings, task = run.settings, tasks.of_run(run)
    model, split, images = trained.model, trained.split, trained.images
    labels = task.labels(split)
    run = replace(
        run,
        edgeall_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        task=task.name,
        labels=list(labels),
        positive_labels=list(positive_of(settings.positive, labels)),
        split=SplitInfo(
            sha256=split.sha256,
            level=split.level,
            fold=settings.fold,
            embargo=split.embargo,
            left_out=split.left_out,
            **{name: len(images[name]) for name in SUBSETS},
        ),
        metrics=task.assess(out, trained, settings, evaluated, progress),
        timing={**run.timing, "total_s": time.perf_counter() - started},
    )
    write_history(out / "history.csv", trained.history)
    with atomic.atomic_write(out / "model.keras") as temporary:
        model.save(temporary)
    if "test" in evaluated:
        task.report(out, run, trained, progress)
    atomic.sync_tree(out)  # before run.json, which means that all files are complete
    write_json(out / "run.json", run.to_json())
    return run


def positive_of(positive: str | None, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The positive labels: those named, comma-separated, or by default those of `positive_labels`.

    Raises:
        UsageError: an unknown label.
    """
    if positive is None:
        return positive_labels(labels)
    chosen = tuple(part.strip() for part in positive.split(","))
    unknown = [label for label in chosen if label not in labels]
    if unknown:
        raise UsageError(f"--positive {unknown[0]}: no such class", hint=f"there are: {', '.join(labels)}")
    return chosen


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    atomic.write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One row per epoch of every stage, see `edgeall.train.stage.Row`."""
    with atomic.atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(history[0]) if history else ["stage", "epoch"])
        writer.writeheader()
        writer.writerows(history)
