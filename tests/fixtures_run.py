"""A small real run, trained once per session: synthetic fields, the basic CNN at 48 pixels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixture_seed import SEED
from shared import once, session_folder

IMAGES = 128


@pytest.fixture(scope="session")
def synthetic_fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic four-class fields. Not to be changed: copy it."""
    from edgeall.train.data.synth import synthesize

    return once(tmp_path_factory, "fields", lambda folder: synthesize(folder, IMAGES, seed=3 + SEED, size=96))


@pytest.fixture(scope="session")
def tiny_settings(synthetic_fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings of a run of a few seconds."""
    from edgeall.train.run import TrainSettings

    folder = session_folder(tmp_path_factory)
    return TrainSettings(
        data=synthetic_fields,
        out=folder / "tiny",
        model="basic_cnn",
        weights="none",
        input_size=48,
        epochs_finetune=4,
        lr_finetune=3e-3,
        augment="light",
        seed=SEED,
        cache_dir=folder / "pixels",
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder. Not to be changed, nor given to quantization-aware training, which locks it: copy it."""
    from edgeall.console.progress import Progress
    from edgeall.train.run import train

    made = once(tmp_path_factory, "tiny", lambda _: train(tiny_settings, Progress(quiet=True)))
    assert made == tiny_settings.out
    return made


@pytest.fixture(scope="session")
def tiny_models(tiny_run: Path, tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `quantize` says of `tiny_run` in every scheme; the packed file is at ``["out"]``."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_run, folder / "tiny")  # quantization-aware training writes into its run
        _quantize(folder / "tiny", folder, tiny_settings, explain=False)

    return _results(once(tmp_path_factory, "models", make))


@pytest.fixture(scope="session")
def explained(
    tiny_models: dict[str, Any], tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The packed files of `tiny_run` with a feature map, in every scheme; training is that of `tiny_models`."""
    run = Path(tiny_models["float32"]["out"]).with_name("tiny")

    def make(folder: Path) -> None:
        folder.mkdir()
        _quantize(run, folder, tiny_settings, explain=True)

    found = _results(once(tmp_path_factory, "explained", make))
    return {scheme: Path(result["out"]) for scheme, result in found.items()}


def _quantize(run: Path, folder: Path, settings: Any, *, explain: bool) -> None:
    """Quantize a run in every scheme into ``folder``; ``results.json`` there is written last."""
    from edgeall.console.progress import Progress
    from edgeall.optimize.quantization.config import QuantizeConfig
    from edgeall.optimize.quantization.schemes import SCHEMES
    from edgeall.optimize.quantize import quantize

    results = {}
    for scheme in SCHEMES:
        out, cached = folder / f"{scheme}.tflite", settings.cache_dir
        config = QuantizeConfig(run, scheme, out, epochs=1, explain=explain, cache_dir=cached)
        results[scheme] = quantize(config, Progress(quiet=True)).to_json()
    (folder / "results.json").write_text(json.dumps(results))


def _results(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results
