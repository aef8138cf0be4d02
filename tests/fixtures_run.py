"""A small real run, trained once per session: synthetic fields, the basic CNN at 48 pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixture_seed import SEED

IMAGES = 128


@pytest.fixture(scope="session")
def synthetic_fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic four-class fields. Not to be changed: copy it."""
    from edgeall.train.data.synth import synthesize

    folder = tmp_path_factory.mktemp("synthetic") / "fields"
    synthesize(folder, IMAGES, seed=3 + SEED, size=96)
    return folder


@pytest.fixture(scope="session")
def tiny_settings(synthetic_fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings of a run of a few seconds."""
    from edgeall.train.run import TrainSettings

    return TrainSettings(
        data=synthetic_fields,
        out=tmp_path_factory.mktemp("runs") / "tiny",
        model="basic_cnn",
        weights="none",
        input_size=48,
        epochs_finetune=4,
        lr_finetune=3e-3,
        augment="light",
        seed=SEED,
        cache_dir=tmp_path_factory.mktemp("pixels"),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_settings: Any) -> Path:
    """A complete run folder. Not to be changed: copy it."""
    from edgeall.console.progress import Progress
    from edgeall.train.run import train

    train(replace(tiny_settings), Progress(quiet=True))
    return tiny_settings.out


@pytest.fixture(scope="session")
def tiny_models(tiny_run: Path, tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `quantize` says of `tiny_run` in every scheme; the packed file is at ``["out"]``."""
    from edgeall.console.progress import Progress
    from edgeall.optimize.quantization.config import QuantizeConfig
    from edgeall.optimize.quantization.schemes import SCHEMES
    from edgeall.optimize.quantize import quantize

    folder, quiet = tmp_path_factory.mktemp("models"), Progress(quiet=True)
    return {
        scheme: quantize(
            QuantizeConfig(tiny_run, scheme, folder / f"{scheme}.tflite", epochs=1, cache_dir=tiny_settings.cache_dir),
            quiet,
        ).to_json()
        for scheme in SCHEMES
    }
