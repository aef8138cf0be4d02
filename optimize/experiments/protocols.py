"""Split protocols of the comparison studies, by name, changed so that nothing leaks into the test subset.

The changes and their reasons: `docs/methods/protocols.md`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from ...edge_runtime.errors import UsageError
from ...train.data.split_settings import check_embargo


@dataclass(frozen=True)
class Protocol:
    """One way to split a data set into training, validation and test subsets.

    Attributes:
        name: value of ``--protocol``.
        summary: one line of text.
        source: study that used it.
        split_by: level, see `edgeall.train.data.make_split.make_split`; ``auto`` keeps subjects together where they are
            known.
        val_frac: share of the validation subset.
        test_frac: share of the test subset; not used with folds.
        folds: number of runs of a model, each with another test subset; 1: a single split.
        per_class: ``TRAIN/VALIDATION/TEST`` images of every class; None: all images.
        augment: augmentation of the training batches.
    """

    name: str
    summary: str
    source: str
    split_by: str
    val_frac: float
    test_frac: float
    folds: int = 1
    per_class: str | None = None
    augment: str = "studies"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="global-70-15-15",
            summary="70 % train, 15 % validation, 15 % test of all images",
            source="the two ways of splitting of a study of the four-class set in 48 runs (README, 2024)",
            split_by="auto",
            val_frac=0.15,
            test_frac=0.15,
        ),
        Protocol(
            name="balanced-700-150-150",
            summary="at most 700/150/150 images of every class; augmented copies fill up training, after the split",
            source="the same study (README, 2024), which augmented to 1,000 images of a class",
            split_by="auto",
            val_frac=0.15,
            test_frac=0.15,
            per_class="700/150/150",
        ),
        Protocol(
            name="60-20-20",
            summary="60 % train, 20 % validation, 20 % test of all images",
            source="a comparison of CNNs on the four-class set (report, 2025: 654 test images, 20 %)",
            split_by="auto",
            val_frac=0.2,
            test_frac=0.2,
        ),
        Protocol(
            name="subject-3-fold",
            summary="3-fold cross-validation by subject, a tenth of the images for validation",
            source="a study of C-NMC on unseen subjects (thesis, 2023)",
            split_by="subject",
            val_frac=0.1,
            test_frac=1 / 3,
            folds=3,
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """One of `PROTOCOLS`. Raises UsageError that lists them and the nearest name."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = difflib.get_close_matches(name, PROTOCOLS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"no protocol called {name!r}", hint=f"{hint}there are: {', '.join(PROTOCOLS)}")


def split_settings(protocol: Protocol, split_by: str | None = None, embargo: int | None = None) -> list[dict[str, Any]]:
    """The settings of `edgeall.train.run.TrainSettings` that a protocol fixes, for each run of a model.

    Args:
        protocol: see `Protocol`.
        split_by: split level instead of the protocol's own.
        embargo: file numbers between the subsets of a split by block; None: the default.

    Raises:
        UsageError: another level for a protocol that splits by subject.
    """
    if protocol.split_by == "subject" and split_by not in (None, "subject"):
        raise UsageError(f"{protocol.name} splits by subject, not by {split_by}", hint="remove --split-by")
    check_embargo(split_by or protocol.split_by, embargo)
    shared = {
        "split_by": split_by or protocol.split_by,
        "embargo": embargo,
        "val_frac": protocol.val_frac,
        "per_class": protocol.per_class,
        "augment": protocol.augment,
    }
    if protocol.folds == 1:
        return [{**shared, "test_frac": protocol.test_frac}]
    return [{**shared, "fold": f"{number}/{protocol.folds}"} for number in range(1, protocol.folds + 1)]
