"""`edgeall quantize`, `prune`, `compare`, `search`, `models`, `sign` and `demo`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..edge_runtime.errors import UsageError
from ..optimize.experiments.search_config import SearchSettings
from ..optimize.pruning.config import PruneConfig
from ..optimize.quantization.config import QuantizeConfig
from ..train.config import LEVELS, TrainSettings
from .options import (
    CACHE_DIR,
    EMBARGO,
    FILE,
    GRID,
    JSON,
    NEW_SPLIT,
    POSITIVE,
    PROTOCOLS,
    SEED,
    SHARE,
    FlagOrJson,
    command,
    listed,
    numbers,
    option,
)
from .output import note, note_research_use, note_synthetic, print_result

_quantize = partial(option, QuantizeConfig)


@command("quantize")
@click.argument("run", metavar="RUN", type=FILE)
@_quantize("scheme", "Conversion scheme.", default="ptq-int8")
@_quantize("out", "Packed model to write.")
@_quantize(
    "max_drop",
    "Allowed drop of test accuracy in percentage points; a larger drop ends with status 3.",
    type=click.FloatRange(0),
)
@_quantize("epochs", "Epochs of quantization-aware training (qat-int8).", type=click.IntRange(1))
@_quantize("learning_rate", "Peak learning rate of qat-int8.")
@_quantize("representative", "Number of PTQ calibration images, from the training subset.", type=click.IntRange(1))
@_quantize("data", "Current location of the images.  [default: where the run read them]")
@_quantize("golden", "Golden images in the file: from the test subset, or synthetic.")
@_quantize("clusters", "Weight clustering: at most N distinct weights per layer (qat-int8).", metavar="N")
@_quantize(
    "layer_report",
    "Report the quantization error of each layer, worst first (int8 schemes). With a file: also write it there, for "
    "Model Explorer.",
    type=FlagOrJson(),
    metavar="[FILE.json]",
    show_default=False,
)
@click.option(
    "--float-layers",
    metavar="LAYERS",
    help="Layers to leave in float, comma-separated (int8 schemes).",
)
@_quantize(
    "auto_float",
    "Where --max-drop is not met, leave as few layers as it takes in float, the worst first (int8 schemes).",
)
@click.option(
    "--robustness",
    is_flag=True,
    help="Also measure accuracy under changes of the microscope, and store it in the file.",
)
@_quantize(
    "target_sensitivity", "Review threshold for this minimum sensitivity; images sent to review count as detected."
)
@_quantize(
    "review_budget", "Largest share of images sent to review; 0: none.  [default: 0.05, or by --target-sensitivity]"
)
@_quantize("explain", "Include the last feature map, for `run --explain`.")
@CACHE_DIR
@_quantize("force", "Overwrite an existing file.")
@JSON
def quantize(run: Path, json: bool, float_layers: str | None, robustness: bool, **settings: Any) -> None:
    """Convert a run, verify the result on the test subset, and pack it into one file.

    A run that was pruned by --sparsity keeps its zeros.
    """
    from ..console.progress import Progress
    from ..optimize.quantization.layer_error import layer_error_text
    from ..optimize.quantization.summary import quantize_text
    from ..optimize.quantize import quantize as quantize_run

    config = QuantizeConfig(run, **settings, robust=robustness, float_layers=listed(float_layers))
    result = quantize_run(config, Progress())
    print_result(result, json, lambda: quantize_text(result))
    if result.layers is not None and not json:
        print("\n" + layer_error_text(result.layers))
    if result.robustness is not None and not json:
        from ..train.evaluation.robustness import robustness_text

        print("\n" + robustness_text(result.robustness))
    note_synthetic(result.synthetic)
    note_research_use(json)


_prune = partial(option, PruneConfig)


@command("prune")
@click.argument("run", metavar="RUN", type=FILE)
@_prune("out", "Run folder to create. The same command resumes an interrupted run.")
@_prune("sparsity", "Set this share of the weights to zero, smallest first: a smaller zip file.")
@_prune("macs", "Remove channels until this share of the MACs is left: a faster network.")
@_prune(
    "epochs",
    "Epochs of training, with the unpruned run as the teacher.  [default: 16 with --macs, 10 with --sparsity]",
    type=click.IntRange(1),
)
@_prune("learning_rate", "Peak learning rate.")
@_prune("data", "Current location of the images.  [default: where the run read them]")
@CACHE_DIR
@_prune("force", "Overwrite a complete run, or a run with other settings.")
@JSON
def prune(run: Path, json: bool, **settings: Any) -> None:
    """Prune a run by --sparsity or by --macs, and fine-tune it. The result is a run folder."""
    from ..console.progress import Progress
    from ..optimize.prune import prune as prune_run
    from ..optimize.pruning.summary import prune_text

    pruned = prune_run(PruneConfig(run, **settings), Progress())
    print_result(pruned, json, lambda: prune_text(pruned))
    note_synthetic(pruned.data.synthetic)
    note_research_use(json)


@command("ensemble")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=FILE)
@click.option("--out", type=FILE, required=True, help="Run folder to create.")
@click.option("--data", type=FILE, help="Current location of the images.  [default: where the first run read them]")
@CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite a complete run, or a run with other settings.")
@JSON
def ensemble(runs: tuple[Path, ...], json: bool, **settings: Any) -> None:
    """Join runs into one network whose logits are the mean of theirs. The result is a run folder."""
    from ..console.progress import Progress
    from ..optimize.ensemble import EnsembleConfig, ensemble_text
    from ..optimize.ensemble import ensemble as join_runs

    result = join_runs(EnsembleConfig(runs, **settings), Progress())
    print_result(result, json, lambda: ensemble_text(result))
    note_synthetic(result.run.data.synthetic)
    note_research_use(json)


_TRAINING = (
    *("batch_size", "lr_head", "lr_finetune", "dropout", "dense", "augment", "optimizer", "schedule"),
    *("weight_decay", "warmup", "patience"),
)
"""Settings of `train` that `compare` passes on where they are given."""


def _as_in_train(field: str, **words: Any) -> Callable[[Any], Any]:
    named = field.replace("_", "-")
    return option(
        TrainSettings,
        field,
        f"As `train --{named}`.  [default: that of the protocol, else of train]",
        default=None,
        **words,
    )


def _given_training(settings: dict[str, Any], runs: tuple[Path, ...], protocol: str | None) -> dict[str, Any]:
    """The training settings that were given. Raises UsageError where none can be chosen."""
    given = {name: settings[name] for name in _TRAINING if settings[name] is not None}
    if given and (runs or protocol == GRID):
        why = "RUNs are trained already" if runs else f"{GRID} has its own settings"
        raise UsageError(why, hint=f"remove --{next(iter(given)).replace('_', '-')}")
    return given


def _run_grid(settings: dict[str, Any], json: bool) -> int:
    """The grid of a study instead of a comparison; returns the exit status."""
    from ..console.progress import Progress
    from ..optimize.experiments.grid import run_grid
    from ..optimize.experiments.grid_config import GRID_48, GridConfig
    from ..optimize.experiments.grid_result import grid_text

    for name in ("split_by", "embargo"):
        if settings[name] is not None:
            raise UsageError(f"{GRID} has its own splits", hint=f"remove --{name.replace('_', '-')}")
    taken = ("data", "out", "cache_dir", "weights", "frozen", "storage", "study", "input_size", "seed")
    result = run_grid(GridConfig(grid=GRID_48, **{name: settings[name] for name in taken}), Progress())
    print_result(result, json, lambda: grid_text(result))
    note_synthetic(result.synthetic)
    note_research_use(json)
    return 1 if result.failed else 0


@command("compare")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=FILE)
@click.option(
    "--out", type=FILE, required=True, help="Folder to create, with compare.html. The same command resumes it."
)
@click.option("--data", type=FILE, help="Folder or manifest to train on. With RUNs: current location of their images.")
@click.option(
    "--models", metavar="MODELS", help="Backbones to train, comma-separated, as in mobilenet_v2:0.35,resnet50."
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="Split protocol of a published study; grid-48 is a whole grid of 48 runs.",
)
@click.option("--schemes", default="float32,ptq-int8,qat-int8", help="Conversion schemes, comma-separated.")
@click.option("--weights", default="imagenet", help="imagenet, none, or a folder of MODEL_no_top.h5 files.")
@click.option("--split-by", type=click.Choice(LEVELS), help="Split level.  [default: the protocol's]")
@EMBARGO
@click.option("--epochs-head", type=click.IntRange(0), help="Epochs of the head stage, as in train.")
@click.option("--epochs-finetune", type=click.IntRange(0), help="Epochs of the fine-tuning stage, as in train.")
@_as_in_train("batch_size", type=click.IntRange(1))
@_as_in_train("lr_head")
@_as_in_train("lr_finetune")
@_as_in_train("dropout", type=SHARE)
@_as_in_train("dense", type=click.IntRange(1))
@_as_in_train("augment")
@_as_in_train("optimizer")
@_as_in_train("schedule")
@_as_in_train("weight_decay", type=SHARE)
@_as_in_train("warmup", type=SHARE)
@_as_in_train("patience", type=click.IntRange(1))
@click.option("--input-size", type=click.IntRange(1), help="Input size in pixels.  [default: each backbone's]")
@click.option("--qat-epochs", type=click.IntRange(1), default=4, help="Epochs of quantization-aware training.")
@click.option("--seed", type=SEED, default=0, help="Seed of every random draw.")
@click.option("--frozen/--whole", default=True, help="grid-48: train the last layer only, or the whole network.")
@click.option("--storage", help="grid-48: Optuna URL or journal file, shared by several machines.  [default: in --out]")
@click.option("--study", help="grid-48: name of the study in the storage.  [default: grid-48]")
@CACHE_DIR
@JSON
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    runs: tuple[Path, ...],
    json: bool,
    models: str | None,
    protocol: str | None,
    schemes: str,
    **settings: Any,
) -> None:
    """Compare backbones and schemes in one report: finished RUNs, or backbones trained under one protocol.

    A backbone or scheme that fails is named, and the others continue. The exit status is then 1.

    \b
    edgeall compare runs/a035 runs/half --out both
    edgeall compare --data smears --models mobilenet_v2,resnet50 --protocol 60-20-20 --out study
    edgeall compare --data smears --protocol grid-48 --out grid
    """
    from ..console.progress import Progress

    data, out, cache_dir, progress = settings["data"], settings["out"], settings["cache_dir"], Progress()
    training = {name: settings[name] for name in ("epochs_head", "epochs_finetune", "input_size", "seed")}
    given = _given_training(settings, runs, protocol)
    if runs and (models or protocol):
        raise UsageError("RUNs are trained already", hint="give either RUNs, or --models and --protocol")
    if not runs and (data is None or protocol is None):
        raise UsageError("nothing to compare", hint="give RUNs, or --data, --models and --protocol")
    if protocol == GRID:
        if models:
            raise UsageError(f"{GRID} has its own models", hint="remove --models")
        ctx.exit(_run_grid(settings, json))
    from ..optimize.experiments.backbones import BackbonesConfig, compare_backbones
    from ..optimize.experiments.compare import compare_runs
    from ..optimize.experiments.compare_config import CompareOptions
    from ..optimize.experiments.compare_table import compare_text

    options = CompareOptions(listed(schemes), settings["qat_epochs"], data=data, cache_dir=cache_dir)
    if runs:
        result = compare_runs(runs, out, options, progress)
    else:
        assert protocol is not None
        chosen = {name: settings[name] for name in ("weights", "split_by", "embargo")}
        backbones = BackbonesConfig(data, listed(models), protocol, out, training=training | given, **chosen)
        result = compare_backbones(backbones, options, progress)
    print_result(result, json, lambda: compare_text(result))
    note_synthetic(result.synthetic)
    note_research_use(json)
    ctx.exit(1 if result.failures else 0)


_search = partial(option, SearchSettings)


@command("search")
@_search("data", "Folder of images or CSV manifest.")
@_search("out", "Folder to create. The same command resumes the search.")
@_search("max_latency_ms", "Latency budget of one image, network only, one thread, on this machine.")
@_search("max_bytes", "Size budget of the packed model.")
@_search("min_accuracy", "Minimum validation accuracy, 0 to 1; status 3 if no candidate reaches it.")
@_search("trials", "Number of candidates to train.", type=click.IntRange(1))
@click.option("--models", default="mobilenet_v2", help="Backbones, comma-separated.")
@click.option("--alphas", help="Width multipliers, comma-separated.  [default: all with weights]")
@click.option("--sizes", help="Input sizes in pixels, comma-separated.  [default: 96,128,160,192,224]")
@click.option("--macs", default="1,0.75,0.5", help="Shares of the MACs to keep by channel pruning, comma-separated.")
@click.option("--schemes", default="ptq-int8,qat-int8", help="Conversion schemes, comma-separated.")
@click.option("--learning-rates", help="Peak learning rates of the fine-tuning to try.  [default: that of train]")
@click.option("--dropouts", help="Dropouts to try.  [default: that of train]")
@click.option("--weight-decays", help="Weight decays to try.  [default: that of train]")
@click.option("--augments", help="Augmentations to try, of none, light, microscope and studies.  [default: microscope]")
@click.option("--unfreezes", help="Numbers of fine-tuned backbone layers to try.  [default: that of train]")
@_search("weights", "imagenet, none, or a folder of MODEL_ALPHA_no_top.h5 files.")
@_search("epochs_head", "Epochs of the head stage of each candidate.", type=click.IntRange(0))
@_search("epochs_finetune", "Epochs of the fine-tuning stage of each candidate.", type=click.IntRange(1))
@_search("epochs_prune", "Epochs after pruning.", type=click.IntRange(1))
@_search("epochs_qat", "Epochs of quantization-aware training.", type=click.IntRange(1))
@_search("stop", "Stop candidates early that fall behind.", name="--stop/--no-stop")
@_search("storage", "Optuna URL or journal file, shared by several machines.  [default: in --out]")
@_search("study", "Name of the study in the storage.")
@NEW_SPLIT
@POSITIVE
@_search("golden", "Golden images, as in quantize.")
@_search("seed", "Seed of every random draw.", type=SEED)
@CACHE_DIR
@JSON
def search(json: bool, **settings: Any) -> None:
    """Find the most accurate network within --max-latency-ms or --max-bytes.

    Searches width multiplier, input size, channel pruning and quantization scheme; also settings of the training, where
    several are given.
    """
    from ..console.progress import Progress
    from ..optimize.experiments.search import search as run_search
    from ..optimize.experiments.search_result import search_text

    for name in ("models", "schemes"):
        settings[name] = listed(settings[name])
    settings["augments"] = listed(settings["augments"]) or None
    kinds = {"alphas": float, "sizes": int, "macs": float}
    kinds |= {"learning_rates": float, "dropouts": float, "weight_decays": float, "unfreezes": int}
    for name, kind in kinds.items():
        settings[name] = None if settings[name] is None else numbers(name.replace("_", "-"), settings[name], kind)
    result = run_search(SearchSettings(**settings), Progress())
    print_result(result, json, lambda: search_text(result))
    note_synthetic(result.synthetic)
    note_research_use(json)


@command("models")
@JSON
def models(json: bool) -> None:
    """List the backbones: parameters, MACs, size, and support for quantization and pruning."""
    from ..models.listing import listing, models_text

    rows = listing()
    print_result({"models": rows}, json, lambda: models_text(rows))


@command("sign")
@click.argument("model", type=FILE)
@click.option("--key", type=FILE, required=True, help="Private Ed25519 key in PEM format.")
@click.option("--new-key", is_flag=True, help="Create the key first, and KEY.pub for the devices.")
@JSON
def sign(model: Path, key: Path, new_key: bool, json: bool) -> None:
    """Sign a packed model, for devices that use `--require-signature`."""
    from ..console.tables import record
    from ..optimize.packaging.sign import make_key
    from ..optimize.packaging.sign import sign as sign_model

    if new_key:
        note(f"{key}: keep this file secret; {make_key(key)}: copy this file to the devices")
    summary = sign_model(model, key)
    print_result(summary, json, lambda: record(summary))


@command("demo")
@click.option("--out", type=FILE, default=Path("build/demo"), help="Output folder.")
def demo(out: Path) -> None:
    """Run the whole chain on synthetic smears: train, quantize, evaluate and measure latency."""
    from ..console.progress import Progress
    from ..optimize.demo import demo as run_demo
    from ..optimize.demo import demo_text

    result = run_demo(out, Progress())
    print_result(result, False, lambda: demo_text(result))
    note_research_use(False)
