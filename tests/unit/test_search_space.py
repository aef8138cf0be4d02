"""The candidates of a search, their names, and the training of each."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeall.edge_runtime.errors import UsageError
from edgeall.optimize.experiments.candidate import Candidate
from edgeall.optimize.experiments.search_config import SearchSettings
from edgeall.optimize.experiments.search_settings import check, space_of, training_of

SETTINGS = SearchSettings(
    Path("data"),
    Path("out"),
    max_bytes=10**6,
    models=("basic_cnn",),
    sizes=(32,),
    macs=(1.0,),
    schemes=("ptq-int8",),
    weights="none",
)
SEARCHED = {
    "learning_rates": (1e-3, 1e-4),
    "dropouts": (0.0, 0.4),
    "weight_decays": (0.0001,),
    "augments": ("light", "microscope"),
    "unfreezes": (4, 8),
}


class _Trial:
    """Suggests the values with these parameters."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters

    def suggest_int(self, name: str, low: int, high: int) -> int:
        assert low <= self.parameters[name] <= high
        return int(self.parameters[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert self.parameters[name] in choices
        return self.parameters[name]


def test_without_settings_of_the_training_there_is_one_training() -> None:
    (candidate,) = space_of(SETTINGS)[0].candidates()
    assert candidate == Candidate("basic_cnn", None, 32, 1.0, "ptq-int8")
    assert (candidate.base, candidate.training) == ("basic_cnn-32", {})
    trained = training_of(SETTINGS, candidate)
    assert (trained.lr_finetune, trained.dropout, trained.augment) == (SETTINGS.lr_finetune, 0.2, "microscope")
    assert not {*SEARCHED} & {*SETTINGS.as_json()}, "studies of older versions go on"


def test_every_combination_is_a_candidate_with_a_folder_of_its_own() -> None:
    settings = replace(SETTINGS, **SEARCHED)
    check(settings)
    space = space_of(settings)[0]
    candidates = space.candidates()
    assert len(candidates) == len(set(candidates)) == 2 * 2 * 1 * 2 * 2
    assert len({candidate.base for candidate in candidates}) == len(candidates)
    assert {candidate.cost_key for candidate in candidates} == {"basic_cnn-32-int8"}, "its cost is measured once"
    for candidate in candidates:
        assert space.suggest(_Trial(space.parameters(candidate))) == candidate
        assert Candidate(**asdict(candidate)) == candidate, "as the storage keeps it"
    last = training_of(settings, candidates[-1])
    found = (last.lr_finetune, last.dropout, last.weight_decay, last.augment, last.unfreeze)
    assert found == (1e-3, 0.4, 0.0001, "microscope", 8)
    assert (
        candidates[-1]
        .describe()
        .endswith("ptq-int8, lr finetune 0.001, dropout 0.4, weight decay 0.0001, augment microscope, unfreeze 8")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": (0.0,)}, "--learning-rates must be in"),
        ({"dropouts": (1.0,)}, "--dropouts must be in"),
        ({"weight_decays": (-0.1,)}, "--weight-decays must be in"),
        ({"augments": ("sharpen",)}, "no augmentation called 'sharpen'"),
        ({"unfreezes": (0,)}, "--unfreezes must be at least 1"),
    ],
)
def test_settings_that_no_training_takes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(replace(SETTINGS, **changes))
