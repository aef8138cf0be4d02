"""`edgeall train` and `edgeall evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    AUGMENTS,
    CACHE_DIR,
    EMBARGO,
    FILE,
    INPUT_SIZE,
    JSON,
    LABELS,
    MEAN,
    SEED,
    SIDES,
    SPLIT_BY,
    STD,
    command,
)
from .output import note, note_research_use, note_synthetic, print_result


@command("train")
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
@SPLIT_BY
@EMBARGO
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
@CACHE_DIR
@click.option("--force", is_flag=True, help="Overwrite a complete run, or one of other settings.")
@JSON
def train(json: bool, **settings: Any) -> None:
    """Fine-tune a backbone on a folder of images, evaluate it on the test side and report."""
    from ..console.progress import Progress
    from ..train.evaluation.text import metrics_text
    from ..train.run import TrainSettings
    from ..train.run import train as train_run

    run = train_run(TrainSettings(**settings), Progress())
    print_result(run, json, lambda: metrics_text(run["metrics"]["test"]))
    if (settings["out"] / "run.json").exists():  # of several machines only the first one writes
        note(f"{settings['out']}: report.html, model.keras, predictions.csv, run.json")
    note_synthetic(run["data"]["synthetic"])
    note_research_use(json)


@command("evaluate")
@click.argument("target", metavar="RUN|MODEL", type=FILE)
@click.option("--data", type=FILE, help="Folder or manifest.  [default: the run's own]")
@click.option("--site", type=FILE, help="Another laboratory's images, instead: beside the model's own test side.")
@click.option("--side", type=click.Choice([*SIDES, "all"]), help="Of the split.  [default: test; all of other data]")
@click.option("--split", type=FILE, help="The model's split.json.  [default: the run's own, or the one beside MODEL]")
@LABELS
@MEAN
@STD
@INPUT_SIZE
@CACHE_DIR
@click.option("--robustness", is_flag=True, help="Also under changes of lamp, stain, focus, sensor and file.")
@click.option("--plot", type=FILE, help="Write the accuracy under those changes as a PNG.")
@click.option("--against", type=FILE, metavar="OTHER", help="Hold MODEL against this one on the same images.")
@click.option("--html", type=FILE, help="Write a self-contained page, with reliability and risk against coverage.")
@click.option("--explain", type=FILE, metavar="DIR", help="Of a run: draw there what speaks for its worst answers.")
@JSON
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
    from ..console.progress import Progress
    from ..edge_runtime.images import refuse_inside
    from ..train.data.dataset import load_dataset
    from ..train.data.synth import is_synthetic
    from ..train.evaluation.evaluate import evaluate as evaluate_target
    from ..train.evaluation.text import metrics_text
    from ..train.runs import data_root, load_run

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
        from ..train.evaluation.site import site_text

        texts.append(("Beside its own test side", site_text(metrics["site"])))
    if "against" in metrics and texts:
        from ..train.evaluation.against import against_text

        texts.append(("Against another model", against_text(metrics["against"])))
    if robust and texts:
        from ..train.evaluation.robustness import robustness_text

        texts.append(("When the microscope changes", robustness_text(metrics["robustness"])))
    print_result(metrics, json, lambda: "\n\n".join(text for _, text in texts))
    if plot is not None:
        from ..train.reports.plots import plot_robustness

        plot_robustness(metrics["robustness"], plot)
        note(f"{plot}: written")
    drawn = target.is_dir() and load_run(target)["data"]["synthetic"]
    drawn = drawn or any(is_synthetic(load_dataset(folder)) for folder in (data, site) if folder is not None)
    if html is not None:
        from ..train.reports.model_report import write_model_report

        write_model_report(html, f"{target} on {site or data or 'its own data'}", texts, metrics, drawn)
        note(f"{html}: written")
    note_synthetic(drawn)
    note_research_use(json)
