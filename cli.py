"""The command line: parse, call one function, print. Nothing heavier than click is imported until a command runs."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from json import dumps  # a flag and a setting are called json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from . import __version__
from .edge_runtime import errors

if TYPE_CHECKING:
    from datetime import datetime

    from .edge_runtime.parallel import Layout as Spread
    from .edge_runtime.pipeline import Prediction
    from .train.data.synth import Layout

SCHEMES = ("float32", "float16", "dynamic", "ptq-int8", "qat-int8")
SIDES = ("train", "validation", "test")
LEVELS = ("auto", "subject", "block", "image")
AUGMENTS = ("none", "light", "microscope", "studies")
GRID = "grid-48"
PROTOCOLS = ("global-70-15-15", "balanced-700-150-150", "60-20-20", "subject-3-fold", GRID)
TRAIN_EXTRA = {
    *("tensorflow", "tf_keras", "tensorflow_model_optimization", "tensorboard"),
    *("sklearn", "scipy", "matplotlib", "imagehash", "jinja2", "kagglehub", "optuna", "sqlalchemy"),
}
"""Modules that the device install leaves out."""
DEPLOY_EXTRA = {"paramiko", "adbutils", "packaging"}
"""Modules that reach other machines."""
RIG_EXTRA = {"fastapi", "starlette", "uvicorn", "argon2"}
"""Modules that serve the rig's page."""

FILE = click.Path(path_type=Path)
SEED = click.IntRange(0, 2**32 - 1)  # what numpy, scikit-learn and Keras take
SYNTHETIC = "SYNTHETIC images: good for trying and testing the chain, no evidence about blood"


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done, 1 failed with a clear error, 2 wrong usage, 3 a gate was not met, 130 interrupted.
    """
    state = {"debug": False}
    before = _end_in_order()
    try:
        return _main(args, state)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_in_order() -> dict[int, Any]:
    """Have SIGTERM, and SIGHUP of a terminal that goes away, end the program as Ctrl-C does: nothing is left behind.

    Returns:
        The handlers before. What was ignored (nohup) or is handled already stays as it is.
    """
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    return {
        number: signal.signal(number, _interrupt) for number in numbers if signal.getsignal(number) is signal.SIG_DFL
    }


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _main(args: list[str] | None, state: dict[str, bool]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    try:
        status = cli.main(args, prog_name="edgeall", standalone_mode=False, auto_envvar_prefix="EDGEALL", obj=state)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return errors.UsageError.exit_status
    except BrokenPipeError:
        # The reader (`head`) has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # a file that ends too early, which click takes for Ctrl-D
            raise error.__cause__ from None
        click.echo("interrupted", err=True)
        return 130
    except (click.ClickException, errors.EdgeallError, OSError, ModuleNotFoundError) as error:
        failure = _as_failure(error)
        if failure is None:
            raise
        if state["debug"]:
            import traceback

            traceback.print_exc()
        click.echo(f"error: {failure.message}", err=True)
        if failure.hint:
            click.echo(f"  hint: {failure.hint}", err=True)
        return failure.exit_status


def _as_failure(error: Exception) -> errors.EdgeallError | None:
    """What a user can act on in ``error``; None when it is a bug of ours, whose traceback should be seen."""
    if isinstance(error, errors.EdgeallError):
        return error
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "edgeall"
        return errors.UsageError(" ".join(error.format_message().split()), hint=f"see `{command} --help`")
    if isinstance(error, click.ClickException):
        return errors.EdgeallError(error.format_message())
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in TRAIN_EXTRA:
        return errors.EdgeallError(
            f"this command needs {error.name}, which the device install leaves out",
            hint='pip install ".[train]" in a checkout of edgeall (Python 3.10 to 3.12)',
        )
    if isinstance(error, ModuleNotFoundError) and error.name in DEPLOY_EXTRA:
        return errors.EdgeallError(
            f"this command needs {error.name}, which only machines that deploy have",
            hint='pip install ".[deploy]" in a checkout of edgeall',
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in RIG_EXTRA:
        return errors.EdgeallError(
            f"this command needs {error.name}, which only a microscope rig has",
            hint='pip install ".[rig]" in a checkout of edgeall',
        )
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder that may not be written
        return errors.EdgeallError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return None


def _command(group: click.Group, name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """`group.command` with the options that every command has."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        for option in reversed(_COMMON):
            function = option(function)
        return group.command(name, no_args_is_help=False)(function)

    return decorate


def _load_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a TOML file the defaults of the command. Raises UsageError for a key that no command has."""
    if path is None:
        return
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.UsageError(f"{path}: not TOML ({error})") from error
    for key, known in _unknown_keys(cli, table, ""):
        raise errors.UsageError(f"{path}: no setting called {key}", hint=f"there are: {', '.join(known)}")
    for word in ctx.command_path.split()[1:]:
        table = table.get(word, {})
    # As text, like the command line's: click would cut 1.5 to an int, and take true for 1.
    ctx.default_map = {
        key.replace("-", "_"): [str(item) for item in value] if isinstance(value, list) else str(value)
        for key, value in table.items()
    }


def _unknown_keys(command: click.Command, table: Mapping[str, Any], at: str) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(command, click.Group):
        names = [str(p.name) for p in command.params if isinstance(p, click.Option) and p.expose_value]
        yield from ((at + key, names) for key in table if key.replace("-", "_") not in names)
        return
    for key, value in table.items():
        if key in command.commands and isinstance(value, dict):
            yield from _unknown_keys(command.commands[key], value, f"{at}{key}.")
        else:
            yield at + key, [f"[{at}{name}]" for name in sorted(command.commands)]


def _set_debug(ctx: click.Context, _: click.Parameter, debug: bool) -> None:
    ctx.obj["debug"] = debug


_COMMON = (
    click.option(
        "--config",
        type=FILE,
        callback=_load_config,
        is_eager=True,
        expose_value=False,
        help="TOML file of settings, a section for each command.",
    ),
    click.option(
        "--debug",
        is_flag=True,
        callback=_set_debug,
        is_eager=True,
        expose_value=False,
        envvar="EDGEALL_DEBUG",
        help="Show the traceback of an error.",
    ),
)
_JSON = click.option("--json", is_flag=True, help="Print one JSON object.")
_CACHE_DIR = click.option(
    "--cache-dir", type=FILE, help="Where preprocessed images are kept.  [default: ~/.cache/edgeall]"
)
_SPLIT_BY = click.option(
    "--split-by",
    type=click.Choice(LEVELS),
    default="auto",
    help="What sides never share: a subject; a block of file numbers; an image. auto: the first that the data allows.",
)
_EMBARGO = click.option(
    "--embargo",
    type=click.IntRange(0),
    metavar="N",
    help="By block: sides are more than N file numbers apart.  [default: 37, the images of one patient]",
)
_LABELS = click.option("--labels", type=FILE, help="Label file of a foreign model, one a line.")
_MEAN = click.option("--mean", type=float, help="Normalization of a foreign float model: (pixel - mean) / std.")
_STD = click.option("--std", type=float, help="See --mean.")
_INPUT_SIZE = click.option(
    "--input-size", type=click.IntRange(1), help="Pixels a side, of a foreign model whose input has no fixed size."
)
_THREADS = click.option("--threads", type=click.IntRange(1), help="Of each interpreter.  [default: measured once]")
_WHEEL = click.option(
    "--wheel", type=FILE, help="edgeall's wheel for the device.  [default: built from this checkout, once]"
)
_DEVICE_PYTHON = click.option("--device-python", metavar="COMMAND", default="python3", help="The device's.")
_WORKERS = click.option("--workers", type=click.IntRange(1), help="Interpreters.  [default: measured once]")


_REQUIRE_SIGNATURE = click.option(
    "--require-signature", type=FILE, metavar="KEY.pub", help="Refuse a model that isn't signed with this key."
)


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """From a folder of labelled microscope images to a small, verified classifier on a Pi or a phone.

    Research use only, not a diagnosis. Every setting can also come from EDGEALL_<COMMAND>_<SETTING>
    or from --config FILE.toml; a flag wins over both.
    """


@cli.group()
def data() -> None:
    """See, make and get data."""


@cli.group()
def devices() -> None:
    """The list of devices that have a name."""


@cli.group("rig-user")
def rig_user() -> None:
    """Who may log in to a rig's page."""


@cli.group()
def record() -> None:
    """Check, thin out and export what a rig has recorded."""


@_command(cli, "train")
@click.option(
    "--data", type=FILE, required=True, help="Folder of images (one folder a class, or C-NMC) or CSV manifest."
)
@click.option("--out", type=FILE, required=True, help="Folder of the run; the same command resumes it.")
@click.option("--model", default="mobilenet_v2", help="Backbone.")
@click.option("--alpha", type=float, help="Width multiplier of the backbone.  [default: 1.0 where it has one]")
@click.option("--weights", default="imagenet", help="imagenet (downloaded), none, or a no_top weights file.")
@click.option("--input-size", type=click.IntRange(1), help="Pixels a side.  [default: the backbone's]")
@click.option("--epochs-head", type=click.IntRange(0), default=30, help="Epochs of the head on cached features.")
@click.option(
    "--epochs-finetune",
    type=click.IntRange(0),
    help="Epochs of the network itself.  [default: as many as show about 44,000 images, 8 to 60]",
)
@click.option("--batch-size", type=click.IntRange(1), default=32)
@click.option("--lr-head", type=float, default=3e-3, help="Peak learning rate of the head stage.")
@click.option("--lr-finetune", type=float, default=5e-4, help="Peak learning rate of the fine-tuning stage.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.2, help="Before the last layer.")
@click.option("--augment", type=click.Choice(AUGMENTS), default="microscope", help="Of training images.")
@click.option(
    "--unfreeze", type=click.IntRange(1), help="Last backbone layers to fine-tune.  [default: see edgeall models]"
)
@click.option("--class-weights/--no-class-weights", default=True, help="Weigh classes by their inverse frequency.")
@click.option("--patience", type=click.IntRange(1), default=8, help="Epochs in a row without a lower validation loss.")
@_SPLIT_BY
@_EMBARGO
@click.option("--val-frac", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1)
@click.option("--test-frac", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.15)
@click.option("--fold", metavar="I/K", help="Fold I of K is the test side, as 1/5 to 5/5.")
@click.option("--split", type=FILE, help="Split as this split.json says, or the one in this run.")
@click.option("--per-class", metavar="TRAIN/VAL/TEST", help="As many images of every class, as in 700/150/150.")
@click.option("--positive", metavar="LABELS", help="Labels that count as ill, comma-separated.  [default: from names]")
@click.option("--seed", type=SEED, default=0)
@click.option(
    "--teacher",
    type=FILE,
    multiple=True,
    metavar="RUN",
    help="Learn from this run's answers; several: their mean.",
)
@click.option(
    "--teacher-weight", type=click.FloatRange(0, 1, min_open=True), help="Its share in the loss.  [default: 0.5]"
)
@_CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite a complete run, or one of other settings.")
@_JSON
def train(json: bool, **settings: Any) -> None:
    """Fine-tune a backbone on a folder of images, evaluate it on the test side and report."""
    from .console.progress import Progress
    from .train.evaluation.text import metrics_text
    from .train.run import TrainSettings
    from .train.run import train as train_run

    run = train_run(TrainSettings(**settings), Progress())
    _print(run, json, lambda: metrics_text(run["metrics"]["test"]))
    if (settings["out"] / "run.json").exists():  # of several machines only the first one writes
        _note(f"{settings['out']}: report.html, model.keras, predictions.csv, run.json")
    _note_synthetic(run["data"]["synthetic"])
    _note_research_use(json)


@_command(cli, "evaluate")
@click.argument("target", metavar="RUN|MODEL", type=FILE)
@click.option("--data", type=FILE, help="Folder or manifest.  [default: the run's own]")
@click.option("--site", type=FILE, help="Another laboratory's images, instead: beside the model's own test side.")
@click.option("--side", type=click.Choice([*SIDES, "all"]), help="Of the split.  [default: test; all of other data]")
@click.option("--split", type=FILE, help="The model's split.json.  [default: the run's own, or the one beside MODEL]")
@_LABELS
@_MEAN
@_STD
@_INPUT_SIZE
@_CACHE_DIR
@click.option("--robustness", is_flag=True, help="Also under changes of lamp, stain, focus, sensor and file.")
@click.option("--plot", type=FILE, help="Write the accuracy under those changes as a PNG.")
@click.option("--against", type=FILE, metavar="OTHER", help="Hold MODEL against this one on the same images.")
@click.option("--html", type=FILE, help="Write a self-contained page, with reliability and risk against coverage.")
@click.option("--explain", type=FILE, metavar="DIR", help="Of a run: draw there what speaks for its worst answers.")
@_JSON
def evaluate(
    target: Path,
    json: bool,
    data: Path | None,
    site: Path | None,
    labels: Path | None,
    robustness: bool,
    plot: Path | None,
    html: Path | None,
    **settings: Any,
) -> None:
    """Metrics of a Keras run or of a model.tflite, same images, same numbers."""
    from .console.progress import Progress
    from .edge_runtime.images import refuse_inside
    from .train.data.dataset import load_dataset
    from .train.data.synth import is_synthetic
    from .train.evaluation.evaluate import evaluate as evaluate_target
    from .train.evaluation.text import metrics_text
    from .train.runs import data_root, load_run

    for option, out in (("--plot", plot), ("--html", html), ("--explain", settings["explain"])):
        if out is not None:
            own = data_root(load_run(target)) if target.is_dir() and data is None else data
            for folder in (own, site):
                if folder is not None:
                    refuse_inside(folder, out, option)
    robust = robustness or plot is not None
    settings |= {"data": data, "site": site, "labels_file": labels, "robust": robust}
    metrics = evaluate_target(target, **settings, progress=Progress())
    texts = [("Figures", metrics_text(metrics))] if html is not None or not json else []
    if site is not None and texts:
        from .train.evaluation.site import site_text

        texts.append(("Beside its own test side", site_text(metrics["site"])))
    if "against" in metrics and texts:
        from .train.evaluation.against import against_text

        texts.append(("Against another model", against_text(metrics["against"])))
    if robust and texts:
        from .train.evaluation.robustness import robustness_text

        texts.append(("When the microscope changes", robustness_text(metrics["robustness"])))
    _print(metrics, json, lambda: "\n\n".join(text for _, text in texts))
    if plot is not None:
        from .train.reports.plots import plot_robustness

        plot_robustness(metrics["robustness"], plot)
        _note(f"{plot}: written")
    drawn = target.is_dir() and load_run(target)["data"]["synthetic"]
    drawn = drawn or any(is_synthetic(load_dataset(folder)) for folder in (data, site) if folder is not None)
    if html is not None:
        from .train.reports.model_report import write_model_report

        write_model_report(html, f"{target} on {site or data or 'its own data'}", texts, metrics, drawn)
        _note(f"{html}: written")
    _note_synthetic(drawn)
    _note_research_use(json)


@_command(cli, "quantize")
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
@_CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite the file.")
@_JSON
def quantize(run: Path, json: bool, float_layers: str | None, robustness: bool, **settings: Any) -> None:
    """Convert a run, verify the result on the test side, and pack it into one file.

    A run that was pruned to sparsity keeps its zeros.
    """
    from .console.progress import Progress
    from .optimize.quantization.layer_error import layer_error_text
    from .optimize.quantization.summary import quantize_text
    from .optimize.quantize import quantize as quantize_run

    layers = _listed(float_layers)
    summary = quantize_run(run, **settings, robust=robustness, float_layers=layers, progress=Progress())
    _print(summary, json, lambda: quantize_text(summary))
    if "layers" in summary and not json:
        print("\n" + layer_error_text(summary["layers"]))
    if robustness and not json:
        from .train.evaluation.robustness import robustness_text

        print("\n" + robustness_text(summary["robustness"]))
    _note_synthetic(summary["synthetic"])
    _note_research_use(json)


@_command(cli, "prune")
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
@_CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite a complete run, or one of other settings.")
@_JSON
def prune(run: Path, json: bool, **settings: Any) -> None:
    """Prune a run, by --sparsity or by --macs, and fine-tune it: a run like any other."""
    from .console.progress import Progress
    from .optimize.prune import prune as prune_run
    from .optimize.prune import prune_text

    pruned = prune_run(run, **settings, progress=Progress())
    _print(pruned, json, lambda: prune_text(pruned))
    _note_synthetic(pruned["data"]["synthetic"])
    _note_research_use(json)


@_command(cli, "compare")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=FILE)
@click.option("--out", type=FILE, required=True, help="Folder of compare.html; the same command resumes it.")
@click.option("--data", type=FILE, help="Train on this folder or manifest; with RUNs: where their images are now.")
@click.option("--models", metavar="MODELS", help="To train, comma-separated, as mobilenet_v2:0.35,resnet50.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), help="How the studies split; grid-48 is their whole grid.")
@click.option("--schemes", default="float32,ptq-int8,qat-int8", help="Of the conversion, comma-separated.")
@click.option("--weights", default="imagenet", help="imagenet, none, or a folder of MODEL_no_top.h5 files.")
@click.option("--split-by", type=click.Choice(LEVELS), help="Another level than the protocol's own.")
@_EMBARGO
@click.option("--epochs-head", type=click.IntRange(0), help="As of train.")
@click.option("--epochs-finetune", type=click.IntRange(0), help="As of train.")
@click.option("--input-size", type=click.IntRange(1), help="Pixels a side.  [default: each backbone's]")
@click.option("--qat-epochs", type=click.IntRange(1), default=4, help="Of qat-int8.")
@click.option("--seed", type=SEED, default=0)
@click.option("--frozen/--whole", default=True, help="grid-48: train the last layer alone, or all of the network.")
@click.option("--storage", help="grid-48: Optuna URL or journal file that several machines share.  [default: in --out]")
@click.option("--study", help="grid-48: its name in the storage.  [default: grid-48]")
@_CACHE_DIR
@_JSON
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
    from .console.progress import Progress

    data, out, progress = settings["data"], settings["out"], Progress()
    shared = {"cache_dir": settings["cache_dir"], "progress": progress}
    training = {name: settings[name] for name in ("epochs_head", "epochs_finetune", "input_size", "seed")}
    if runs and (models or protocol):
        raise errors.UsageError("RUNs are trained already", hint="leave out --models and --protocol, or the RUNs")
    if not runs and (data is None or protocol is None):
        raise errors.UsageError("nothing to compare", hint="name RUNs, or --data, --models and --protocol")
    if protocol == GRID:
        from .optimize.experiments.grid import GRID_48, grid_text, run_grid

        if models:
            raise errors.UsageError(f"{GRID} has its own models", hint="leave --models out")
        for name in ("split_by", "embargo"):
            if settings[name] is not None:
                raise errors.UsageError(f"{GRID} has its own splits", hint=f"leave --{name.replace('_', '-')} out")
        fixed = {name: settings[name] for name in ("weights", "frozen", "storage", "study", "input_size", "seed")}
        result = run_grid(data, out, GRID_48, **fixed, **shared)
        _print(result, json, lambda: grid_text(result))
        _note_synthetic(result["synthetic"])
        _note_research_use(json)
        ctx.exit(1 if result["failed"] else 0)
    from .optimize.experiments.backbones import compare_backbones
    from .optimize.experiments.compare import compare_runs, compare_text

    shared["qat_epochs"] = settings["qat_epochs"]
    if runs:
        result = compare_runs(runs, out, _listed(schemes), data=data, **shared)
    else:
        assert protocol is not None
        result = compare_backbones(
            data,
            _listed(models),
            protocol,
            out,
            _listed(schemes),
            weights=settings["weights"],
            split_by=settings["split_by"],
            embargo=settings["embargo"],
            training=training,
            **shared,
        )
    _print(result, json, lambda: compare_text(result))
    _note_synthetic(result["synthetic"])
    _note_research_use(json)
    ctx.exit(1 if result["failures"] else 0)


@_command(cli, "search")
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
@_SPLIT_BY
@_EMBARGO
@click.option("--val-frac", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1)
@click.option("--test-frac", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.15)
@click.option("--fold", metavar="I/K", help="Fold I of K is the test side, as 1/5 to 5/5.")
@click.option("--positive", metavar="LABELS", help="Labels that count as ill, comma-separated.  [default: from names]")
@click.option("--golden", type=click.Choice(["test", "synthetic"]), default="test", help="As of quantize.")
@click.option("--seed", type=SEED, default=0)
@_CACHE_DIR
@_JSON
def search(json: bool, **settings: Any) -> None:
    """Find the most accurate network within --max-latency-ms or --max-bytes: alpha, input size, pruning, scheme."""
    from .console.progress import Progress
    from .optimize.experiments.search import search as run_search
    from .optimize.experiments.search_result import search_text
    from .optimize.experiments.search_settings import SearchSettings

    for name in ("models", "schemes"):
        settings[name] = _listed(settings[name])
    for name, kind in (("alphas", float), ("sizes", int), ("macs", float)):
        settings[name] = None if settings[name] is None else _numbers(name, settings[name], kind)
    result = run_search(SearchSettings(**settings), Progress())
    _print(result, json, lambda: search_text(result))
    _note_synthetic(result["synthetic"])
    _note_research_use(json)


@_command(cli, "models")
@_JSON
def models(json: bool) -> None:
    """The backbones: parameters, MACs and size, and what quantization and pruning can do with them."""
    from .models.listing import listing, models_text

    rows = listing()
    _print({"models": rows}, json, lambda: models_text(rows))


@_command(cli, "run")
@click.argument("model", type=FILE)
@click.argument("paths", metavar="IMAGE|DIR...", nargs=-1, required=True, type=click.Path())
@click.option("--json", is_flag=True, help="Print one JSON object a line, as they come.")
@click.option("--csv", is_flag=True, help="Print CSV.")
@click.option("--explain", type=FILE, metavar="DIR", help="Draw there what speaks for each label: see quantize.")
@_LABELS
@_MEAN
@_STD
@_INPUT_SIZE
@_WORKERS
@_THREADS
@_REQUIRE_SIGNATURE
@click.pass_context
def run_model(
    ctx: click.Context,
    model: Path,
    paths: tuple[str, ...],
    json: bool,
    csv: bool,
    explain: Path | None,
    labels: Path | None,
    mean: float | None,
    std: float | None,
    input_size: int | None,
    workers: int | None,
    threads: int | None,
    require_signature: Path | None,
) -> None:
    """Classify images, on all cores.

    An image that can't be read gives an error line and the rest goes on; the exit status is 1 only when no image at
    all could be classified.
    """
    from .edge_runtime.classifier import Classifier
    from .edge_runtime.pipeline import classify
    from .edge_runtime.tools.predictions import prediction_lines

    form = _one_of(ctx, json=json, csv=csv)
    alone = len(paths) == 1 and not os.path.isdir(paths[0])
    threads_now = threads or (None if alone else 1)
    classifier = Classifier.open(
        model,
        threads=threads_now,
        labels_file=labels,
        mean=mean,
        std=std,
        input_size=input_size,
        public_key=require_signature,
    )

    def choose(first: Sequence[str]) -> Spread:
        from .edge_runtime.parallel import choose as choose_layout

        return choose_layout(classifier, first, interpreters=workers, threads=threads, note=_note)

    if explain is not None:
        from .edge_runtime.explain import Explainer
        from .edge_runtime.files import held
        from .edge_runtime.images import refuse_inside

        for path in paths:
            refuse_inside(Path(path), explain, "--explain")
        ctx.with_resource(held(explain, "run"))
        explainer = Explainer(classifier, explain)
    done = failed = 0
    skipped = _Skipped()

    def counted() -> Iterator[Prediction]:
        nonlocal done, failed
        for prediction in classify(classifier, paths, None if alone else choose, skipped):
            done, failed = done + (prediction.error is None), failed + (prediction.error is not None)
            if explain is not None and prediction.error is None:
                explainer.draw(prediction)
            yield prediction

    for line in prediction_lines(counted(), classifier.labels, form or "table"):
        print(line, flush=True)
    if failed:
        _note(f"{failed} of {done + failed} images could not be classified")
    skipped.note()
    _note_research_use(form is not None)
    ctx.exit(0 if done else 1)


@_command(cli, "cells")
@click.argument("paths", metavar="IMAGE|DIR...", nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="A new or empty folder.")
@click.option("--model", type=FILE, help="Crop to the input of this packed model.  [default: squares as they are]")
@click.option(
    "--red-cell-px",
    type=click.FloatRange(4),
    help="Diameter of a red cell.  [default: 0.163 of the longer side, a 100x oil objective's]",
)
@_JSON
@click.pass_context
def cells(
    ctx: click.Context, paths: tuple[str, ...], out: Path, model: Path | None, red_cell_px: float | None, json: bool
) -> None:
    """Find the nucleated cells of smear fields: a table, crops, and the images with boxes drawn over them."""
    from .edge_runtime.bundle import open_bundle
    from .edge_runtime.vision.cells_files import cells_of_files, cells_text

    manifest = None if model is None else open_bundle(model).manifest
    if model is not None and manifest is None:
        raise errors.UsageError(f"{model}: has no manifest that says what its input is", hint="give a packed model")
    skipped = _Skipped()
    result = cells_of_files(paths, out, None if manifest is None else manifest.input, red_cell_px, skipped)
    _print(result, json, lambda: cells_text(result))
    skipped.note()
    _note(f"{out}: cells.csv, crops/, overlays/")
    _note_research_use(json)
    ctx.exit(0 if any("error" not in image for image in result["images"]) else 1)


@_command(cli, "bench")
@click.argument("model", type=FILE)
@click.option(
    "--images", type=FILE, help="Folder; one folder a class gives accuracy too.  [default: the golden images]"
)
@click.option("--threads", type=click.IntRange(1), default=1, help="Of the interpreter, one image after the other.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, help="Of each measurement, at least.")
@click.option("--min-queries", type=click.IntRange(1), default=50, help="Images of each measurement, at least.")
@click.option("--repetitions", type=click.IntRange(1), default=3, help="A spread over 5 % is warned of.")
@click.option("--sweep/--no-sweep", default=True, help="Also other numbers of threads, and several interpreters.")
@click.option("--profile", is_flag=True, help="Also the time of each operator.")
@click.option("--html", type=FILE, help="Write a self-contained page.")
@click.option("--on", metavar="TARGET", help="There: ssh://user@host, adb:SERIAL, or a name from edgeall devices.")
@click.option("--benchmark-model", type=FILE, help="On adb: LiteRT's program, built for the device; times the network.")
@_WHEEL
@_DEVICE_PYTHON
@_LABELS
@_MEAN
@_STD
@_INPUT_SIZE
@_JSON
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    model: Path,
    json: bool,
    labels: Path | None,
    html: Path | None,
    on: str | None,
    benchmark_model: Path | None,
    wheel: Path | None,
    device_python: str,
    **settings: Any,
) -> None:
    """Accuracy, latency, throughput and memory on this device, or on another one."""
    from .edge_runtime.tools.bench import bench as bench_model
    from .edge_runtime.tools.bench_card import bench_text, write_card

    if benchmark_model is not None:
        from .console.progress import Progress
        from .deploy.command import benchmark_model_on, benchmark_model_text

        chosen = {name: settings[name] for name in ("threads", "seconds")}
        timed = benchmark_model_on(on, model, benchmark_model, **chosen, progress=Progress())
        _print(timed, json, lambda: benchmark_model_text(timed))
        return
    if on is not None:
        from .console.progress import Progress
        from .deploy.command import bench_on, given_options

        forwarded = given_options(ctx, leave_out=("images", "json", "html", "on", "wheel", "device_python"))
        chosen = {"images": settings["images"], "wheel": wheel, "python": device_python}
        result = bench_on(on, model, arguments=forwarded, progress=Progress(), **chosen)
    else:
        result = bench_model(model, labels_file=labels, note=_note, **settings)
    _print(result, json, lambda: bench_text(result))
    if html is not None:
        write_card(result, html)
        _note(f"{html}: written")
    for warning in result["warnings"]:
        _note(f"warning: {warning}")
    _note_research_use(json)


@_command(cli, "compare-bench")
@click.argument("before", metavar="A.json", type=FILE)
@click.argument("after", metavar="B.json", type=FILE)
@click.option("--max-regression", metavar="PERCENT", default="5%", help="Status 3 when a figure of B is worse by more.")
@click.option("--across-models", is_flag=True, help="Though the model files differ.")
@click.option("--across-images", is_flag=True, help="Though the images differ.")
@click.option("--across-devices", is_flag=True, help="Though the devices or interpreters differ.")
@_JSON
def compare_bench(before: Path, after: Path, max_regression: str, json: bool, **across: bool) -> None:
    """Gate what `edgeall bench --json` measured against what it measured before.

    \b
    edgeall bench model.tflite --images smears --json > before.json
    edgeall compare-bench before.json after.json --max-regression 5%
    """
    from .edge_runtime.tools.compare_bench import compare_bench as compare_files
    from .edge_runtime.tools.compare_bench import compare_text

    result = compare_files(before, after, max_regression, **across)
    _print(result, json, lambda: compare_text(result))
    if result["regressions"]:
        raise errors.GateError(
            f"{after}: worse than {before} by more than {result['max_regression_percent']:g} %: "
            + ", ".join(result["regressions"])
        )


@_command(cli, "inspect")
@click.argument("model", type=FILE)
@_REQUIRE_SIGNATURE
@_JSON
@click.pass_context
def inspect(ctx: click.Context, model: Path, require_signature: Path | None, json: bool) -> None:
    """Show a model's manifest, quantization, operators and sizes; check its digest and its golden images."""
    from .edge_runtime.bundle import open_bundle
    from .edge_runtime.tools.inspect import inspect_model, inspect_text

    if require_signature is not None:
        open_bundle(model, require_signature)
    facts = inspect_model(model) | {"signature_ok": None if require_signature is None else True}
    if require_signature is not None:
        _note(f"{model}: signed with the key of {require_signature}")
    _print(facts, json, lambda: inspect_text(facts))
    _note_research_use(json)
    ctx.exit(1 if facts["golden_ok"] is False else 0)


@_command(cli, "sign")
@click.argument("model", type=FILE)
@click.option("--key", type=FILE, required=True, help="Private Ed25519 key, PEM.")
@click.option("--new-key", is_flag=True, help="Make it first, and KEY.pub for the devices.")
@_JSON
def sign(model: Path, key: Path, new_key: bool, json: bool) -> None:
    """Sign a packed model, for devices that take no other (`--require-signature`)."""
    from .console.tables import record
    from .optimize.packaging.sign import make_key
    from .optimize.packaging.sign import sign as sign_model

    if new_key:
        _note(f"{key}: keep it secret; {make_key(key)}: for the devices")
    summary = sign_model(model, key)
    _print(summary, json, lambda: record(summary))


@_command(cli, "doctor")
@_JSON
@click.pass_context
def doctor(ctx: click.Context, json: bool) -> None:
    """Whether this machine has all that a device needs; what is wrong comes with the command that mends it."""
    from .edge_runtime.tools import doctor as room

    result = room.diagnose(room.this_machine())
    _print(result, json, lambda: room.doctor_text(result))
    ctx.exit(0 if result["ok"] else 1)


@_command(cli, "deploy")
@click.argument("arguments", metavar="[MODEL] TARGET", nargs=-1, required=True)
@click.option("--rollback", is_flag=True, help="Back to the model before; takes the TARGET alone.")
@click.option("--offline", is_flag=True, help="Collect the device's packages here: it has no network.")
@_WHEEL
@_DEVICE_PYTHON
@_JSON
def deploy(arguments: tuple[str, ...], rollback: bool, device_python: str, json: bool, **settings: Any) -> None:
    """Put a packed model on a device over ssh: copied, verified there, switched to at once, the one before kept.

    TARGET is ssh://user@host, ssh://user@host:port or a name from `edgeall devices`. Whatever fails, the old model
    serves on. You log in by key; the host key must be in ~/.ssh/known_hosts.

    \b
    edgeall deploy model.tflite ssh://pi@raspberrypi.local
    edgeall deploy --rollback ssh://pi@raspberrypi.local
    """
    from .console.progress import Progress
    from .deploy.command import deploy_text, deploy_to

    result = deploy_to(arguments, rollback, Progress(), python=device_python, **settings)
    _print(result, json, lambda: deploy_text(result))
    _note_research_use(json)


@_command(devices, "ls")
@_JSON
def devices_ls(json: bool) -> None:
    """Show the list."""
    from .console.tables import record
    from .deploy.devices import read_devices

    known = read_devices()
    _print({"devices": known}, json, lambda: record(known) if known else "none yet: edgeall devices add NAME TARGET")


@_command(devices, "add")
@click.argument("name")
@click.argument("target")
def devices_add(name: str, target: str) -> None:
    """Give a TARGET a NAME: ssh://user@host, ssh://user@host:port or adb:SERIAL."""
    from .deploy.devices import add_device, list_file

    add_device(name, target)
    _note(f"{name} is in {list_file()}")


@_command(devices, "rm")
@click.argument("name")
def devices_rm(name: str) -> None:
    """Take a NAME off the list."""
    from .deploy.devices import remove_device

    remove_device(name)


@_command(cli, "rig")
@click.argument("model", type=FILE, required=False)
@click.option(
    "--camera",
    metavar="SOURCE",
    help="picamera2, /dev/video0, a folder to watch, replay:PATH of images or a video, or simulated.",
)
@click.option("--record", type=FILE, metavar="DIR", help="Where all that is seen and said is kept.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8000", help="Beyond this machine it needs --users.")
@click.option("--users", type=FILE, help="Who may log in: made by edgeall rig-user.")
@click.option("--demo", is_flag=True, help="A simulated slide, a model of its cells, a record in build/rig-demo.")
@click.option("--install-service", is_flag=True, help="Have systemd run it from now on; needs root.")
def rig(
    model: Path | None,
    camera: str | None,
    record: Path | None,
    listen: str,
    users: Path | None,
    demo: bool,
    install_service: bool,
) -> None:
    """Judge what a microscope's camera sees, keep a record, and show it on a page in the browser.

    \b
    edgeall rig --demo
    edgeall rig model.tflite --camera picamera2 --record slides
    """
    from .rig import serve as room

    if demo:
        model, camera = model or room.DEMO_MODEL, camera or room.SIMULATED
        record = record or Path("build/rig-demo")
    if model is None or camera is None or record is None:
        raise errors.UsageError("a rig needs MODEL, --camera and --record", hint="or --demo, which brings all three")
    _note_research_use(False)
    if install_service:
        for command in room.install(model, camera, record, listen, users):
            print(command)
        return
    room.serve(model, camera, record, listen, users, note=_note, opened=room.show if demo else lambda address: None)


@_command(rig_user, "add")
@click.argument("name")
@click.option("--role", type=click.Choice(["view", "operate"]), required=True, help="Look, or also act and review.")
@click.option("--users", type=FILE, required=True, help="The file; made when missing.")
@click.option("--force", is_flag=True, help="Give somebody who is there a new role and password.")
def rig_user_add(name: str, role: str, users: Path, force: bool) -> None:
    """Let somebody in; the password is the first line of stdin."""
    from .rig.web.access import add_user

    if sys.stdin.isatty():
        from getpass import getpass

        _note("password (it is not shown):")
        try:
            password = getpass("")
        except EOFError:
            raise click.Abort from None
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    add_user(users, name, role, password, replace=force)
    _note(f"{name} may {role}: {users}")


@_command(rig_user, "rm")
@click.argument("name")
@click.option("--users", type=FILE, required=True, help="The file.")
def rig_user_rm(name: str, users: Path) -> None:
    """Let somebody in no longer; a running rig forgets them at once."""
    from .rig.web.access import remove_user

    remove_user(users, name)


@_command(record, "verify")
@click.argument("folder", type=FILE)
@click.option("--head", metavar="HASH", help="A head noted earlier: shows that no row up to it was cut off.")
@_JSON
@click.pass_context
def record_verify(ctx: click.Context, folder: Path, head: str | None, json: bool) -> None:
    """Find every alteration of a record: rows changed, removed, inserted or reordered; images missing or altered.

    Rows cut off at the end leave no trace in the record itself. Note the head that is printed, somewhere else, and give
    it with --head later.
    """
    from .rig.record.check import as_json, check, check_text

    found = check(folder, head)
    _print(as_json(found), json, lambda: check_text(found))
    ctx.exit(1 if found.problems else 0)


@_command(record, "prune")
@click.argument("folder", type=FILE)
@click.option("--before", type=click.DateTime(["%Y-%m-%d"]), required=True, help="UTC.")
@_JSON
def record_prune(folder: Path, before: datetime, json: bool) -> None:
    """Remove images recorded before a day; rows stay, and the removal is recorded."""
    from datetime import timezone

    from .console.tables import record as facts
    from .rig.record.record import Record

    with Record(folder, create=False) as opened:
        pruned = opened.prune_images(before.replace(tzinfo=timezone.utc))
    result = {"images": pruned.images, "freed_bytes": pruned.freed_bytes}
    _print(result, json, lambda: facts(result))


@_command(record, "export")
@click.argument("folder", type=FILE)
@click.option(
    "--session", type=click.IntRange(1, 2**62), required=True, help="Its number: of the slide's page, /slides/2."
)
@click.option("--out", type=FILE, required=True, help="A new or empty folder.")
@_JSON
def record_export(folder: Path, session: int, out: Path, json: bool) -> None:
    """Write a session's frames as a table, its images, and the reviewed ones as a folder for `edgeall train`."""
    from .console.tables import record as facts
    from .rig.record.export import export_session
    from .rig.record.record import Record

    with Record(folder, create=False) as opened:
        result = export_session(opened, session, out)
    _print(result, json, lambda: facts(result))
    _note_research_use(json)


@_command(data, "ls")
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@_JSON
def data_ls(path: Path, json: bool) -> None:
    """Classes, counts, sizes, subjects, duplicates and unreadable files.

    \b
    Layouts:
      ROOT/<class>/<images>               one folder a class
      fold_*/<all|hem>/UID_<subject>_...  C-NMC 2019 as distributed
      FILE.csv                            columns path,label and optionally subject
    """
    from .console.progress import Progress
    from .train.data.listing import data_text, list_data

    facts = list_data(path, Progress())
    _print(facts, json, lambda: data_text(facts))
    _note_synthetic(facts["synthetic"])


@_command(data, "synth")
@click.option("--out", type=FILE, required=True, help="A new or empty folder.")
@click.option("--images", type=click.IntRange(1), required=True, help="How many in all.")
@click.option("--seed", type=SEED, default=0)
@click.option(
    "--layout", type=click.Choice(["all4", "cnmc"]), default="all4", help="Four-class fields, or single cells."
)
@click.option("--size", type=click.IntRange(1), help="Pixels a side.  [default: 224 for all4, 450 for cnmc]")
@_JSON
def data_synth(out: Path, images: int, seed: int, layout: Layout, size: int | None, json: bool) -> None:
    """Draw a labelled set of synthetic smears, with the masks and boxes of their cells."""
    from .console.progress import Progress
    from .console.tables import record
    from .train.data.synth import synthesize

    with Progress().task("drawing", images) as advance:
        summary = synthesize(out, images, seed, layout, size, on_progress=lambda done, _: advance(done, ""))
    _print(summary, json, lambda: record(summary))
    _note_synthetic(True)


@_command(data, "audit")
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@click.option("--html", type=FILE, help="Write a self-contained page with examples.")
@click.option("--seed", type=SEED, default=0)
@_JSON
def data_audit(path: Path, html: Path | None, seed: int, json: bool) -> None:
    """What would make a network trained on this data seem better than it is: duplicates, shortcuts, imbalance."""
    from .console.progress import Progress
    from .edge_runtime.images import refuse_inside
    from .train.data.audit import audit, audit_text

    if html is not None:
        refuse_inside(path, html, "--html")
    found = audit(path, Progress(), seed)
    _print(found.facts, json, lambda: audit_text(found.facts))
    if html is not None:
        from .train.data.audit_report import write_audit

        write_audit(found, html)
        _note(f"{html}: written")
    _note_synthetic(found.facts["synthetic"])
    _note_research_use(json)


@_command(data, "leak")
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@click.option("--model", default="mobilenet_v2", help="Backbone of the features.")
@click.option("--alpha", type=float, help="Its width multiplier.  [default: 1.0 where it has one]")
@click.option("--weights", default="imagenet", help="imagenet or a no_top weights file.")
@click.option("--input-size", type=click.IntRange(1), help="Pixels a side.  [default: the backbone's]")
@click.option("--per-class", default="700/150/150", metavar="TRAIN/VAL/TEST", help="Images of every class.")
@click.option("--augment", type=click.Choice(AUGMENTS[1:]), default="studies", help="How copies are made.")
@_SPLIT_BY
@_EMBARGO
@click.option("--seeds", type=click.IntRange(2), default=10, help="Times that the dealing is repeated.")
@_CACHE_DIR
@_JSON
def data_leak(path: Path, json: bool, **settings: Any) -> None:
    """What augmenting before the split leaks into the test side, measured with a probe of a frozen backbone."""
    from .console.progress import Progress
    from .optimize.experiments.leak import leak_text, measure_leak

    result = measure_leak(path, **settings, progress=Progress())
    _print(result, json, lambda: leak_text(result))
    _note_synthetic(result["synthetic"])


@_command(data, "fetch")
@click.argument("name", type=click.Choice(["all4", "cnmc2019"]))
@click.option("--out", type=FILE, help="Where to put it.  [default: kagglehub's cache]")
def data_fetch(name: str, out: Path | None) -> None:
    """Download a public set from Kaggle and check it; print where it lies."""
    from .train.data.fetch import fetch

    print(fetch(name, out))


@_command(cli, "demo")
@click.option("--out", type=FILE, default=Path("build/demo"), help="Where everything of it goes.")
def demo(out: Path) -> None:
    """Draw synthetic smears, train, quantize, evaluate and time: the whole chain in some minutes."""
    from .console.progress import Progress
    from .optimize.demo import demo as run_demo
    from .optimize.demo import demo_text

    result = run_demo(out, Progress())
    _print(result, False, lambda: demo_text(result))
    _note_research_use(False)


def _listed(text: str | None) -> tuple[str, ...]:
    """What a comma-separated option holds."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in _listed(text))
    except ValueError:
        raise errors.UsageError(f"--{name} {text}: not numbers", hint="separate them by commas") from None


def _print(value: Any, json: bool, tables: Callable[[], str]) -> None:
    print(dumps(value) if json else tables())


def _one_of(ctx: click.Context, **flags: bool) -> str | None:
    """Which of these flags is set. Of several it is the command line's before the environment's before the file's."""
    for source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        chosen = [name for name, is_set in flags.items() if is_set and ctx.get_parameter_source(name) is source]
        if len(chosen) > 1:
            raise errors.UsageError(f"--{' and --'.join(chosen)} exclude each other", hint="choose one of them")
        if chosen:
            return chosen[0]
    return None


class _Skipped:
    """Counts what lies in folders and isn't taken for an image, and keeps the first of it."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def __call__(self, path: Path, reason: str) -> None:
        self._count, self._first = self._count + 1, self._first or f"{path}: {reason}"

    def note(self) -> None:
        if self._count:
            _note(f"{self._count} skipped, first: {self._first}")


def _note(text: str) -> None:
    click.echo(text, err=True)


def _note_synthetic(drawn: bool) -> None:
    """Under everything that drawn images gave."""
    if drawn:
        _note(SYNTHETIC)


def _note_research_use(machine: bool) -> None:
    """Under every table for people that shows what a model says."""
    if not machine:
        from .edge_runtime.manifest import RESEARCH_USE

        _note(RESEARCH_USE)
