"""A trained run to one with fewer weights: zeros anywhere, or whole channels gone; fine-tuned, a run like any other."""

from __future__ import annotations

import io
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..console.progress import Progress
from ..console.tables import percent, record, table
from ..edge_runtime.classifier import Classifier
from ..edge_runtime.device import describe_device
from ..edge_runtime.errors import UsageError
from ..edge_runtime.files import held, replacing
from ..edge_runtime.images import refuse_inside
from ..edge_runtime.preprocess import InputSpec
from ..models.keras_compat import keras, tf
from ..models.macs import macs as macs_of
from ..models.narrow import groups, narrow
from ..train.batches import Images, plain, shuffled
from ..train.data import cache
from ..train.data.split import SIDES, check_split
from ..train.fit import AfterStep, Row, Stage, fit, keep_statistics_current
from ..train.run import check_out, claim
from ..train.runs import (
    complete_run,
    data_root,
    input_spec,
    load_model,
    load_own_split,
    load_run,
    load_sides,
    read_history,
    run_digest,
    source_revision,
    versions,
)
from .experiments.latency import interleaved
from .pruning.channels import Budget, importance
from .pruning.sparsity import Masks, prunable, sparsity_of
from .quantization.convert import compressed_bytes, convert
from .quantization.fold import fold_batch_normalization

EPOCHS = {"macs": 16, "sparsity": 10}
"""A network that lost channels has more to learn again, and learns it faster."""
LEARNING_RATE = 1e-3
RANKING_IMAGES = 320
RANKING_BATCH = 8
TIMED_S = 2.0
FASTER = 1.05
"""A gain below this is called none: a repeated measurement differs by as much."""
SHOWN = 40
"""Groups of channels that `prune_text` lists at most."""


def prune(
    run: Path,
    out: Path,
    *,
    sparsity: float | None = None,
    macs: float | None = None,
    epochs: int | None = None,
    learning_rate: float = LEARNING_RATE,
    data: Path | None = None,
    force: bool = False,
    cache_dir: Path | None = None,
    progress: Progress,
    on_model: Callable[[Any], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    evaluated: Sequence[str] = SIDES,
) -> dict[str, Any]:
    """Prune a run by magnitude (``sparsity``) or by structure (``macs``) and train what is left.

    The unpruned network is the teacher: the labels are halfway between its probabilities and the true ones.

    Args:
        run: a complete run; it may have been pruned before.
        out: the new run's folder; the same command goes on with an unfinished one.
        sparsity: share of zeros wanted in the kernels of `edgeall.optimize.pruning.sparsity.prunable` layers.
        macs: share of the run's multiply-accumulates that may be left.
        epochs: of the training afterwards (``macs``) or while and after weights are zeroed (``sparsity``); by default
            `EPOCHS`.
        learning_rate: its peak.
        data: where the images are now, if not where the run read them.
        force: overwrite another run in ``out``.
        on_model: called with the network that is to be trained; may raise.
        on_epoch: see `edgeall.train.fit.fit`.
        evaluated: see `complete_run`.

    Returns:
        What was written to ``run.json``: that of a training, and ``pruned``:

        - kind: ``sparsity`` or ``macs``; asked; found: measured on the result, 0..1;
        - from, run_sha256: the parent run's folder and `run_digest`; parent_accuracy of each side;
        - parameters, macs and the same with ``parent_`` before them;
        - channels, of kind ``macs``: by the name of the layer that makes them ``[before, after]``;
        - size: bytes as a float32 flatbuffer, and gzipped; latency: milliseconds of one image on one thread, timed
          in turn with the parent; verdict: what that comes to, in sentences.

    Raises:
        UsageError: not exactly one of sparsity and macs, one that can't be reached, or a folder that holds
            something else, lies in the data, or is in use.
        DataError: the run is not complete, or the data is not what it was trained on.
    """
    started = time.perf_counter()
    kind, _ = _asked(sparsity, macs, learning_rate)
    epochs = EPOCHS[kind] if epochs is None else epochs
    if epochs < 1:
        raise UsageError(f"--epochs {epochs}: at least 1")
    parent = load_run(run)
    if run.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out}: is or holds the run that is pruned", hint="choose another --out")
    settings = {
        **parent["settings"],
        "sparsity": sparsity,
        "macs": macs,
        "epochs_prune": epochs,
        "lr_prune": learning_rate,
        "pruned_run_sha256": run_digest(run),
    }
    root = data or data_root(parent)
    refuse_inside(root, out)
    cache_dir = cache.ready(cache_dir)
    with held(out, "prune"):
        return _prune(
            run, out, parent, settings, root, force, cache_dir, progress, on_model, on_epoch, evaluated, started
        )


def _prune(
    run: Path,
    out: Path,
    parent: dict[str, Any],
    settings: dict[str, Any],
    root: Path,
    force: bool,
    cache_dir: Path,
    progress: Progress,
    on_model: Callable[[Any], None] | None,
    on_epoch: Callable[[Row], None] | None,
    evaluated: Sequence[str],
    started: float,
) -> dict[str, Any]:
    """`prune`, once its settings are known to be meant and the folder is held."""
    kind = "sparsity" if settings["sparsity"] is not None else "macs"
    asked = settings[kind]
    resuming = check_out(out, settings, force)
    teacher = load_model(run, parent)
    if kind == "sparsity":
        _check_sparsity(teacher, asked, run)
    else:
        Budget(teacher).check(asked)
        if parent.get("pruned", {}).get("kind") == "sparsity":
            progress.note(f"{run}: its zeros are filled in again; prune by --macs first, then by --sparsity")
    split = load_own_split(run, parent)
    check_split(split, root)
    facts = {"unit": parent["unit"], "data": {**parent["data"], "root": str(root.resolve())}}
    provenance = {"versions": versions(), "source_revision": source_revision(), "device": describe_device()}
    spec = input_spec(settings)
    sides = load_sides(split, root, spec, cache_dir, progress)
    if not resuming:
        claim(out, settings, split, facts)
    prepared = time.perf_counter()

    keras.utils.set_random_seed(settings["seed"])
    if kind == "macs":
        model = narrow(teacher, _kept_channels(teacher, asked, sides["train"], settings, out / "checkpoints", progress))
    else:
        model = narrow(teacher, {})
    if on_model:
        on_model(model)
    ranked = time.perf_counter()
    history = _train(model, teacher, kind, asked, sides, settings, out, progress, on_epoch)
    trained = time.perf_counter()
    pruned = {
        "kind": kind,
        "asked": asked,
        "found": sparsity_of(model) if kind == "sparsity" else macs_of(model) / macs_of(teacher),
        "from": str(run.resolve()),
        "run_sha256": settings["pruned_run_sha256"],
        "parent_accuracy": {side: metrics["accuracy"] for side, metrics in parent["metrics"].items()},
        **_compared(teacher, model, kind),
        **_measured(teacher, model, spec, split.labels, sides["validation"], progress),
    }
    pruned["verdict"] = verdict(pruned)
    channels = {name: after for name, (_, after) in pruned.get("channels", {}).items()}
    stage = history[-1]["stage"]
    complete = {
        "settings": settings,
        **facts,
        "model": {**parent["model"], **{key: pruned[key] for key in ("parameters", "macs")}},
        "pruned": pruned,
        "timing": {
            "prepare_s": prepared - started,
            "rank_s": ranked - prepared,
            f"{stage}_s": sum(row["seconds"] for row in history),
            "measure_s": time.perf_counter() - trained,
            "resumed": resuming,
            f"{stage}_images_per_s": float(np.median([row["images_per_s"] for row in history])),
        },
        "replicas": 1,
        **provenance,
    }
    if channels:  # else the parent's, if it has any
        complete["model"]["channels"] = channels
    complete = complete_run(out, complete, model, split, sides, [*read_history(run), *history], started, evaluated)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return complete


def verdict(pruned: Mapping[str, Any]) -> list[str]:
    """What pruning bought, in plain sentences made of ``pruned``'s figures."""
    before, after = pruned["latency"]["parent_float32_p50_ms"], pruned["latency"]["float32_p50_ms"]
    speed = f"{before / after:.2f} times as fast" if before / after >= FASTER else "no faster"
    said = [f"{_TITLES[pruned['kind']]}: {speed} ({before:.2f} ms before, {after:.2f} ms after, float32, one thread)"]
    size = pruned["size"]
    for name, key in (("file", "float32_bytes"), ("compressed file", "float32_gzip_bytes")):
        whole, left = size[f"parent_{key}"], size[key]
        if whole / left >= FASTER:
            said.append(f"{name}: {left / 1e6:.2f} of {whole / 1e6:.2f} MB")
        else:
            said.append(f"{name}: no smaller ({whole / 1e6:.2f} MB before, {left / 1e6:.2f} MB after)")
    return said


def prune_text(run: Mapping[str, Any]) -> str:
    """What `prune` found, for people."""
    pruned = run["pruned"]
    facts = {
        "run": pruned["from"],
        pruned["kind"]: f"{percent(pruned['found'])} found, {percent(pruned['asked'])} asked for",
        "parameters": f"{pruned['parameters']:,} of {pruned['parent_parameters']:,}",
        "MACs": f"{pruned['macs']:,} of {pruned['parent_macs']:,}",
        **{
            f"{side} accuracy": f"{percent(metrics['accuracy'])}, before {percent(pruned['parent_accuracy'].get(side))}"
            for side, metrics in run["metrics"].items()
        },
    }
    parts = [record(facts), "\n".join(pruned["verdict"])]
    changed = [[name, *counts] for name, counts in pruned.get("channels", {}).items()]
    if changed:
        more = [f"and {len(changed) - SHOWN} more (--json has all)"] if len(changed) > SHOWN else []
        parts.append("\n".join([table(["channels of", "before", "after"], changed[:SHOWN]), *more]))
    return "\n\n".join(parts)


_TITLES = {"sparsity": "unstructured sparsity", "macs": "fewer channels"}


def _asked(sparsity: float | None, macs: float | None, learning_rate: float) -> tuple[str, float]:
    """What kind of pruning, and how much."""
    given = {kind: value for kind, value in (("sparsity", sparsity), ("macs", macs)) if value is not None}
    if len(given) != 1:
        said = "either --sparsity or --macs, not both" if given else "how much to prune: --sparsity or --macs"
        raise UsageError(f"give {said}", hint="--sparsity 0.75 for zeros, --macs 0.5 for a smaller, faster network")
    ((kind, asked),) = given.items()
    if not 0 < asked < 1:  # refuses NaN too
        raise UsageError(f"--{kind} {asked:g} is no share", hint="give a number above 0 and below 1")
    if not 0 < learning_rate <= 1:
        raise UsageError(f"--learning-rate {learning_rate:g} is no learning rate", hint="give a number above 0")
    return kind, asked


def _check_sparsity(model: Any, asked: float, run: Path) -> None:
    if not prunable(model):
        raise UsageError(f"{run}: {model.name} has no layer to prune by --sparsity", hint="try --macs")
    found = sparsity_of(model)
    if found > asked:
        raise UsageError(f"{run}: {percent(found)} of its weights are zero already", hint="ask for more than that")


def _kept_channels(
    teacher: Any, share: float, train_side: Images, settings: Mapping[str, Any], folder: Path, progress: Progress
) -> dict[str, NDArray[np.int64]]:
    """The channels to keep, by group; worked out once per run."""
    path = folder / "channels.npz"
    kept = _ranked(path)
    if kept is None:
        progress.note("ranking channels")
        steps = RANKING_IMAGES // RANKING_BATCH
        images = _augmented(train_side, settings, 0, RANKING_BATCH, None).take(steps).map(lambda *batch: batch[0])
        scores = importance(teacher, lambda: images, np.random.default_rng(settings["seed"]))
        kept = {**Budget(teacher).allocate(scores, share)}
        arrays: dict[str, Any] = dict(kept)
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)
    return kept


def _ranked(path: Path) -> dict[str, NDArray[np.int64]] | None:
    """What an earlier call chose; None where there is nothing, or nothing that can be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            return dict(kept)
    except (FileNotFoundError, ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError):
        return None


def _train(
    model: Any,
    teacher: Any,
    kind: str,
    asked: float,
    sides: dict[str, Images],
    settings: Mapping[str, Any],
    out: Path,
    progress: Progress,
    on_epoch: Callable[[Row], None] | None,
) -> list[Row]:
    """Train the pruned network in place; survives a kill."""
    train_side, classes = sides["train"], model.output_shape[-1]
    epochs, batch_size = settings["epochs_prune"], settings["batch_size"]
    name = "prune" if kind == "sparsity" else "recover"
    stage = Stage(name, epochs, settings["lr_prune"], epochs, len(train_side), batch_size, soft=True)
    after_step: AfterStep | None = None
    if kind == "sparsity":
        masks = Masks(model, asked, epochs * stage.steps)
        after_step = masks.after_step
        stage = replace(stage, settle=-(-masks.settled // stage.steps))
    keep_statistics_current(model, stage.steps)
    weights = train_side.class_weights(classes) if settings["class_weights"] else None

    def batches(epoch: int) -> Any:
        return _augmented(train_side, settings, epoch, batch_size, weights).map(
            lambda images, labels, weight: (
                images,
                (teacher(images, training=False) + tf.one_hot(labels, classes)) / 2,
                weight,
            )
        )

    keras.utils.set_random_seed(settings["seed"])
    return fit(
        model,
        stage,
        batches,
        plain(sides["validation"], 64).map(lambda images, labels: (images, tf.one_hot(labels, classes))),
        out / "checkpoints" / f"{name}.npz",
        progress,
        tensorboard=out / "tensorboard" / name,
        after_step=after_step,
        on_epoch=on_epoch,
    )


def _augmented(
    side: Images, settings: Mapping[str, Any], epoch: int, batch_size: int, weights: NDArray[np.float32] | None
) -> Any:
    return shuffled(
        side,
        batch_size,
        augment=settings["augment"],
        seed=settings["seed"] + 2,  # neither the views of the training nor those of quantization-aware training
        epoch=epoch,
        class_weights=weights,
    )


def _compared(teacher: Any, model: Any, kind: str) -> dict[str, Any]:
    """Parameters, MACs and channels of both networks."""
    facts: dict[str, Any] = {
        "parameters": int(model.count_params()),
        "parent_parameters": int(teacher.count_params()),
        "macs": macs_of(model),
        "parent_macs": macs_of(teacher),
    }
    if kind == "macs":
        after = {group.name: group.channels for group in groups(model)}
        facts["channels"] = {group.name: [group.channels, after[group.name]] for group in groups(teacher)}
    return facts


def _measured(
    teacher: Any, model: Any, spec: InputSpec, labels: tuple[str, ...], side: Images, progress: Progress
) -> dict[str, Any]:
    """Size and latency of both networks as float32 flatbuffers."""
    progress.note("measuring size and latency")
    made = {
        "parent_float32": convert(fold_batch_normalization(teacher), "float32", spec),
        "float32": convert(fold_batch_normalization(model), "float32", spec),
    }
    image = side.pixels[side.rows[0]]
    opened = {name: (Classifier.from_flatbuffer(made[name], labels, spec, name=name), image) for name in made}
    times = interleaved(opened, TIMED_S, progress)["models"]
    return {
        "size": {
            **{f"{name}_bytes": len(flatbuffer) for name, flatbuffer in made.items()},
            **{f"{name}_gzip_bytes": compressed_bytes(flatbuffer) for name, flatbuffer in made.items()},
        },
        "latency": {f"{name}_p50_ms": times[name]["p50_ms"] for name in made},
    }
