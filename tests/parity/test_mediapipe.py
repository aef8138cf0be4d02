"""MediaPipe Tasks, given our file and nothing else, says what we say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import venvs
from fixtures_models import LABELS, SPEC, grainy_image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.preprocess import InputSpec, load_input

IMAGES = 200
SPEC_48 = InputSpec(48, 48)
"""Of `tiny_run`."""

PROGRAM = """
import json, sys
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
with vision.ImageClassifier.create_from_options(options) as classifier:
    for path in sys.stdin.read().splitlines():
        result = classifier.classify(mp.Image.create_from_file(path))
        print(json.dumps({item.category_name: item.score for item in result.classifications[0].categories}))
"""


@pytest.fixture(scope="session")
def mediapipe_python() -> Path:
    """The Python of an environment with MediaPipe, made once."""
    try:
        return venvs.make_venv(venvs.CACHED / "mediapipe", ["mediapipe==1.2.2"])
    except AssertionError as error:
        venvs.unavailable(f"MediaPipe can't be installed here: {str(error).strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def photographs(test_data: Path) -> list[Path]:
    """Real images of all classes, 224x224 as the model is: MediaPipe's resizing is not ours to compare."""
    files = [file for label in LABELS for file in sorted((test_data / "all4" / label).iterdir())[1::8]]
    return [files[index] for index in np.linspace(0, len(files) - 1, IMAGES).astype(int)]


def test_same_labels_on_real_images(smear_bundle: Path, mediapipe_python: Path, photographs: list[Path]) -> None:
    """JPEG as they are: MediaPipe decodes them by another library, which moves a pixel here and there."""
    ours, theirs = _both(smear_bundle, mediapipe_python, photographs)
    assert len(theirs) == IMAGES
    assert all(set(scores) == set(LABELS) for scores in theirs)
    assert np.mean([_top(one) == _top(other) for one, other in zip(ours, theirs, strict=True)]) >= 0.98
    # Which is no accident of a model that always says the same.
    assert {_top(scores) for scores in theirs} == set(LABELS)


def test_same_scores_on_the_same_pixels(
    smear_bundle: Path, mediapipe_python: Path, photographs: list[Path], tmp_path: Path
) -> None:
    files = []
    for index, photograph in enumerate(photographs[::4]):
        files.append(tmp_path / f"{index}.png")
        open_rgb(photograph).save(files[-1])
    ours, theirs = _both(smear_bundle, mediapipe_python, files)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["float32", "dynamic", "uint8"])
def test_every_scheme(kind: str, pack_tiny: Callable[..., Path], mediapipe_python: Path, tmp_path: Path) -> None:
    """A float model takes its normalization from the metadata. (int8 inputs MediaPipe refuses; we make none.)"""
    model = pack_tiny(kind, tmp_path / "model.tflite")
    files = []
    for seed in range(5):
        files.append(tmp_path / f"{seed}.png")
        grainy_image(seed, (SPEC.width, SPEC.height)).save(files[-1])
    for one, other in zip(*_both(model, mediapipe_python, files), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("scheme", ["float32", "dynamic", "ptq-int8", "qat-int8"])
def test_what_quantize_makes(
    scheme: str,
    tiny_models: dict[str, dict[str, Any]],
    synthetic_fields: Path,
    mediapipe_python: Path,
    tmp_path: Path,
) -> None:
    files = []
    for index, image in enumerate(sorted(synthetic_fields.glob("*/*.png"))[::8]):
        files.append(tmp_path / f"{index}.png")
        open_rgb(image).resize((48, 48)).save(files[-1])  # the model's own size: MediaPipe resizes otherwise
    # Dynamic-range kernels quantize activations as they go, each version of the runtime a little differently.
    tolerance = 0.02 if scheme == "dynamic" else 1e-5
    for one, other in zip(*_both(Path(tiny_models[scheme]["out"]), mediapipe_python, files), strict=True):
        assert one == pytest.approx(other, abs=tolerance)


@pytest.mark.parametrize("scheme", ["float32", "ptq-int8"])
@pytest.mark.parametrize("explain", [False, True], ids=["features", "feature map"])
def test_the_second_output_is_there_and_silent(
    scheme: str,
    explain: bool,
    tiny_run: Path,
    tiny_settings: Any,
    synthetic_fields: Path,
    mediapipe_python: Path,
    tmp_path: Path,
) -> None:
    """MediaPipe takes it for another classification, whose metadata say that nothing is worth reporting."""
    from edgeall.optimize.quantize import quantize
    from edgeall.train.progress import Progress

    model, cached = tmp_path / "model.tflite", tiny_settings.cache_dir
    quantize(tiny_run, scheme, model, explain=explain, cache_dir=cached, progress=Progress(quiet=True))
    image = tmp_path / "image.png"
    open_rgb(next(synthetic_fields.glob("*/*.png"))).resize((48, 48)).save(image)
    program = PROGRAM.replace("print(", "print([len(head.categories) for head in result.classifications]);print(")
    result = subprocess.run(
        [str(mediapipe_python), "-c", program, str(model)],
        input=str(image),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    heads, scores = map(json.loads, result.stdout.splitlines())
    assert heads == [len(LABELS), 0]
    ours = Classifier.open(model).predict(load_input(image, SPEC_48))
    assert [scores[label] for label in LABELS] == pytest.approx(ours.tolist(), abs=1e-5)


def _both(model: Path, python: Path, files: list[Path]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    command = [str(python), "-c", PROGRAM, str(model)]
    names = "\n".join(map(str, files))
    result = subprocess.run(command, input=names, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    theirs = [json.loads(line) for line in result.stdout.splitlines()]
    classifier = Classifier.open(model)  # its outputs as they are: MediaPipe doesn't know of the manifest's temperature
    outputs = [classifier.predict(load_input(file, classifier.input)) for file in files]
    ours = [dict(zip(classifier.labels, map(float, row), strict=True)) for row in outputs]
    return ours, [{label: scores[label] for label in LABELS} for scores in theirs]


def _top(scores: dict[str, float]) -> str:
    return max(scores, key=scores.__getitem__)
