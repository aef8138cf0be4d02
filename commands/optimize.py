"""`edgeall quantize`, `prune`, `compare`, `search`, `models`, `sign` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..edge_runtime.errors import UsageError
from .options import (
    CACHE_DIR,
    EMBARGO,
    FILE,
    GRID,
    JSON,
    LEVELS,
    PROTOCOLS,
    SCHEMES,
    SEED,
    SPLIT_BY,
    command,
    listed,
    numbers,
)
from .output import note, note_research_use, note_synthetic, print_result


@command("quantize")
@click.argument("run", metavar="RUN", type=FILE)
@click.option("--scheme", type=click.Choice(SCHEMES), default="ptq-int8", help="Conversion scheme.")
@click.option("--out", type=FILE, required=True, help="The one file, model.tflite.")
@click.option("--max-drop", type=click.FloatRange(0), help="Points of test accuracy; status 3 when it loses more.")
@click.option("--epochs", type=click.IntRange(1), default=4, help="Fine-tuning epochs of qat-int8.")
@click.option("--learning-rate", type=float, default=3e-5, help="Peak learning rate of qat-int8.")
@click.option(
    "--representative", type=click.IntRange(1), default=256, help="Train images that activation ranges are measured on."
)
@click.option("--data", type=FILE, help="Where the images are now.  [default: where the run read them]")
@click.option(
    "--golden",
    type=click.Choice(["test", "synthetic"]),
    default="test",
    help="Images that travel in the file to check a device by: of the test side, or drawn.",
)
@click.option(
    "--clusters", type=int, metavar="N", help="At most N different weights a layer: a smaller zip (qat-int8)."
)
@click.option("--layer-report", is_flag=True, help="What rounding each layer costs, worst first (int8 schemes).")
@click.option(
    "--float-layers",
    metavar="LAYERS",
    help="Leave these in float, comma-separated (int8 schemes).",
)
@click.option("--robustness", is_flag=True, help="Measure it under changes of the microscope too; into the file.")
@click.option(
    "--target-sensitivity",
    type=float,
    help="Minimum sensitivity instead of a budget; images sent to review count as detected.",
)
@click.option(
    "--review-budget",
    type=float,
    help="Send at most this share of images to review; 0: no rule.  [default: 0.05, or --target-sensitivity]",
)
@click.option("--explain", is_flag=True, help="Carry the last feature map too: `run --explain` draws from it.")
@CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite the file.")
@JSON
def quantize(run: Path, json: bool, float_layers: str | None, robustness: bool, **settings: Any) -> None:
    """Convert a run, verify the result on the test side, and pack it into one file.

    A run that was pruned to sparsity keeps its zeros.
    """
    from ..console.progress import Progress
    from ..optimize.quantization.layer_error import layer_error_text
    from ..optimize.quantization.summary import quantize_text
    from ..optimize.quantize import quantize as quantize_run

    layers = listed(float_layers)
    summary = quantize_run(run, **settings, robust=robustness, float_layers=layers, progress=Progress())
    print_result(summary, json, lambda: quantize_text(summary))
    if "layers" in summary and not json:
        print("\n" + layer_error_text(summary["layers"]))
    if robustness and not json:
        from ..train.evaluation.robustness import robustness_text

        print("\n" + robustness_text(summary["robustness"]))
    note_synthetic(summary["synthetic"])
    note_research_use(json)


@command("prune")
@click.argument("run", metavar="RUN", type=FILE)
@click.option("--out", type=FILE, required=True, help="Folder of the new run; the same command resumes it.")
@click.option("--sparsity", type=float, help="Zero this share of the weights, the smallest ones: a smaller zip.")
@click.option("--macs", type=float, help="Remove channels until this share of the computation is left: faster.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Of training, the unpruned run as the teacher.  [default: 16 with --macs, 10 with --sparsity]",
)
@click.option("--learning-rate", type=float, default=1e-3, help="Its peak.")
@click.option("--data", type=FILE, help="Where the images are now.  [default: where the run read them]")
@CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite a complete run, or one of other settings.")
@JSON
def prune(run: Path, json: bool, **settings: Any) -> None:
    """Prune a run, by --sparsity or by --macs, and fine-tune it: a run like any other."""
    from ..console.progress import Progress
    from ..optimize.prune import prune as prune_run
    from ..optimize.prune import prune_text

    pruned = prune_run(run, **settings, progress=Progress())
    print_result(pruned, json, lambda: prune_text(pruned))
    note_synthetic(pruned["data"]["synthetic"])
    note_research_use(json)


@command("compare")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=FILE)
@click.option("--out", type=FILE, required=True, help="Folder of compare.html; the same command resumes it.")
@click.option("--data", type=FILE, help="Train on this folder or manifest; with RUNs: where their images are now.")
@click.option("--models", metavar="MODELS", help="To train, comma-separated, as mobilenet_v2:0.35,resnet50.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), help="How the studies split; grid-48 is their whole grid.")
@click.option("--schemes", default="float32,ptq-int8,qat-int8", help="Of the conversion, comma-separated.")
@click.option("--weights", default="imagenet", help="imagenet, none, or a folder of MODEL_no_top.h5 files.")
@click.option("--split-by", type=click.Choice(LEVELS), help="Another level than the protocol's own.")
@EMBARGO
@click.option("--epochs-head", type=click.IntRange(0), help="As of train.")
@click.option("--epochs-finetune", type=click.IntRange(0), help="As of train.")
@click.option("--input-size", type=click.IntRange(1), help="Pixels a side.  [default: each backbone's]")
@click.option("--qat-epochs", type=click.IntRange(1), default=4, help="Of qat-int8.")
@click.option("--seed", type=SEED, default=0)
@click.option("--frozen/--whole", default=True, help="grid-48: train the last layer alone, or all of the network.")
@click.option("--storage", help="grid-48: Optuna URL or journal file that several machines share.  [default: in --out]")
@click.option("--study", help="grid-48: its name in the storage.  [default: grid-48]")
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
    """Several backbones and schemes side by side, one report: of finished RUNs, or trained under one protocol.

    What can't be trained or converted is named, the rest goes on; the exit status is then 1.

    \b
    edgeall compare runs/a035 runs/half --out both
    edgeall compare --data smears --models mobilenet_v2,resnet50 --protocol 60-20-20 --out study
    edgeall compare --data smears --protocol grid-48 --out grid
    """
    from ..console.progress import Progress

    data, out, progress = settings["data"], settings["out"], Progress()
    shared = {"cache_dir": settings["cache_dir"], "progress": progress}
    training = {name: settings[name] for name in ("epochs_head", "epochs_finetune", "input_size", "seed")}
    if runs and (models or protocol):
        raise UsageError("RUNs are trained already", hint="leave out --models and --protocol, or the RUNs")
    if not runs and (data is None or protocol is None):
        raise UsageError("nothing to compare", hint="name RUNs, or --data, --models and --protocol")
    if protocol == GRID:
        from ..optimize.experiments.grid import GRID_48, grid_text, run_grid

        if models:
            raise UsageError(f"{GRID} has its own models", hint="leave --models out")
        for name in ("split_by", "embargo"):
            if settings[name] is not None:
                raise UsageError(f"{GRID} has its own splits", hint=f"leave --{name.replace('_', '-')} out")
        fixed = {name: settings[name] for name in ("weights", "frozen", "storage", "study", "input_size", "seed")}
        result = run_grid(data, out, GRID_48, **fixed, **shared)
        print_result(result, json, lambda: grid_text(result))
        note_synthetic(result["synthetic"])
        note_research_use(json)
        ctx.exit(1 if result["failed"] else 0)
    from ..optimize.experiments.backbones import compare_backbones
    from ..optimize.experiments.compare import compare_runs, compare_text

    shared["qat_epochs"] = settings["qat_epochs"]
    if runs:
        result = compare_runs(runs, out, listed(schemes), data=data, **shared)
    else:
        assert protocol is not None
        result = compare_backbones(
            data,
            listed(models),
            protocol,
            out,
            listed(schemes),
            weights=settings["weights"],
            split_by=settings["split_by"],
            embargo=settings["embargo"],
            training=training,
            **shared,
        )
    print_result(result, json, lambda: compare_text(result))
    note_synthetic(result["synthetic"])
    note_research_use(json)
    ctx.exit(1 if result["failures"] else 0)


@command("search")
@click.option("--data", type=FILE, required=True, help="Folder of images or CSV manifest.")
@click.option("--out", type=FILE, required=True, help="Folder of the search; the same command goes on with it.")
@click.option("--max-latency-ms", type=float, help="Of one image through the network, one thread, on this machine.")
@click.option("--max-bytes", type=int, help="Of the packed file.")
@click.option("--min-accuracy", type=float, help="In validation, 0 to 1; status 3 when nothing has it.")
@click.option("--trials", type=click.IntRange(1), default=20, help="Candidates to train.")
@click.option("--models", default="mobilenet_v2", help="Backbones, comma-separated.")
@click.option("--alphas", help="Width multipliers, comma-separated.  [default: all there are weights for]")
@click.option("--sizes", help="Input pixels, comma-separated.  [default: 96,128,160,192,224]")
@click.option("--macs", default="1,0.75,0.5", help="Shares of the computation that pruning leaves, comma-separated.")
@click.option("--schemes", default="ptq-int8,qat-int8", help="Of the conversion, comma-separated.")
@click.option("--weights", default="imagenet", help="imagenet, none, or a folder of MODEL_ALPHA_no_top.h5 files.")
@click.option("--epochs-head", type=click.IntRange(0), default=10, help="Of each candidate's head.")
@click.option("--epochs-finetune", type=click.IntRange(1), default=8, help="Of each candidate.")
@click.option("--epochs-prune", type=click.IntRange(1), default=4, help="Of each pruned candidate.")
@click.option("--epochs-qat", type=click.IntRange(1), default=2, help="Of qat-int8.")
@click.option("--stop/--no-stop", default=True, help="Give up candidates that fall behind.")
@click.option("--storage", help="Optuna URL or journal file that several machines share.  [default: in --out]")
@click.option("--study", default="search", help="Its name in the storage.")
@SPLIT_BY
@EMBARGO
@click.option("--val-frac", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1)
@click.option("--test-frac", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.15)
@click.option("--fold", metavar="I/K", help="Fold I of K is the test side, as 1/5 to 5/5.")
@click.option("--positive", metavar="LABELS", help="Labels that count as ill, comma-separated.  [default: from names]")
@click.option("--golden", type=click.Choice(["test", "synthetic"]), default="test", help="As of quantize.")
@click.option("--seed", type=SEED, default=0)
@CACHE_DIR
@JSON
def search(json: bool, **settings: Any) -> None:
    """Find the most accurate network within --max-latency-ms or --max-bytes: alpha, input size, pruning, scheme."""
    from ..console.progress import Progress
    from ..optimize.experiments.search import search as run_search
    from ..optimize.experiments.search_result import search_text
    from ..optimize.experiments.search_settings import SearchSettings

    for name in ("models", "schemes"):
        settings[name] = listed(settings[name])
    for name, kind in (("alphas", float), ("sizes", int), ("macs", float)):
        settings[name] = None if settings[name] is None else numbers(name, settings[name], kind)
    result = run_search(SearchSettings(**settings), Progress())
    print_result(result, json, lambda: search_text(result))
    note_synthetic(result["synthetic"])
    note_research_use(json)


@command("models")
@JSON
def models(json: bool) -> None:
    """The backbones: parameters, MACs and size, and what quantization and pruning can do with them."""
    from ..models.listing import listing, models_text

    rows = listing()
    print_result({"models": rows}, json, lambda: models_text(rows))


@command("sign")
@click.argument("model", type=FILE)
@click.option("--key", type=FILE, required=True, help="Private Ed25519 key, PEM.")
@click.option("--new-key", is_flag=True, help="Make it first, and KEY.pub for the devices.")
@JSON
def sign(model: Path, key: Path, new_key: bool, json: bool) -> None:
    """Sign a packed model, for devices that take no other (`--require-signature`)."""
    from ..console.tables import record
    from ..optimize.packaging.sign import make_key
    from ..optimize.packaging.sign import sign as sign_model

    if new_key:
        note(f"{key}: keep it secret; {make_key(key)}: for the devices")
    summary = sign_model(model, key)
    print_result(summary, json, lambda: record(summary))


@command("demo")
@click.option("--out", type=FILE, default=Path("build/demo"), help="Where everything of it goes.")
def demo(out: Path) -> None:
    """Draw synthetic smears, train, quantize, evaluate and time: the whole chain in some minutes."""
    from ..console.progress import Progress
    from ..optimize.demo import demo as run_demo
    from ..optimize.demo import demo_text

    result = run_demo(out, Progress())
    print_result(result, False, lambda: demo_text(result))
    note_research_use(False)
