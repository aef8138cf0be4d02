"""A trained run to one verified, packed ``model.tflite``."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..console.progress import Progress
from ..edge_runtime import parallel
from ..edge_runtime.calibration import calibrated
from ..edge_runtime.classifier import Classifier
from ..edge_runtime.errors import EdgeallError, GateError, UsageError
from ..edge_runtime.files import held, scratch
from ..edge_runtime.images import find_images, open_rgb
from ..edge_runtime.manifest import Manifest
from ..edge_runtime.novelty import is_unfamiliar, read_familiar
from ..edge_runtime.preprocess import InputSpec
from ..edge_runtime.vision import quality
from ..models.keras_compat import exact_float32, tf
from ..train.batches import Images, normalized, plain, shuffled
from ..train.data import cache
from ..train.data.split import Split, check_split
from ..train.data.synth import Layout, synthesize
from ..train.evaluation.metrics import metrics_of
from ..train.evaluation.reliability import sent_to_review, trust
from ..train.evaluation.robustness import robustness, robustness_text
from ..train.evaluation.text import metrics_text
from ..train.fit import Stage, fit
from ..train.reports.model_report import write_model_report
from ..train.runs import (
    data_root,
    image_folder,
    input_spec,
    load_model,
    load_own_split,
    load_run,
    load_sides,
    run_digest,
    source_revision,
    versions,
)
from .packaging.card import model_card
from .packaging.golden import choose_golden
from .packaging.pack import pack
from .pruning.cluster import FEWEST, MOST
from .quantization.calibrate import calibration_of, review_rule, wanted_rule
from .quantization.convert import (
    INTEGER_SCHEMES,
    SCHEMES,
    compressed_bytes,
    convert,
    layers_in_float,
    sparsity,
    with_second_output,
)
from .quantization.fold import fold_batch_normalization
from .quantization.layer_error import LayerError, layer_errors
from .quantization.mild import validation_answers
from .quantization.novelty import IMAGES as NOVELTY_IMAGES
from .quantization.novelty import fit_novelty
from .quantization.placement import (
    WITH_WEIGHTS,
    Placement,
    Range,
    extremes,
    images_at_once,
    input_range,
    place,
    ranges,
    rounded,
)
from .quantization.summary import quantize_text
from .quantization.verify import answers, compare, predict, shown

if TYPE_CHECKING:
    from .quantization.qat import QuantizationAware

FOLD_TOLERANCE = 1e-4
"""Largest difference of a probability that folding BatchNormalization may make; see `_check_folding` for the one way
that it may be more."""
ROUNDING = 2.0**-22
"""Relative change of every weight that stands for the rounding of float32."""
CALIBRATION_BATCH = 32
"""An activation's range is the mean over batches of this size of its extremes: less at the mercy of a single image
than the extremes of all."""
CALIBRATION_SEED = 2
"""Added to the run's seed: calibration images are augmented otherwise than those of training and of QAT."""
REPORT_IMAGES = 64
"""Images of the validation side that the layer report is made with."""
QUANTIZATION_FACTS = (
    "scheme",
    "drop_points",
    "agreement",
    "max_abs_difference",
    "tflite_float",
    "float_layers",
    "sparsity_frac",
    "clusters",
)
REVIEW_FACTS = (
    *("reviewed", "wrong", "wrong_reviewed", "wrong_not_reviewed"),
    *("accuracy_of_the_rest", "sensitivity_with_review"),
)
"""What review, set on the validation side, does to the side that the manifest's metrics are of."""
GOLDEN_SOURCES = ("test", "synthetic")
GOLDEN_IMAGES = 2
GOLDEN_CANDIDATES = 48
GATE_IMAGES = 300
"""Of the train side, that the rig's quality gate is fitted to."""


def quantize(
    run: Path,
    scheme: str,
    out: Path,
    *,
    max_drop: float | None = None,
    epochs: int = 4,
    learning_rate: float = 3e-5,
    representative: int = 256,
    data: Path | None = None,
    golden: str = "test",
    side: str = "test",
    float_layers: tuple[str, ...] = (),
    clusters: int | None = None,
    layer_report: bool = False,
    robust: bool = False,
    target_sensitivity: float | None = None,
    review_budget: float | None = None,
    explain: bool = False,
    force: bool = False,
    cache_dir: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Convert, verify on the test side, gate and pack.

    Args:
        run: a complete run folder.
        scheme: one of `edgeall.optimize.quantization.convert.SCHEMES`.
        out: the file to write.
        max_drop: percentage points of test accuracy that may be lost against Keras float32.
        epochs: fine-tuning epochs of ``qat-int8``.
        learning_rate: its peak.
        representative: training images that activation ranges are measured on (integer schemes).
        data: where the images are now, if not where the run read them.
        golden: where the images that travel with the model come from: ``test``, its test side, or ``synthetic``,
            where the data may not be passed on.
        side: what the result is verified on and the manifest's metrics are of. `edgeall search` has its candidates
            verified on the validation side: the test side is for the one that it chooses.
        float_layers: layers of an integer scheme whose weights and output are left in float; what reads such an
            output then computes in float too.
        clusters: of ``qat-int8``: at most so many different values in the weights of each layer that `prune` would
            prune, so that the file compresses better; see `edgeall.optimize.pruning.cluster`.
        robust: also measure the result under corruptions, `edgeall.train.evaluation.robustness.robustness`; mean and
        worst go into the file.
        target_sensitivity: see `edgeall.optimize.quantization.calibrate.review_rule`, as the next one.
        review_budget: at most this share of images is sent to review as uncertain; 0: none.
        explain: give the last feature map as the second output, not its mean alone: `edgeall run --explain` draws with
            it where the answer comes from.
        layer_report: measure what rounding each layer costs (integer schemes), on the validation side.

    Returns:
        A summary: scheme, sizes, accuracies, agreement, per-class recalls; ``float_layers``, what computes in float
        (None: everything), ``sparsity_frac`` of the weights in the file; ``calibration``, ``decision`` and ``novelty``,
        as in the manifest; what `edgeall.train.evaluation.reliability.trust` says of the test side; ``report``, the
        page beside the file that shows it; with ``layer_report`` the ``layers``, see
        `edgeall.optimize.quantization.layer_error.LayerError`; with ``robust`` the ``robustness``.

    Raises:
        UsageError: an unknown scheme or layer, a layer option with a scheme that isn't integer, or ``out`` exists.
        DataError: the run is not complete, or the data is not what it was trained on.
        GateError: more than ``max_drop`` was lost; nothing is written.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"no scheme called {scheme!r}", hint=f"there are: {', '.join(SCHEMES)}")
    if not 0 < learning_rate <= 1:
        raise UsageError(f"--learning-rate {learning_rate:g} is no learning rate", hint="give a number above 0")
    if golden not in GOLDEN_SOURCES:
        raise UsageError(f"no golden images called {golden!r}", hint=f"there are: {', '.join(GOLDEN_SOURCES)}")
    if scheme not in INTEGER_SCHEMES and (float_layers or layer_report):
        option = "--float-layers" if float_layers else "--layer-report"
        raise UsageError(f"{option} says nothing to {scheme}", hint=f"it goes with {' and '.join(INTEGER_SCHEMES)}")
    if clusters is not None and (scheme != "qat-int8" or not FEWEST <= clusters <= MOST):
        raise UsageError(
            f"--clusters {clusters} with {scheme}", hint=f"give {FEWEST} to {MOST} of them, with --scheme qat-int8"
        )
    _check_out(out, force)
    cache_dir = cache.ready(cache_dir)
    facts = load_run(run)
    positive = [facts["labels"].index(label) for label in facts["positive_labels"]]
    wanted_rule(positive, target_sensitivity, review_budget)  # nothing is started that can't be ended
    root = data or data_root(facts)
    split = load_own_split(run, facts)
    check_split(split, root)
    spec = input_spec(facts["settings"])
    sides = load_sides(split, root, spec, cache_dir, progress)
    test = sides[side]

    model = load_model(run, facts)
    folded = fold_batch_normalization(model)
    bounds = input_range(spec)
    placement = place(folded, bounds, float_layers) if scheme in INTEGER_SCHEMES else None
    with exact_float32():
        keras_float = model.predict(plain(test, 2 * images_at_once(model)), verbose=0)
        _check_folding(keras_float, folded, test)
    progress.note(f"converting to {scheme}")
    float32 = convert(folded, "float32", spec)
    layers: list[LayerError] | None = None
    if placement:
        representatives = _stratified(sides["train"], representative, facts["settings"]["seed"])
        settings = facts["settings"]
        network, measured = folded, _measured(folded, placement, representatives, settings, progress)
        masks = _masks(folded, facts, progress)
        if scheme == "qat-int8":
            from .quantization.qat import quantization_aware  # imports tfmot

            start = quantization_aware(folded, placement, measured, masks, clusters)
            _train_quantized(
                run, start, sides, len(representatives), facts["settings"], epochs, learning_rate, progress
            )
            network, measured = start.trained(), start.measured()
        spanned = ranges(placement, measured)
        whole = with_second_output(rounded(network, placement, spanned), explain)
        flatbuffer = convert(whole, scheme, spec, placement.floats)
        if layer_report:
            layers = _layer_report(network, placement, spanned, sides["validation"], progress)
    else:
        whole = with_second_output(folded, explain)
        flatbuffer = convert(whole, scheme, spec)

    labels = split.labels
    candidate = Classifier.from_flatbuffer(flatbuffer, labels, spec, name=f"{scheme} model")
    probabilities, test_features = answers(candidate, shown(test), len(test), f"verifying {scheme}", progress)
    cost = compare(labels, test.labels, keras_float, probabilities)
    reference = Classifier.from_flatbuffer(float32, labels, spec, name="float32 model")
    tflite_float = probabilities if scheme == "float32" else predict(reference, test, "verifying float32", progress)
    conversion = compare(labels, test.labels, keras_float, tflite_float)
    summary = {
        "scheme": scheme,
        "synthetic": facts["data"]["synthetic"],
        "test_images": len(test),
        "split_level": split.level,
        "float_accuracy": cost["reference_accuracy"],
        "accuracy": cost["accuracy"],
        "drop_points": cost["drop_points"],
        "agreement": cost["agreement"],
        "max_abs_difference": cost["max_abs_difference"],
        "tflite_float": {key: conversion[key] for key in ("agreement", "max_abs_difference")},
        "per_class": cost["per_class"],
        "flatbuffer_bytes": len(flatbuffer),
        "compressed_bytes": compressed_bytes(flatbuffer),
        "float_flatbuffer_bytes": len(float32),
        "float_layers": layers_in_float(flatbuffer, [layer.name for layer in folded.layers], whole.output_names[0])
        if placement
        else None,
        "sparsity_frac": sparsity(flatbuffer),
        "clusters": clusters,
        **({} if layers is None else {"layers": layers}),
    }
    if max_drop is not None and cost["drop_points"] > max_drop:
        raise GateError(
            f"{scheme} loses {cost['drop_points']:.2f} points of {side} accuracy "
            f"({100 * cost['reference_accuracy']:.2f} % to {100 * cost['accuracy']:.2f} %), "
            f"more than --max-drop {max_drop:g}; {out} was not written",
            hint="try --scheme qat-int8, more --epochs, or a wider gate",
        )
    seed = facts["settings"]["seed"]
    fitted = validation_answers(candidate, sides["validation"], seed, progress)
    calibration = calibration_of(fitted.probabilities, fitted.truth, fitted.images) | fitted.facts()
    temperature = calibration["temperature"]
    familiar = _stratified(sides["train"], NOVELTY_IMAGES, seed)
    _, known = answers(candidate, shown(familiar), len(familiar), "what is familiar", progress)
    novelty, plane = fit_novelty(known, fitted.unchanged(fitted.features), len(labels))
    candidate.familiar = read_familiar(novelty, plane, out.name)
    scores, strange = calibrated(fitted.probabilities, temperature), is_unfamiliar(fitted.features, candidate.familiar)
    decision = review_rule(scores, fitted.truth, positive, target_sensitivity, review_budget, strange)
    if decision:
        sent = sent_to_review(scores, decision["review_below"], strange)
        assert sent is not None
        decision["reviewed_unchanged"] = float(fitted.unchanged(sent).mean())
    unfamiliar = is_unfamiliar(test_features, candidate.familiar)
    summary |= {"calibration": calibration, "decision": decision, "novelty": novelty}
    believed = trust(probabilities, test.labels, positive, temperature, decision.get("review_below"), unfamiliar)
    summary |= believed
    probabilities = calibrated(probabilities, temperature)
    metrics = metrics_of(split.side(side), labels, probabilities, facts["positive_labels"], side, split.level, seed)
    metrics |= {"ece_uncalibrated": believed["reliability"]["before"]["ece"], "aurc": believed["risk_coverage"]["aurc"]}
    if believed["review"] is not None:
        metrics |= {key: believed["review"][key] for key in REVIEW_FACTS}
    if robust:
        found = robustness(
            candidate,
            parallel.Layout(1, candidate.threads),
            image_folder(root),
            split.side(side),
            progress,
            temperature=temperature,
            review_below=decision.get("review_below"),
        )
        summary["robustness"] = found
        worst_at = f"{found['worst_at']['corruption']} at severity {found['worst_at']['severity']}"
        metrics |= {"robust_suite": found["suite"], "robust_worst_at": worst_at}
        metrics |= {f"robust_accuracy_{key}": found[key] for key in ("mean", "worst")}
        metrics |= {f"robust_ece_{key}": found[f"ece_{key}"] for key in ("mean", "worst")}
        metrics |= {f"robust_{key}": found[key] for key in ("reviewed_mean", "wrong_not_reviewed_mean")}
    source, images = _golden_images(golden, facts, split, root)
    manifest = _manifest(run, facts, split, spec, summary, metrics, source, _gate(facts, split, root))
    pack(flatbuffer, manifest, choose_golden(candidate, images, GOLDEN_IMAGES), model_card(manifest), out, plane)
    summary |= {"out": str(out), "file_bytes": out.stat().st_size}
    if side == "test":  # a search has many candidates and one report
        summary["report"] = str(out.with_suffix(".report.html"))
        _write_report(summary, metrics, manifest)
    return summary


def _write_report(summary: dict[str, Any], metrics: dict[str, Any], manifest: Manifest) -> None:
    """The page beside the model: what it gets right, and whether its probabilities can be believed."""
    shown = metrics | {
        key: summary[key] for key in ("reliability", "risk_coverage", "review", "robustness") if key in summary
    }
    texts = [("What the conversion cost", quantize_text(summary)), ("On the test side", metrics_text(shown))]
    if "robustness" in summary:
        texts.append(("When the microscope changes", robustness_text(summary["robustness"])))
    title = f"{manifest.name}, {summary['scheme']}"
    write_model_report(Path(summary["report"]), title, texts, shown, summary["synthetic"])


def _check_out(out: Path, force: bool) -> None:
    """Refuse, before any work, what can't be written at the end."""
    if out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="name the file, as in --out model.tflite")
    if out.exists() and not force:
        raise UsageError(f"{out}: exists", hint="choose another --out, or --force to overwrite it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"{out}: can't be written ({error.strerror})", hint="choose another --out") from error


def _check_folding(before: NDArray[np.float32], folded: Any, side: Images) -> None:
    """Make sure that folding left the network what it was.

    A hundred layers that have hardly been trained can blow rounding up to more than `FOLD_TOLERANCE`. How far they do
    is measured then: folding may change an answer no more than changing the last bits of all weights does.
    """

    def answers() -> Any:
        return folded.predict(plain(side, 2 * images_at_once(folded)), verbose=0)

    after = answers()
    difference = float(np.abs(before - after).max())
    if difference <= FOLD_TOLERANCE:
        return
    weights, generator = folded.get_weights(), np.random.default_rng(0)
    signs = [generator.choice(np.array([-1, 1], np.float32), value.shape) for value in weights]
    folded.set_weights([value * (1 + ROUNDING * sign) for value, sign in zip(weights, signs, strict=True)])
    noise = float(np.abs(answers() - after).max())
    folded.set_weights(weights)
    if not difference <= FOLD_TOLERANCE + noise:  # a NaN is refused too
        raise EdgeallError(
            f"folding BatchNormalization changed a probability by {difference:.2g}, rounding alone by {noise:.2g}; "
            "please report this"
        )


def _stratified(side: Images, count: int, seed: int) -> Images:
    """Up to ``count`` images, as many of each class as the classes allow, in random order."""
    generator = np.random.default_rng(seed)
    classes = np.unique(side.labels)
    share = -(-count // len(classes))
    chosen = [generator.permutation(np.flatnonzero(side.labels == label))[:share] for label in classes]
    order = generator.permutation(np.concatenate(chosen))[:count]
    return replace(side, rows=side.rows[order], labels=side.labels[order])


def _measured(
    folded: Any, placement: Placement, calibration: Images, settings: dict[str, Any], progress: Progress
) -> dict[str, Range]:
    """Extremes of the activations over the calibration images: as they are, and augmented as in training.

    Ranges of clean images alone clip what a brighter lamp makes of them.
    """
    augmented = shuffled(
        calibration,
        CALIBRATION_BATCH,
        augment=settings["augment"],
        seed=settings["seed"] + CALIBRATION_SEED,
        epoch=0,
        class_weights=None,
    ).map(lambda pixels, labels, weights: pixels)
    with progress.task("measuring activations", 2 * len(calibration)) as advance:

        def batches() -> Iterator[Any]:
            done = 0
            for batch in itertools.chain(normalized(calibration, CALIBRATION_BATCH), augmented):
                yield batch
                done += len(batch)
                advance(done, "")

        return extremes(folded, placement, batches())


def _masks(folded: Any, facts: dict[str, Any], progress: Progress) -> dict[str, NDArray[np.float32]]:
    """The zeros that quantization-aware training has to keep, of a run that was pruned to have them."""
    if facts.get("pruned", {}).get("kind") != "sparsity":
        return {}
    kernels = {layer.name: layer.get_weights()[0] for layer in folded.layers if type(layer) in WITH_WEIGHTS}
    masks = {name: (kernel != 0).astype(np.float32) for name, kernel in kernels.items() if (kernel == 0).any()}
    weights = sum(mask.size for mask in masks.values())
    zeros = weights - sum(np.count_nonzero(mask) for mask in masks.values())
    progress.note(f"keeping its sparsity of {100 * zeros / max(weights, 1):.3g} %")
    return masks


def _layer_report(
    network: Any, placement: Placement, spanned: dict[str, Range], side: Images, progress: Progress
) -> list[LayerError]:
    progress.note("measuring what rounding each layer costs")
    images = _stratified(side, REPORT_IMAGES, seed=0)
    with exact_float32():
        return layer_errors(network, placement, spanned, normalized(images, CALIBRATION_BATCH))


def _train_quantized(
    run: Path,
    start: QuantizationAware,
    sides: dict[str, Images],
    calibrated: int,
    settings: dict[str, Any],
    epochs: int,
    learning_rate: float,
    progress: Progress,
) -> None:
    """Quantization-aware fine-tuning in place on the train side; survives a kill, and is kept for the next call.

    The float network is the teacher: what is wanted is its answers in integers, not other answers, and its
    probabilities say more about an image than the label does. Source: Mishra and Marr 2018, "Apprentice: Using
    knowledge distillation techniques to improve low-precision network accuracy".
    """
    from .quantization.qat import PLACEMENT

    train_side, folded = sides["train"], start.folded
    classes = folded.output_shape[-1]
    weights = train_side.class_weights(classes) if settings["class_weights"] else None
    stage = Stage("qat", epochs, learning_rate, epochs, len(train_side), settings["batch_size"], xla=False, soft=True)
    network = [hashlib.sha256(value.tobytes()).hexdigest() for value in folded.get_weights()]
    floats, masks = start.placement.floats, {name: int(mask.sum()) for name, mask in start.masks.items()}
    books = {name: integers.tolist() for name, integers in start.codebooks.items()}
    key = cache.digest([PLACEMENT, asdict(stage), calibrated, settings, network, floats, masks, books])
    checkpoint = run / "qat" / f"{key}.npz"
    with held(checkpoint, "quantize"):
        if checkpoint.exists():
            progress.note(f"qat: going on with {checkpoint}")
        fit(
            start.model,
            stage,
            lambda epoch: shuffled(
                train_side,
                settings["batch_size"],
                augment=settings["augment"],
                seed=settings["seed"] + 1,
                epoch=epoch,
                class_weights=weights,
            ).map(lambda pixels, labels, weight: (pixels, folded(pixels, training=False), weight)),
            plain(sides["validation"], 2 * images_at_once(folded)).map(
                lambda pixels, labels: (pixels, tf.one_hot(labels, classes))
            ),
            checkpoint,
            progress,
            tensorboard=run / "tensorboard" / "qat",
        )


def _golden_images(source: str, facts: dict[str, Any], split: Split, root: Path) -> tuple[str, Iterator[Image.Image]]:
    """Candidates for golden images, and what the manifest says of them."""
    if source == "synthetic":
        return "synthetic", _drawn("all4" if facts["unit"] == "field" else "cnmc")
    test = split.side("test")
    entries = test[:: max(len(test) // GOLDEN_CANDIDATES, 1)]  # they are sorted by path: a stride takes of each class
    folder = image_folder(root)
    said = "synthetic images of the test split" if facts["data"]["synthetic"] else "images of the test split"
    return said, (open_rgb(folder / entry.path) for entry in entries)


def _drawn(layout: Layout) -> Iterator[Image.Image]:
    with scratch() as folder:
        synthesize(folder / "drawn", GOLDEN_CANDIDATES, seed=0, layout=layout)
        yield from (open_rgb(path) for path in find_images(folder / "drawn"))


def _manifest(
    run: Path,
    facts: dict[str, Any],
    split: Split,
    spec: InputSpec,
    summary: dict[str, Any],
    metrics: dict[str, Any],
    golden_source: str,
    gate: dict[str, float],
) -> Manifest:
    settings, model = facts["settings"], facts["model"]
    kept = [key for key in ("ece_uncalibrated", "aurc", *REVIEW_FACTS) if key in metrics]
    kept += ["ci_unit", "macro_f1", "ece", "brier", "log_loss", "sensitivity", "specificity", "auroc_positive"]
    kept += [key for key in metrics if key.endswith("_ci95") or key.startswith("robust_")] + ["per_class"]
    return Manifest(
        name=run.resolve().name,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit=facts["unit"],
        labels=split.labels,
        positive_labels=tuple(facts["positive_labels"]),
        input=spec,
        quantization={
            **{key: summary[key] for key in QUANTIZATION_FACTS},
            "versions": versions(),
            "source_revision": source_revision(),
        },
        training={
            "backbone": model["name"],
            "alpha": model["alpha"],
            "dataset_sha256": split.dataset_sha256,
            "split_sha256": split.sha256,
            "run_sha256": run_digest(run),
            "split_level": split.level,
            **({} if split.embargo is None else {"embargo": split.embargo, "left_out": split.left_out}),
            "images": {side: facts["split"][side] for side in ("train", "validation", "test")},
            "seed": settings["seed"],
            "augment": settings["augment"],
            "versions": facts["versions"],
            "source_revision": facts["source_revision"],
            "synthetic": facts["data"]["synthetic"],
        },
        metrics={
            "split": metrics["split"],
            "images": metrics["images"],
            "accuracy": metrics["accuracy"],
            "float_accuracy": summary["float_accuracy"],
            **{key: metrics[key] for key in kept},
            "subjects": _without_names(metrics["subjects"]),
        },
        calibration=summary["calibration"],
        decision=summary["decision"],
        novelty=summary["novelty"],
        quality=gate,
        golden={"source": golden_source},
    )


def _gate(facts: dict[str, Any], split: Split, root: Path) -> dict[str, float]:
    """Limits of the rig's quality gate for fields like those of the train side; none where images are single cells:
    what the rig's camera sees are fields.
    """
    if facts["unit"] != "field":
        return {}
    train, folder = split.side("train"), image_folder(root)
    some = train[:: max(len(train) // GATE_IMAGES, 1)]
    return quality.to_values(quality.fit(np.asarray(open_rgb(folder / entry.path)) for entry in some))


def _without_names(subjects: dict[str, Any] | None) -> dict[str, Any] | None:
    """Figures by subject without the people themselves: the file goes where their names must not."""
    return subjects and {key: value for key, value in subjects.items() if key != "per_subject"}
