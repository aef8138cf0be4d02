"""Text of a quantization result."""

from __future__ import annotations

from ...console.tables import four, percent, record, table
from ...train.data.levels import split_text
from ...train.evaluation.text import wrong_text
from .result import QuantizationResult, SegmentationResult


def quantize_text(result: QuantizationResult | SegmentationResult) -> str:
    """What ``edgeall quantize`` prints: facts of the file, then a table of the classes."""
    if isinstance(result, SegmentationResult):
        return _masks_text(result)
    classes = [
        [label, percent(row.reference_recall), percent(row.recall), row.support]
        for label, row in result.per_class.items()
    ]
    facts = {**_conversion(result), **_decisions(result), **_optional(result)}
    return f"{record(facts)}\n\n{table(['class', 'float32 recall', 'recall', 'images'], classes)}"


def _masks_text(result: SegmentationResult) -> str:
    exact = result.tflite_float
    facts = {
        "file": _file_text(result),
        "scheme": result.scheme,
        "test images": f"{result.test_images:,} ({split_text(result.split_level)})",
        "Dice": f"{result.dice:.4f}, Keras float32 {result.float_dice:.4f}, drop {result.drop_points:.2f} hundredths",
        "agreement with Keras": f"{percent(result.agreement)} of the pixels, largest difference of a probability "
        f"{result.max_abs_difference:.2g}",
        "float32 TFLite with Keras": f"{percent(exact.agreement)}, {exact.max_abs_difference:.2g}",
        **_optional(result),
    }
    classes = [
        [label, four(row.reference_dice), four(row.dice), four(row.iou), row.images]
        for label, row in result.per_class.items()
    ]
    return f"{record(facts)}\n\n{table(['class', 'float32 Dice', 'Dice', 'IoU', 'images'], classes)}"


def _file_text(result: QuantizationResult | SegmentationResult) -> str:
    return (
        f"{result.out}, {result.file_bytes:,} bytes, of which flatbuffer {result.flatbuffer_bytes:,} (float32: "
        f"{result.float_flatbuffer_bytes:,})"
    )


def _conversion(result: QuantizationResult) -> dict[str, object]:
    exact = result.tflite_float
    return {
        "file": _file_text(result),
        "scheme": result.scheme,
        "test images": f"{result.test_images:,} ({split_text(result.split_level)})",
        "accuracy": f"{percent(result.accuracy)}, Keras float32 {percent(result.float_accuracy)}, "
        f"drop {result.drop_points:.2f} points",
        "agreement with Keras": f"{percent(result.agreement)}, largest difference of a probability "
        f"{result.max_abs_difference:.2g}",
        "float32 TFLite with Keras": f"{percent(exact.agreement)}, {exact.max_abs_difference:.2g}",
        "compressed": f"{result.compressed_bytes:,} bytes of flatbuffer in a zip; "
        f"{percent(result.sparsity_frac)} of the weights are zero",
    }


def _decisions(result: QuantizationResult) -> dict[str, object]:
    fitted, decision, novelty = result.decided.calibration, result.decided.decision, result.decided.novelty
    assert fitted is not None and novelty is not None, "quantize fits both"
    facts: dict[str, object] = {
        "calibration": f"temperature {fitted.temperature:.2f}: calibration error on {fitted.images:,} validation "
        f"images and {fitted.changed_images:,} mildly changed ones {fitted.ece_before:.4f} before, "
        f"{fitted.ece_after:.4f} after"
    }
    if decision:
        facts["review"] = (
            f"below a probability of {decision.review_below:.4f}, or out of distribution: "
            f"{percent(decision.reviewed_unchanged)} of the validation images, {percent(decision.reviewed)} of "
            f"them and the changed ones; accuracy of the rest {percent(decision.accuracy_of_the_rest) or '-'}"
        )
    facts["out of distribution"] = (
        f"{percent(novelty.reviewed)} of {novelty.images['validation']:,} validation images, by their features"
    )
    if result.assessed.review is not None:
        facts["wrong test predictions"] = wrong_text(result.assessed.review)
    return facts


def _optional(result: QuantizationResult | SegmentationResult) -> dict[str, object]:
    facts: dict[str, object] = {}
    if result.report:
        facts["report"] = result.report
    if result.clusters is not None:
        facts["clusters"] = f"at most {result.clusters} different weights in each prunable layer"
    if result.float_layers is not None:
        facts["left in float"] = ", ".join(result.float_layers) or "nothing"
    if result.auto_float is not None:
        task = "segmentation" if isinstance(result, SegmentationResult) else "classification"
        again = f"{result.auto_float.argument} repeats it; " if result.auto_float.layers else ""
        facts["auto-float"] = again + result.auto_float.tried(task)
    return facts
