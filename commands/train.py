"""`edgeall train` and `edgeall evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..train.config import TrainSettings
from ..train.evaluation.config import EvaluateSettings
from .options import (
    CACHE_DIR,
    CELL_MODEL,
    FILE,
    INPUT_SIZE,
    JSON,
    LABELS,
    MEAN,
    NEW_SPLIT,
    POSITIVE,
    SEED,
    SHARE,
    STD,
    command,
    option,
)
from .output import note, note_research_use, note_synthetic, print_result

if TYPE_CHECKING:
    from ..train.evaluation.evaluate import Evaluation
    from ..train.segmentation.results import MaskEvaluation

_setting = partial(option, TrainSettings)
_evaluated = partial(option, EvaluateSettings)


@command("train")
@_setting("data", "Folder of images (one folder per class, or C-NMC), or a CSV manifest.")
@_setting("out", "Run folder to create. The same command resumes an interrupted run.")
@_setting("task", "Classify images, or segment cells.")
@_setting("model", "Backbone, see `edgeall models`.")
@_setting("alpha", "Width multiplier of the backbone.  [default: 1.0 if it has one]")
@_setting("weights", "imagenet (downloaded), none, a file of no_top weights, or a run with the same backbone.")
@_setting("input_size", "Input size in pixels.  [default: the backbone's]", type=click.IntRange(1))
@_setting("epochs_head", "Epochs of the head stage, on cached features.", type=click.IntRange(0))
@_setting(
    "epochs_finetune",
    "Epochs of the fine-tuning stage.  [default: about 36,000 training images in all, 8 to 60 epochs]",
    type=click.IntRange(0),
)
@_setting("batch_size", "Images per training step.  [default: 32; 16 for segmentation]", type=click.IntRange(1))
@_setting("lr_head", "Peak learning rate of the head stage.")
@_setting("lr_finetune", "Peak learning rate of the fine-tuning stage.  [default: 0.0005; 0.002 for segmentation]")
@_setting("dropout", "Dropout before the last layer.", type=SHARE)
@_setting("dense", "Units of a hidden dense layer before the last.  [default: none]", type=click.IntRange(1))
@_setting(
    "augment",
    "Augmentation of training images: none, light, microscope, studies, or a list of brightness, contrast, rotation, "
    "flip, shift, shear, zoom, crop and jpeg. crop:0.7 changes a share of 0.7 of the images.",
)
@_setting("optimizer", "Optimizer of both stages.")
@_setting("schedule", "Learning rate after the warm-up. step: a tenth after 50 % of the steps, a hundredth after 75 %.")
@_setting(
    "weight_decay",
    "Decoupled weight decay of the kernels.  [default: 0; 0.004 for adamw]",
    type=SHARE,
)
@_setting("warmup", "Share of the steps in which the learning rate rises.", type=SHARE)
@_setting(
    "unfreeze",
    "Number of backbone layers to fine-tune, from the last.  [default: see edgeall models]",
    type=click.IntRange(1),
)
@_setting("class_weights", "Weight classes by their inverse frequency.", name="--class-weights/--no-class-weights")
@_setting(
    "patience",
    "Stop a stage after this many epochs without a lower validation loss.  [default: 8 for the head, none for"
    " fine-tuning; 12 for segmentation]",
    type=click.IntRange(1),
)
@NEW_SPLIT
@_setting("split", "Use the split of this split.json or run folder.")
@_setting("per_class", "Images per class in each subset, as in 700/150/150.", metavar="TRAIN/VAL/TEST")
@POSITIVE
@_setting("seed", "Seed of every random draw.", type=SEED)
@_setting(
    "teacher",
    "Distil from this run. Repeat for an ensemble of teachers.",
    type=FILE,
    multiple=True,
    metavar="RUN",
)
@_setting(
    "teacher_weight",
    "Share of the teachers in the loss.  [default: 0.5]",
    type=click.FloatRange(0, 1, min_open=True),
)
@CACHE_DIR
@_setting("force", "Overwrite a complete run, or a run with other settings.")
@JSON
def train(json: bool, **settings: Any) -> None:
    """Fine-tune a backbone on labelled images, and evaluate it on the test subset."""
    from ..console.progress import Progress
    from ..train.evaluation.text import metrics_text
    from ..train.run import train as train_run

    run = train_run(TrainSettings(**settings), Progress())
    print_result(run, json, lambda: metrics_text(run.metrics["test"]))
    if (settings["out"] / "run.json").exists():  # of several workers only the first one writes
        note(f"{settings['out']}: report.html, model.keras, predictions.csv, run.json")
    note_synthetic(run.data.synthetic)
    note_research_use(json)


@command("evaluate")
@click.argument("target", metavar="RUN|MODEL", type=FILE)
@_evaluated("data", "Folder or manifest.  [default: the run's own data]")
@_evaluated("site", "External validation: images of another laboratory, compared with the model's own test subset.")
@_evaluated("side", "Subset to evaluate.  [default: test; all for other data]")
@_evaluated("split", "split.json of the model.  [default: the run's own, or the one beside MODEL]")
@LABELS
@MEAN
@STD
@INPUT_SIZE
@CACHE_DIR
@_evaluated(
    "robust", "Also measure accuracy under changes of lamp, stain, focus, sensor and file.", name="--robustness"
)
@click.option("--plot", type=FILE, help="Write the accuracy under these changes as a PNG.")
@_evaluated("against", "Paired comparison with another model on the same images.", metavar="OTHER")
@click.option(
    "--html", type=FILE, help="Write a self-contained page: reliability and risk-coverage plots; overlays of masks."
)
@_evaluated(
    "explain", "Write overlays of the worst predictions of a run (Grad-CAM), or of the worst masks.", metavar="DIR"
)
@_evaluated(
    "context",
    "Also measure accuracy on cells alone, on the background alone, without corners and with the background of another"
    " class.",
)
@_evaluated("by_cells", "Model file of cells: classify each field of --data by its whole cells.")
@CELL_MODEL
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
    """Compute the metrics of a run or of a model.tflite on the same images."""
    from ..console.progress import Progress
    from ..edge_runtime.images import refuse_inside
    from ..train.data.dataset import load_dataset
    from ..train.data.masked import load_masked
    from ..train.data.synth import is_synthetic
    from ..train.evaluation.evaluate import Evaluation
    from ..train.evaluation.evaluate import evaluate as evaluate_target
    from ..train.runs import data_root, load_run

    for flag, out in (("--plot", plot), ("--html", html), ("--explain", settings["explain"])):
        if out is not None:
            own = data_root(load_run(target)) if target.is_dir() and data is None else data
            for folder in (own, site):
                if folder is not None:
                    refuse_inside(folder, out, flag)
    robust = robustness or plot is not None
    settings |= {"data": data, "site": site, "labels_file": labels, "robust": robust, "html": html}
    found = evaluate_target(target, EvaluateSettings(**settings), Progress())
    texts = _texts(found) if html is not None or not json else []
    print_result(found, json, lambda: "\n\n".join(text for _, text in texts))
    if plot is not None and found.robustness is not None:
        from ..train.reports.plots import plot_robustness

        plot_robustness(found.robustness, plot)
        note(f"{plot}: written")
    drawn = target.is_dir() and load_run(target).data.synthetic
    list_data = load_dataset if isinstance(found, Evaluation) else load_masked
    drawn = drawn or any(is_synthetic(list_data(folder)) for folder in (data, site) if folder is not None)
    if html is not None and isinstance(found, Evaluation):
        from ..train.reports.model_report import write_model_report

        title = f"{target} on {site or data or 'its own data'}"
        write_model_report(html, title, texts, found.report, found.robustness, drawn)
        note(f"{html}: written")
    note_synthetic(drawn)
    note_research_use(json)


def _texts(found: Evaluation | MaskEvaluation) -> list[tuple[str, str]]:
    """Titles and texts of an evaluation."""
    from ..train.evaluation.against import against_text
    from ..train.evaluation.context import context_text
    from ..train.evaluation.evaluate import Evaluation
    from ..train.evaluation.robustness import robustness_text
    from ..train.evaluation.site import site_text
    from ..train.evaluation.text import metrics_text

    if not isinstance(found, Evaluation):
        from ..train.segmentation.report import evaluation_texts

        return evaluation_texts(found)
    texts = [("Figures", metrics_text(found.metrics, found.report))]
    if found.site is not None:
        texts.append(("External validation", site_text(found.site)))
    if found.against is not None:
        texts.append(("Paired comparison", against_text(found.against)))
    if found.robustness is not None:
        texts.append(("When the microscope changes", robustness_text(found.robustness)))
    if found.context is not None:
        texts.append(("What the classifier looks at", context_text(found.context)))
    return texts
