"""Exemplars: what is stored of the home laboratory's features, and what is refused."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.exemplars import LEVELS, MOST_BYTES, MOST_PER_CLASS, read_exemplars, store_exemplars


def drawn(count: int, features: int = 64, signed: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(0)
    values = random.gamma(0.3, 1.0, (count, features)) * (random.choice([-1, 1], (count, features)) if signed else 1)
    return values.astype(np.float32), np.sort(random.integers(0, 3, count))


@pytest.mark.parametrize("signed", [False, True])
def test_features_come_back_nearly_as_they_were(signed: bool) -> None:
    features, truth = drawn(30, signed=signed)
    facts, content = store_exemplars(features, truth, "test")
    found = read_exemplars(facts, content, 3, "m")
    assert found.subset == "test"
    np.testing.assert_array_equal(found.truth, truth)
    most = np.abs(features).max()
    roots = [np.sign(values) * np.sqrt(np.abs(values) / most) for values in (features, found.features)]
    np.testing.assert_allclose(roots[0], roots[1], atol=0.5 / LEVELS + 1e-6)


def test_every_class_has_as_many_and_all_fit() -> None:
    features, truth = drawn(600, features=1280)
    facts, content = store_exemplars(features, truth, "validation")
    counts = np.bincount(facts["truth"])
    assert len(set(counts)) == 1 and 1 <= counts[0] < MOST_PER_CLASS
    assert len(content) <= MOST_BYTES
    small = store_exemplars(*drawn(600, features=16), "test")[0]
    assert set(np.bincount(small["truth"])) == {MOST_PER_CLASS}


DAMAGED: dict[str, dict[str, Any]] = {
    "a class that the model does not have": {"truth": [0, 9]},
    "another number of images": {"truth": [0, 1, 1]},
    "no images": {"truth": []},
    "no levels": {"levels": 0},
    "an infinite feature": {"largest": float("inf")},
    "a text": {"features": "many"},
    "more than the memory": {"features": 10**12},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_quantize_does_not_write_is_refused(case: str) -> None:
    facts, content = store_exemplars(drawn(2)[0], np.array([0, 1]), "test")
    read_exemplars(facts, content, 3, "m")
    with pytest.raises(BundleError, match="m: its exemplars are not what"):
        read_exemplars({**facts, **DAMAGED[case]}, content, 3, "m")


def test_damaged_content_is_refused() -> None:
    facts, content = store_exemplars(*drawn(6), "test")
    for bad in (b"", content[:-9], zlib.compress(bytes(10**7)), content[::-1]):
        with pytest.raises(BundleError):
            read_exemplars(facts, bad, 3, "m")
