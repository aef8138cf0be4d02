"""`edgeall run`, `bench`, `compare-bench`, `inspect` and `doctor`: what runs a model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import click

from ..edge_runtime.errors import GateError, UsageError
from ..edge_runtime.tools.bench_config import BenchConfig
from .options import (
    CELL_MODEL,
    DEVICE_PYTHON,
    FILE,
    INPUT_SIZE,
    JSON,
    LABELS,
    MEAN,
    RED_CELL_PX,
    REQUIRE_SIGNATURE,
    STD,
    THREADS,
    UM_PER_PX,
    WHEEL,
    WORKERS,
    command,
    one_of,
    option,
)
from .output import Skipped, note, note_research_use, print_result

if TYPE_CHECKING:
    from ..edge_runtime.bundle import Bundle
    from ..edge_runtime.classifier import Classifier
    from ..edge_runtime.pipeline import Prediction


class _Result(Protocol):
    """What may be an error."""

    @property
    def error(self) -> str | None: ...


T = TypeVar("T", bound=_Result)
_benched = partial(option, BenchConfig)


@command("run")
@click.argument("model", type=FILE)
@click.argument("paths", metavar="IMAGE|DIR...", nargs=-1, required=True, type=click.Path())
@click.option("--json", is_flag=True, help="Print one JSON object per line.")
@click.option("--csv", is_flag=True, help="Print CSV.")
@click.option(
    "--explain",
    type=FILE,
    metavar="DIR",
    help="Write an overlay for each image that shows the evidence for its label (see quantize --explain).",
)
@click.option(
    "--masks", type=FILE, metavar="DIR", help="Segmentation model: write a mask and an overlay for each image."
)
@click.option(
    "--by-cells",
    is_flag=True,
    default=None,
    help="Model of cells: classify each field by its whole cells, with the mean of their probabilities.",
)
@CELL_MODEL
@RED_CELL_PX
@UM_PER_PX
@LABELS
@MEAN
@STD
@INPUT_SIZE
@WORKERS
@THREADS
@REQUIRE_SIGNATURE
@click.pass_context
def run_model(
    ctx: click.Context, /, model: Path, paths: tuple[str, ...], json: bool, csv: bool, **settings: Any
) -> None:
    """Classify images, on all cores. With a segmentation model: find cells, nuclei and cytoplasm.

    An unreadable image gives an error line, and the other images are still processed. The exit status is 1 if no
    image could be processed. A segmentation model and --by-cells measure the scale in each image, unless --red-cell-px
    or --um-per-px gives it.
    """
    from ..edge_runtime.bundle import open_bundle

    form = one_of(ctx, json=json, csv=csv)
    bundle = open_bundle(model, settings["require_signature"])
    lines, taken = (_by_cells, _OF_CELLS) if settings["by_cells"] else _OF_TASK[bundle.task]
    for name in sorted(_OF_CELLS.union(*(names for _, names in _OF_TASK.values())) - taken):
        if settings[name] is not None:
            option = name.replace("_", "-")
            what = "is not used with --by-cells" if settings["by_cells"] else f"is not for a {bundle.task} model"
            raise UsageError(f"{model}: --{option} {what}", hint=f"leave --{option} out")
    skipped, counts = Skipped(), Counter[bool]()
    for line in lines(ctx, bundle, paths, form or "table", settings, skipped, counts):
        print(line, flush=True)
    if counts[False]:
        what = "segmented" if bundle.task == "segmentation" else "classified"
        note(f"{counts[False]} of {counts.total()} images could not be {what}")
    skipped.note()
    note_research_use(form is not None)
    ctx.exit(0 if counts[True] else 1)


def _classify(
    ctx: click.Context,
    bundle: Bundle,
    paths: tuple[str, ...],
    form: str,
    settings: dict[str, Any],
    skipped: Skipped,
    counts: Counter[bool],
) -> Iterator[str]:
    """The lines of a classifier: with all cores for a single image, with several interpreters for a folder."""
    from ..edge_runtime.drift import drift_groups
    from ..edge_runtime.pipeline import classify
    from ..edge_runtime.tasks import ForeignFacts, open_given
    from ..edge_runtime.tools.layout import choose_layout
    from ..edge_runtime.tools.predictions import prediction_lines

    single = len(paths) == 1 and not os.path.isdir(paths[0])
    facts = ForeignFacts(*(settings[name] for name in ("labels", "mean", "std", "input_size")))
    classifier = cast("Classifier", open_given(bundle, settings["threads"] or (None if single else 1), facts))
    choose = partial(
        choose_layout, classifier, interpreters=settings["workers"], threads=settings["threads"], note=note
    )
    groups = {} if single else drift_groups(classifier)
    predictions = classify(classifier, paths, None if single else choose, skipped, with_facts=bool(groups))
    if groups:
        from ..edge_runtime.tools.drift import followed

        predictions = followed(classifier, groups, predictions, note)
    if settings["explain"] is not None:
        predictions = _explained(ctx, classifier, predictions, paths, settings["explain"])
    return prediction_lines(_counted(predictions, counts), classifier.labels, form)


def _segment(
    ctx: click.Context,
    bundle: Bundle,
    paths: tuple[str, ...],
    form: str,
    settings: dict[str, Any],
    skipped: Skipped,
    counts: Counter[bool],
) -> Iterator[str]:
    """The lines of a segmentation model; its masks are written into a folder that is locked until the command ends."""
    from ..edge_runtime.files import output_lock
    from ..edge_runtime.images import refuse_inside
    from ..edge_runtime.segmenter import Segmenter
    from ..edge_runtime.threads import Threads
    from ..edge_runtime.vision.finder import CellFinder, finder_pool
    from ..edge_runtime.vision.masks_files import segment_files, segmented_lines
    from ..edge_runtime.vision.scale import wanted_scale

    out = settings["masks"]
    scale = wanted_scale(settings["um_per_px"], settings["red_cell_px"])
    images = None if any(map(os.path.isdir, paths)) else len(paths)

    def open_one(threads: int | None) -> CellFinder:
        return CellFinder(Segmenter.from_bundle(bundle, threads=threads))

    finder = finder_pool(open_one, images, settings["threads"])
    if out is not None:
        for path in paths:
            refuse_inside(Path(path), out, "--masks")
        ctx.with_resource(output_lock(out, "run"))
    found = segment_files(finder, paths, scale, out, skipped, ctx.with_resource(Threads(finder.count)))
    return segmented_lines(_counted(found, counts), form)


def _by_cells(
    ctx: click.Context,
    bundle: Bundle,
    paths: tuple[str, ...],
    form: str,
    settings: dict[str, Any],
    skipped: Skipped,
    counts: Counter[bool],
) -> Iterator[str]:
    """The lines of a classifier of cells, for the fields that they lie in."""
    from ..edge_runtime.threads import Threads
    from ..edge_runtime.tools.predictions import prediction_lines
    from ..edge_runtime.vision.by_cells import classify_by_cells, open_cell_classifier
    from ..edge_runtime.vision.finder import finder_pool, open_finder
    from ..edge_runtime.vision.scale import wanted_scale

    scale = wanted_scale(settings["um_per_px"], settings["red_cell_px"])
    classifier = open_cell_classifier(bundle, settings["threads"] or 1)
    images = None if any(map(os.path.isdir, paths)) else len(paths)
    finder = finder_pool(partial(open_finder, settings["cell_model"]), images, settings["threads"])
    threads = ctx.with_resource(Threads(finder.count))
    predictions = classify_by_cells(classifier, finder, paths, scale, skipped, threads)
    return prediction_lines(_counted(predictions, counts), classifier.labels, form)


_OF_TASK = {
    "classification": (_classify, {"explain", "labels", "mean", "std", "input_size", "workers"}),
    "segmentation": (_segment, {"masks", "red_cell_px", "um_per_px"}),
}
"""How `edgeall run` runs a model of each task, and the options that not all of them have."""
_OF_CELLS = {"by_cells", "cell_model", "red_cell_px", "um_per_px"}


def _counted(results: Iterable[T], counts: Counter[bool]) -> Iterator[T]:
    """The results, while those without an error and the others are counted."""
    for result in results:
        counts[result.error is None] += 1
        yield result


def _explained(
    ctx: click.Context, classifier: Classifier, predictions: Iterator[Prediction], paths: Sequence[str], out: Path
) -> Iterator[Prediction]:
    """The predictions; for each an overlay is written to ``out``, which is locked until the command ends."""
    from ..edge_runtime.files import output_lock
    from ..edge_runtime.images import refuse_inside
    from ..edge_runtime.tools.explain import Explainer

    for path in paths:
        refuse_inside(Path(path), out, "--explain")
    ctx.with_resource(output_lock(out, "run"))
    explainer = Explainer(classifier, out)

    def drawn() -> Iterator[Prediction]:
        for prediction in predictions:
            if prediction.error is None:
                explainer.draw(prediction)
            yield prediction

    return drawn()


@command("bench")
@click.argument("model", type=FILE)
@_benched(
    "images",
    "Folder of images; with one folder per class, accuracy is measured too.  [default: the golden images]",
)
@_benched("threads", "Threads of the interpreter in the single-stream measurement.", type=click.IntRange(1))
@_benched("seconds", "Minimum duration of each measurement in seconds.", type=click.FloatRange(0, min_open=True))
@_benched("min_queries", "Minimum number of images in each measurement.", type=click.IntRange(1))
@_benched(
    "repetitions",
    "Repetitions of the measurement. A spread over 5 % gives a warning.",
    type=click.IntRange(1),
    default=3,
)
@_benched("sweep", "Also measure other numbers of threads and interpreters.", name="--sweep/--no-sweep", default=True)
@_benched("profile", "Also measure the time of each operator.")
@click.option("--html", type=FILE, help="Write a self-contained page.")
@click.option(
    "--on",
    metavar="TARGET",
    help="Run on another device: ssh://user@host, adb:SERIAL, or a name from `edgeall devices`.",
)
@click.option(
    "--benchmark-model",
    type=FILE,
    help="With --on adb: LiteRT's benchmark_model program for the device; measures the network only.",
)
@WHEEL
@DEVICE_PYTHON
@LABELS
@MEAN
@STD
@INPUT_SIZE
@JSON
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    model: Path,
    json: bool,
    html: Path | None,
    on: str | None,
    benchmark_model: Path | None,
    **settings: Any,
) -> None:
    """Measure accuracy, latency, throughput and memory, on this device or on another one."""
    from ..edge_runtime.tools.bench import bench as bench_model
    from ..edge_runtime.tools.bench_card import bench_text, write_card

    wheel, python, labels = settings.pop("wheel"), settings.pop("device_python"), settings.pop("labels")
    if benchmark_model is not None:
        from ..console.progress import Progress
        from ..deploy.benchmark_model import benchmark_model_text
        from ..deploy.command import benchmark_model_on

        chosen = {name: settings[name] for name in ("threads", "seconds")}
        timed = benchmark_model_on(on, model, benchmark_model, **chosen, progress=Progress())
        print_result(timed, json, lambda: benchmark_model_text(timed))
        return
    if on is not None:
        from ..console.progress import Progress
        from ..deploy.bench import RemoteBench
        from ..deploy.command import bench_on, given_options
        from ..deploy.environment import Install

        forwarded = given_options(ctx, leave_out=("images", "json", "html", "on", "wheel", "device_python"))
        job = RemoteBench(model, settings["images"], forwarded, Install(wheel, python))
        result = bench_on(on, job, Progress())
    else:
        result = bench_model(model, BenchConfig(labels_file=labels, **settings), note=note)
    print_result(result, json, lambda: bench_text(result))
    if html is not None:
        write_card(result, html)
        note(f"{html}: written")
    for warning in result.warnings:
        note(f"warning: {warning}")
    note_research_use(json)


@command("compare-bench")
@click.argument("before", metavar="A.json", type=FILE)
@click.argument("after", metavar="B.json", type=FILE)
@click.option(
    "--max-regression", metavar="PERCENT", default="5%", help="Status 3 if a figure of B is worse by more than this."
)
@click.option("--across-models", is_flag=True, help="Compare although the model files differ.")
@click.option("--across-images", is_flag=True, help="Compare although the images differ.")
@click.option("--across-devices", is_flag=True, help="Compare although the devices or interpreters differ.")
@JSON
def compare_bench(before: Path, after: Path, max_regression: str, json: bool, **across: bool) -> None:
    """Compare two results of `edgeall bench --json` and fail on a regression.

    \b
    edgeall bench model.tflite --images smears --json > before.json
    edgeall compare-bench before.json after.json --max-regression 5%
    """
    from ..edge_runtime.tools.compare_bench import compare_bench as compare_files
    from ..edge_runtime.tools.compare_bench import compare_text

    result = compare_files(before, after, max_regression, **across)
    print_result(result, json, lambda: compare_text(result))
    if result.regressions:
        raise GateError(
            f"{after}: worse than {before} by more than {result.max_regression_percent:g} %: "
            + ", ".join(result.regressions)
        )


@command("inspect")
@click.argument("model", type=FILE)
@REQUIRE_SIGNATURE
@JSON
@click.pass_context
def inspect(ctx: click.Context, model: Path, require_signature: Path | None, json: bool) -> None:
    """Show a model's manifest, quantization, operators and sizes, and check its digest and golden images."""
    from ..edge_runtime.bundle import open_bundle
    from ..edge_runtime.tools.inspect import inspect_model, inspect_text

    if require_signature is not None:
        open_bundle(model, require_signature)
    found = replace(inspect_model(model), signature_ok=None if require_signature is None else True)
    if require_signature is not None:
        note(f"{model}: signed with the key of {require_signature}")
    print_result(found, json, lambda: inspect_text(found))
    note_research_use(json)
    ctx.exit(1 if found.golden_ok is False else 0)


@command("doctor")
@JSON
@click.pass_context
def doctor(ctx: click.Context, json: bool) -> None:
    """Check that this machine can run models. Each problem is shown with the command that fixes it."""
    from ..edge_runtime.tools.doctor import diagnose, doctor_text
    from ..edge_runtime.tools.machine import this_machine

    result = diagnose(this_machine())
    print_result(result, json, lambda: doctor_text(result))
    ctx.exit(0 if result.ok else 1)
