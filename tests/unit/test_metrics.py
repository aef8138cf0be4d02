"""compute_metrics on cases that are small enough to compute by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from edgeall.edge_runtime.errors import DataError
from edgeall.train.data.dataset import load_dataset
from edgeall.train.evaluation import bootstrap
from edgeall.train.evaluation.mcnemar import mcnemar
from edgeall.train.evaluation.metrics import ECE_BINS, LOG_FLOOR, compute_metrics, metrics_of

LABELS = ("Benign", "Early", "Pre")
ILL = ("Early", "Pre")


def metrics(y_true: Any, probabilities: Any, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"labels": LABELS, "positive_labels": ILL, "split": "test", "split_level": "image"}
    return compute_metrics(y_true=y_true, probabilities=probabilities, **{**given, **changes}).to_json()


def one_hot(predicted: list[int], top: float = 0.8, classes: int = 3) -> np.ndarray:
    """Rows whose class `predicted` has probability `top` and the others an equal share of the rest."""
    rows = np.full((len(predicted), classes), (1 - top) / (classes - 1))
    rows[np.arange(len(predicted)), predicted] = top
    return rows


def test_confusion_and_per_class_by_hand() -> None:
    result = metrics([0, 0, 0, 1, 1, 2], one_hot([0, 0, 1, 1, 2, 2]))
    assert result["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert result["images"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    benign, early, pre = (result["per_class"][label] for label in LABELS)
    assert (benign["precision"], benign["recall"], benign["support"]) == (1.0, pytest.approx(2 / 3), 3)
    assert (early["precision"], early["recall"], early["support"]) == (0.5, 0.5, 2)
    assert (pre["precision"], pre["recall"], pre["support"]) == (0.5, 1.0, 1)
    assert [benign["f1"], early["f1"], pre["f1"]] == pytest.approx([0.8, 0.5, 2 / 3])
    assert result["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_averages_by_hand() -> None:
    found = metrics([0, 0, 0, 1, 1, 2], one_hot([0, 0, 1, 1, 2, 2]))["averages"]
    precisions, recalls, images = [1, 1 / 2, 1 / 2], [2 / 3, 1 / 2, 1], [3, 2, 1]
    assert found["macro"]["precision"] == pytest.approx(np.mean(precisions))
    assert found["macro"]["recall"] == pytest.approx(np.mean(recalls))
    assert found["weighted"]["precision"] == pytest.approx(np.average(precisions, weights=images))
    assert found["weighted"]["recall"] == pytest.approx(4 / 6), "the accuracy"
    f1 = [4 / 5, 1 / 2, 2 / 3]
    assert found["weighted"]["f1"] == pytest.approx(np.average(f1, weights=images))
    assert found["macro"]["f1"] == pytest.approx(np.mean(f1))


def test_sensitivity_counts_any_positive_class_as_found() -> None:
    # Early taken for Pre is still found; one Early of four ill is missed; one of two Benign is a false alarm.
    result = metrics([0, 0, 1, 1, 1, 2], one_hot([0, 2, 2, 1, 0, 2]))
    assert result["sensitivity"] == pytest.approx(3 / 4)
    assert result["specificity"] == pytest.approx(1 / 2)


def test_sensitivity_at_a_specificity_is_what_a_threshold_gives() -> None:
    # Twenty healthy at 0.00 to 0.19; ill at 0.05, 0.185 and 0.5. One healthy may be called ill: a threshold above 0.18.
    healthy = [[1 - number / 100, number / 100, 0.0] for number in range(20)]
    ill = [[0.95, 0.05, 0.0], [0.815, 0.0, 0.185], [0.5, 0.25, 0.25]]
    result = metrics([0] * 20 + [1, 2, 1], healthy + ill)
    assert result["sensitivity_at_specificity_95"] == pytest.approx(2 / 3)
    # Ranked: 0.5 ill, 0.19 well, 0.185 ill, then 13 healthy down to 0.06, 0.05 ill and well.
    assert result["auprc_positive"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 18) / 3, abs=0.01)


def test_brier_is_the_squared_distance_from_the_truth() -> None:
    assert metrics([0, 1], [[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])["brier"] == pytest.approx(
        (0 + 0.25 + 0.5625 + 0.0625) / 2
    )


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (8, 2, 2 * 56 / 1024), (3, 3, 1.0)],
)
def test_mcnemar_counts_what_one_alone_gets_right(only_first: int, only_second: int, p_value: float) -> None:
    first = np.array([True] * (only_first + 7) + [False] * (only_second + 4))
    second = np.array([False] * only_first + [True] * (7 + only_second) + [False] * 4)
    found = mcnemar(first, second).to_json()
    assert (found["only_first"], found["only_second"]) == (only_first, only_second)
    assert found["p_value"] == pytest.approx(p_value)


def test_auroc_of_the_summed_positive_probability() -> None:
    # Summed positive probability: healthy 0.6 and 0.2, ill 0.7 and 0.5: three of the four pairs are in order.
    # The most probable positive class alone (0.5, 0.2 against 0.35, 0.3) would give two of four.
    rows = [[0.4, 0.5, 0.1], [0.8, 0.2, 0.0], [0.3, 0.35, 0.35], [0.5, 0.2, 0.3]]
    result = metrics([0, 0, 1, 2], rows)
    assert result["auroc_positive"] == pytest.approx(3 / 4)
    assert result["per_class"]["Benign"]["auroc"] == pytest.approx(3 / 4)


def test_ece_by_hand() -> None:
    # Confidence 0.9 (bin 14), 2 of 4 right: gap 0.4; confidence 0.5 (bin 8), 2 of 2 right: gap 0.5.
    rows = np.vstack([one_hot([0, 0, 0, 0], 0.9), one_hot([1, 1], 0.5)])
    assert metrics([0, 0, 1, 2, 1, 1], rows)["ece"] == pytest.approx((4 * 0.4 + 2 * 0.5) / 6)


def test_ece_gaps_of_opposite_sign_do_not_cancel_across_bins() -> None:
    # Mean confidence 0.7 with 2 of 4 right: one single bin would give 0.2.
    rows = np.vstack([one_hot([0, 0], 0.9), one_hot([1, 1], 0.5)])
    assert metrics([1, 2, 1, 1], rows)["ece"] == pytest.approx((2 * 0.9 + 2 * 0.5) / 4)


def test_ece_bins_are_closed_above() -> None:
    # 1/3 = 5/15 belongs to bin 5 with 0.3 (right gap +0.7 and wrong gap -1/3 add up there); 0.34 lies in bin 6.
    assert ECE_BINS == 15
    rows = [[5 / 15, 5 / 15 - 0.01, 0.3433 - 0.02], [0.3, 0.29, 0.29]]
    assert metrics([0, 1], rows)["ece"] == pytest.approx(abs((1 - 5 / 15) + (0 - 0.3)) / 2)
    assert metrics([0, 0], one_hot([0, 0], 1.0))["ece"] == 0.0


def test_log_loss_normalizes_rows_and_floors_zeros() -> None:
    rows = [[0.45, 0.45, 0.0], [0.0, 0.0, 1.0]]
    result = metrics([0, 0], rows)
    assert result["log_loss"] == pytest.approx((math.log(2) - math.log(LOG_FLOOR)) / 2)


def test_a_class_without_images() -> None:
    result = metrics([0, 0, 1], one_hot([0, 1, 1]))
    assert result["per_class"]["Pre"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "auroc": None}
    assert result["macro_f1"] == pytest.approx(2 / 3)  # over Benign and Early: both have precision/recall 1 and 0.5
    assert result["confusion"][2] == [0, 0, 0]


def test_one_class_only() -> None:
    ill = metrics([1, 1], one_hot([1, 0]))
    assert (ill["sensitivity"], ill["specificity"], ill["auroc_positive"]) == (0.5, None, None)
    well = metrics([0, 0], one_hot([1, 0]))
    assert (well["sensitivity"], well["specificity"], well["auroc_positive"]) == (None, 0.5, None)


def test_no_positive_labels() -> None:
    result = metrics([0, 1], one_hot([0, 1]), positive_labels=())
    assert (result["sensitivity"], result["specificity"], result["auroc_positive"]) == (None, None, None)
    assert result["positive_labels"] == []


def test_values_as_the_contract_names_them() -> None:
    result = metrics([0, 1, 2], one_hot([0, 1, 0]), split="validation", split_level="subject")
    assert (result["split"], result["split_level"], result["labels"]) == ("validation", "subject", list(LABELS))
    names = (
        "split split_level images accuracy accuracy_ci95 ci_unit macro_f1 macro_f1_ci95 log_loss ece brier "
        "labels confusion per_class"
    )
    against = "sensitivity specificity auroc_positive auprc_positive sensitivity_at_specificity_95"
    spread = "sensitivity_ci95 specificity_ci95 auroc_positive_ci95"
    assert " ".join(result) == f"{names} positive_labels {against} {spread} subjects averages"


def test_interval_contains_the_point_and_narrows_with_images() -> None:
    def interval(n: int) -> tuple[float, float, float]:
        result = metrics([0] * n, one_hot(([0] * 9 + [1]) * (n // 10)))
        return *result["accuracy_ci95"], result["accuracy"]

    low_small, high_small, accuracy = interval(100)
    assert low_small < accuracy < high_small
    # 0.9 +- 1.96 sqrt(0.9 0.1 / n), within a step of 1/100 on either side
    assert (low_small, high_small) == pytest.approx((0.841, 0.959), abs=0.02)
    low_large, high_large, _ = interval(10_000)
    assert (low_large, high_large) == pytest.approx((0.8941, 0.9059), abs=0.0005)
    assert (high_small - low_small) / (high_large - low_large) == pytest.approx(10, rel=0.1)


def test_interval_is_seeded() -> None:
    rows = one_hot(([0] * 9 + [1]) * 100)
    first, again, other = (metrics([0] * 1000, rows, seed=seed)["accuracy_ci95"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_subject_interval_is_wider_on_clustered_errors() -> None:
    # 20 subjects of 50 images; all errors are in two of them.
    predicted = [0] * 900 + [1] * 100
    subjects = [f"s{i // 50}" for i in range(1000)]
    by_image = metrics([0] * 1000, one_hot(predicted))
    by_subject = metrics([0] * 1000, one_hot(predicted), subjects=subjects)
    assert (by_image["ci_unit"], by_subject["ci_unit"]) == ("image", "subject")
    width_image, width_subject = (high - low for low, high in (by_image["accuracy_ci95"], by_subject["accuracy_ci95"]))
    # Variance goes up by the images of a subject, 50: the width about sevenfold.
    assert 5 < width_subject / width_image < 9


def test_subjects_of_unequal_size_are_weighted_by_their_images() -> None:
    # 20 subjects of 18 images, all right, and 20 of 2 images, all wrong: 0.9 of the images, half of the subjects.
    # A resample with 35 or 65 % of the former (40 draws, 1.96 standard deviations) has 0.83 or 0.94.
    subjects = [f"large{i // 18}" for i in range(360)] + [f"small{i // 2}" for i in range(40)]
    result = metrics([0] * 400, one_hot([0] * 360 + [1] * 40), subjects=subjects)
    assert result["accuracy_ci95"] == pytest.approx([0.83, 0.94], abs=0.02)


def test_one_subject_per_image_agrees_with_the_image_interval() -> None:
    predicted = ([0] * 8 + [1] * 2) * 40
    by_image = metrics([0] * 400, one_hot(predicted))
    by_subject = metrics([0] * 400, one_hot(predicted), subjects=[str(i) for i in range(400)])
    assert by_subject["ci_unit"] == "subject"
    assert by_subject["accuracy_ci95"] == pytest.approx(by_image["accuracy_ci95"], abs=0.01)


def drawn(images: int, people: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truths, probabilities and subjects: a subject has one class and one difficulty."""
    generator = np.random.default_rng(seed)
    owner = generator.integers(0, people, images)
    true = generator.integers(0, 3, people)[owner]
    logits = generator.normal(size=(images, 3)) + generator.normal(1.0, 1.5, people)[owner, None] * np.eye(3)[true]
    steps = np.round(64 * np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))  # with ties, as int8 gives them
    return true, (steps + 1e-3) / 64, [f"p{number}" for number in owner]


@pytest.mark.parametrize("by_subject", [True, False])
def test_intervals_are_those_of_drawing_again_and_again(by_subject: bool) -> None:
    true, rows, subjects = drawn(150, 25, seed=1)
    result = metrics(true, rows, subjects=subjects if by_subject else None)
    generator = np.random.default_rng(3)
    owner = np.unique(subjects, return_inverse=True)[1] if by_subject else np.arange(len(true))
    members = [np.flatnonzero(owner == number) for number in range(owner.max() + 1)]
    found: dict[str, list[float]] = {name: [] for name in bootstrap.NAMES}
    for _ in range(200):
        chosen = np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))])
        truth, predicted = true[chosen], rows[chosen].argmax(axis=1)
        found["accuracy"].append((truth == predicted).mean())
        found["macro_f1"].append(f1_score(truth, predicted, average="macro"))
        found["sensitivity"].append((predicted[truth > 0] > 0).mean())
        found["specificity"].append((predicted[truth == 0] == 0).mean())
        found["auroc_positive"].append(roc_auc_score(truth > 0, rows[chosen][:, 1:].sum(axis=1)))
    for name, values in found.items():
        low, high = np.percentile(values, (2.5, 97.5))
        assert low < result[name] < high
        assert result[f"{name}_ci95"] == pytest.approx([low, high], abs=0.3 * (high - low)), name


def test_weighted_areas_are_scikit_learns() -> None:
    true, rows, _ = drawn(80, 20, seed=2)
    score = rows[:, 1:].sum(axis=1)
    times = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=5).astype(np.float32)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    ill = (true > 0)[order]
    assert len(starts) < 80, "there are ties"
    found = bootstrap._weighted_auroc(times[:, order] * ill, times[:, order] * ~ill, starts)
    assert found == pytest.approx([roc_auc_score(true > 0, score, sample_weight=weights) for weights in times])


def test_a_subject_counts_once_and_by_its_mean() -> None:
    # a: two of three right, mean in favour; b: one of two right, its sure mistake outweighs; c: right; d: ill, missed.
    true = [1, 1, 1, 1, 1, 0, 0, 2]
    rows = [[0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.9, 0.1, 0.0]]
    rows += [[0.7, 0.3, 0.0], [0.6, 0.4, 0.0], [0.55, 0.0, 0.45]]
    result = metrics(true, rows, subjects=["a", "a", "a", "b", "b", "c", "c", "d"])
    found = result["subjects"]
    assert (result["ci_unit"], found["subjects"], found["several_classes"]) == ("subject", 4, 0)
    assert found["accuracy"] == 0.5
    assert found["sensitivity"] == pytest.approx(1 / 3)
    assert found["specificity"] == 1.0
    # Means of the ill's probability: a 2/3, b 0.35, d 0.45; c 0.35, which ties with b.
    assert found["auroc_positive"] == pytest.approx(2.5 / 3)
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert [(row["subject"], row["images"], row["accuracy"], row["label"]) for row in found["per_subject"]] == [
        ("d", 1, 0.0, "Pre"),
        ("b", 2, 0.5, "Early"),
        ("a", 3, pytest.approx(2 / 3), "Early"),
        ("c", 2, 1.0, "Benign"),
    ]
    assert [row["predicted"] for row in found["per_subject"]] == ["Benign", "Benign", "Early", "Benign"]


def test_a_subject_of_several_classes_has_no_class_of_its_own() -> None:
    result = metrics([0, 1, 1, 0], one_hot([0, 1, 1, 0]), subjects=["a", "a", "b", "c"])["subjects"]
    assert (result["subjects"], result["several_classes"], result["accuracy"]) == (2, 1, 1.0)
    assert {row["subject"]: row["label"] for row in result["per_subject"]} == {"a": None, "b": "Early", "c": "Benign"}
    mixed = metrics([0, 1, 1, 0], one_hot([0, 1, 1, 0]), subjects=["a", "a", "b", "b"])["subjects"]
    assert "accuracy" not in mixed and (mixed["subjects"], mixed["several_classes"]) == (0, 2)


def test_subjects_of_real_cells_are_known(test_data: Path) -> None:
    cells = load_dataset(test_data / "cnmc")
    rows = [[0.4, 0.6] if sample.subject in ("H7", "16") else [0.7, 0.3] for sample in cells.samples]
    result = metrics_of(cells.samples, cells.labels, rows, ("all",), "test", "subject", 0).to_json()
    healthy = {sample.subject for sample in cells.samples if sample.label == "hem"}
    ill = {sample.subject for sample in cells.samples if sample.label == "all"}
    assert (result["ci_unit"], result["subjects"]["subjects"]) == ("subject", len(healthy) + len(ill))
    assert result["subjects"]["sensitivity"] == pytest.approx(1 - 1 / len(ill))
    assert result["subjects"]["specificity"] == pytest.approx(1 / len(healthy))


@pytest.mark.parametrize("subjects", [None, ["a", "b", None, "c"], ["a", "a", "a", "a"]])
def test_no_subject_figures_where_subjects_are_not_known(subjects: list[str | None] | None) -> None:
    assert metrics([0, 0, 1, 1], one_hot([0, 0, 1, 0]), subjects=subjects)["subjects"] is None


def test_a_resample_without_positive_images_has_no_sensitivity_and_is_silent_about_it() -> None:
    result = metrics([0, 0, 0, 1], one_hot([0, 0, 0, 1]))
    assert result["sensitivity_ci95"] == [1.0, 1.0]
    assert metrics([0, 0], one_hot([0, 1]))["sensitivity_ci95"] is None
    assert metrics([0, 1], one_hot([0, 1]), positive_labels=())["auroc_positive_ci95"] is None
    assert metrics([1], one_hot([1]))["accuracy_ci95"] == [1.0, 1.0]


@pytest.mark.parametrize("subjects", [["a", "b", None, "c"], ["a", "a", "a", "a"], [None] * 4])
def test_interval_falls_back_to_images_and_this_is_reported(subjects: list[str | None]) -> None:
    assert metrics([0, 0, 1, 1], one_hot([0, 0, 1, 0]), subjects=subjects)["ci_unit"] == "image"


@pytest.mark.parametrize(
    ("y_true", "rows", "changes", "says"),
    [
        ([], np.zeros((0, 3)), {}, "no images"),
        ([0, 1], one_hot([0]), {}, "do not match"),
        ([0], one_hot([0], classes=4), {}, "do not match"),
        ([0], one_hot([0]), {"subjects": ["a", "b"]}, "do not match"),
        ([3], one_hot([0]), {}, "outside 0..2"),
        ([0], [[math.nan, 0.5, 0.5]], {}, "not probabilities"),
        ([0], [[-0.1, 0.6, 0.5]], {}, "not probabilities"),
        ([0], [[0.0, 0.0, 0.0]], {}, "not probabilities"),
        ([0], one_hot([0]), {"positive_labels": ("Pro",)}, "positive label Pro is not one of"),
    ],
)
def test_refuses(y_true: list[int], rows: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        metrics(y_true, rows, **changes)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), images=st.integers(1, 12), eight_bit=st.booleans())
def test_always_valid_json_within_range(data: st.DataObject, images: int, eight_bit: bool) -> None:
    y_true = data.draw(st.lists(st.integers(0, 2), min_size=images, max_size=images))
    steps = data.draw(st.lists(st.lists(st.integers(0, 85), min_size=3, max_size=3), min_size=images, max_size=images))
    raw = np.array(steps, dtype=np.float32) + 1
    rows = raw / np.float32(256) if eight_bit else raw / raw.sum(axis=1, keepdims=True)
    result = metrics(y_true, rows)
    assert json.loads(json.dumps(result, allow_nan=False)) == {
        **result,
        "accuracy_ci95": list(result["accuracy_ci95"]),
    }
    low, high = result["accuracy_ci95"]
    assert 0 <= low <= high <= 1
    assert sum(map(sum, result["confusion"])) == images
    assert result["accuracy"] == pytest.approx(sum(result["confusion"][i][i] for i in range(3)) / images)
    figures = [result[name] for name in ("macro_f1", "ece", "sensitivity", "specificity", "auroc_positive")]
    figures += [value for row in result["per_class"].values() for name, value in row.items() if name != "support"]
    assert all(value is None or (isinstance(value, float) and 0 <= value <= 1) for value in figures)
