"""MediaPipe Tasks, given our file and nothing else, says what we say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import venvs
from fixtures_models import LABELS

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify

IMAGES = 200

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
        pytest.skip(f"MediaPipe can't be installed here: {str(error).strip().splitlines()[-1]}")


def test_same_labels_on_real_images(smear_bundle: Path, mediapipe_python: Path, test_data: Path) -> None:
    # Already 224x224: this compares labels and normalization, not two libraries' resizing.
    files = [str(file) for label in LABELS for file in sorted((test_data / "all4" / label).iterdir())[1::8]]
    files = [files[index] for index in np.linspace(0, len(files) - 1, IMAGES).astype(int)]
    theirs = _run(mediapipe_python, smear_bundle, files)
    ours = [dict(prediction.probabilities) for prediction in classify(Classifier.open(smear_bundle), files)]
    assert all(set(scores) == set(LABELS) for scores in theirs)
    agreement = np.mean(
        [max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in zip(ours, theirs, strict=True)]
    )
    assert len(ours) == IMAGES
    assert agreement >= 0.98
    # That is no accident of a model that always says the same.
    assert {max(scores, key=scores.__getitem__) for scores in theirs} == set(LABELS)
    worst = max(abs(a[label] - b[label]) for a, b in zip(ours, theirs, strict=True) for label in LABELS)
    assert worst <= 2 / 256


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_other_schemes_too(
    kind: str, pack_tiny: object, mediapipe_python: Path, test_data: Path, tmp_path: Path
) -> None:
    """A float model needs the normalization from the metadata; without it the scores would differ."""
    model = pack_tiny(kind, tmp_path / "model.tflite")  # type: ignore[operator]
    from fixtures_models import SPEC, png, smooth_image

    files = []
    for seed in range(5):
        path = tmp_path / f"{seed}.png"
        path.write_bytes(png(smooth_image(seed, (SPEC.width, SPEC.height))))
        files.append(str(path))
    theirs = _run(mediapipe_python, model, files)
    ours = [dict(prediction.probabilities) for prediction in classify(Classifier.open(model), files)]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4 if kind == "float32" else 2 / 256)


def _run(python: Path, model: Path, files: list[str]) -> list[dict[str, float]]:
    command = [str(python), "-c", PROGRAM, str(model)]
    result = subprocess.run(command, input="\n".join(files), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
