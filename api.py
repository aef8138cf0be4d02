"""The Python interface of edgeall: everything that `import edgeall` offers. Each part is loaded when it is first used.

Example:
    >>> import edgeall
    >>> model = edgeall.load("model.tflite")
    >>> prediction = model.classify("photo.jpg")
    >>> prediction.label, prediction.review
    ('Pro', False)
    >>> for prediction in model.classify_folder("smears"):
    ...     print(prediction.image, prediction.label)

Research use only, not a diagnosis.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .edge_runtime.classifier import Classifier
from .edge_runtime.images import open_rgb
from .edge_runtime.pipeline import Prediction, classify, prediction
from .edge_runtime.preprocess import preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from .console.progress import Progress
    from .edge_runtime.tools.inspect import Inspection
    from .optimize.quantization.result import QuantizationResult, SegmentationResult
    from .train.evaluation.evaluate import Evaluation
    from .train.run_info import RunInfo
    from .train.segmentation.results import MaskEvaluation

    PathLike = str | os.PathLike[str]


__all__ = ["Model", "Prediction", "evaluate_model", "inspect_model", "load", "quantize_run", "train_model"]


class Model:
    """A model file that classifies images. One instance serves one thread.

    Attributes:
        classifier: the low-level interface: pixels in, probabilities out.

    Example:
        >>> model = edgeall.load("model.tflite")
        >>> model.labels
        ('Benign', 'Early', 'Pre', 'Pro')
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the outputs."""
        return self.classifier.labels

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels. Images of any size are fitted to it."""
        return self.classifier.input.height, self.classifier.input.width

    def classify(self, image: PathLike | Image.Image | NDArray[np.uint8]) -> Prediction:
        """Classify one image.

        Args:
            image: a file name, a Pillow image, or uint8 RGB pixels ``(height, width, 3)``.

        Returns:
            The prediction; `Prediction.review` says whether a person should look at the image.

        Raises:
            ImageError: the file cannot be read.

        Example:
            >>> model.classify("photo.jpg").probability
            0.98
        """
        from PIL import Image

        if isinstance(image, (str, os.PathLike)):
            name, decoded = os.fspath(image), open_rgb(image)
        else:
            name = ""
            decoded = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(image).convert("RGB")
        return prediction(self.classifier, name, self.classifier.infer(preprocess(decoded, self.classifier.input)))

    def classify_folder(self, *paths: PathLike) -> Iterator[Prediction]:
        """Classify image files, and every image of folders.

        An unreadable image gives a prediction whose `error` says why; the others follow.

        Args:
            paths: files and folders.

        Returns:
            The predictions in the order of ``paths``, sorted by name within a folder, one at a time.

        Raises:
            DataError: a path does not exist, or a folder holds no image.

        Example:
            >>> [prediction.label for prediction in model.classify_folder("smears")]
            ['Benign', 'Early']
        """
        return classify(self.classifier, paths)


def load(
    path: PathLike,
    *,
    threads: int | None = None,
    labels_file: PathLike | None = None,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    input_size: int | None = None,
    public_key: PathLike | None = None,
) -> Model:
    """Open a model file.

    Args:
        path: a packed ``model.tflite``, or a foreign TFLite model.
        threads: threads of the interpreter; None takes all cores, at most four.
        labels_file: of a foreign model: one label per line.
        mean: of a foreign model: the network sees ``(pixel - mean) / std``; one number, or one for each channel.
        std: see ``mean``.
        input_size: of a foreign model without a fixed input size, in pixels.
        public_key: refuse a model that is not signed with this key.

    Raises:
        BundleError: the file is damaged, or something that a foreign model needs is unknown.
        UsageError: arguments that the model does not take.

    Example:
        >>> model = edgeall.load("model.tflite")
    """
    return Model(
        Classifier.open(
            path,
            threads=threads,
            labels_file=labels_file,
            mean=mean,
            std=std,
            input_size=input_size,
            public_key=public_key,
        )
    )


def inspect_model(path: PathLike) -> Inspection:
    """Read everything that a model file says about itself, and check its digest and golden images.

    Raises:
        BundleError: the file is damaged.

    Example:
        >>> edgeall.inspect_model("model.tflite").golden_ok
        True
    """
    from .edge_runtime.tools.inspect import inspect_model as inspect_file

    return inspect_file(Path(path))


def train_model(data: PathLike, out: PathLike, *, progress: bool = False, **settings: Any) -> RunInfo:
    """Fine-tune a backbone on labelled images. The same call resumes an interrupted run.

    Args:
        data: folder with one folder per class, or a CSV manifest.
        out: run folder to create.
        progress: show progress on stderr.
        settings: fields of `edgeall.train.run.TrainSettings`.

    Returns:
        What ``run.json`` holds.

    Raises:
        UsageError: invalid arguments, or ``out`` holds another run.
        DataError: the images cannot be trained on.

    Example:
        >>> run = edgeall.train_model("smears", "runs/a035", alpha=0.35)
        >>> run.metrics["test"].accuracy
        0.99
    """
    from .train.run import TrainSettings, train

    return train(TrainSettings(data=Path(data), out=Path(out), **settings), _progress(progress))


def quantize_run(
    run: PathLike, out: PathLike, *, scheme: str = "ptq-int8", progress: bool = False, **settings: Any
) -> QuantizationResult | SegmentationResult:
    """Convert a run, verify the result on the test subset, and pack it into one file.

    Args:
        run: run folder, as `train_model` writes it.
        out: packed model to write.
        scheme: ``float32``, ``float16``, ``dynamic``, ``ptq-int8`` or ``qat-int8``.
        progress: show progress on stderr.
        settings: further fields of `edgeall.optimize.quantization.config.QuantizeConfig`.

    Raises:
        UsageError: invalid arguments, or ``out`` exists.
        DataError: the run or its images are missing or damaged.
        GateError: the accuracy drops by more than ``max_drop``.

    Example:
        >>> result = edgeall.quantize_run("runs/a035", "model.tflite")
    """
    from .optimize.quantization.config import QuantizeConfig
    from .optimize.quantize import quantize

    config = QuantizeConfig(run=Path(run), out=Path(out), scheme=scheme, **settings)
    return quantize(config, _progress(progress))


def evaluate_model(
    target: PathLike, data: PathLike | None = None, *, progress: bool = False
) -> Evaluation | MaskEvaluation:
    """Compute the metrics of a run folder or of a model file.

    Args:
        target: a run folder or a ``model.tflite``.
        data: labelled images; None takes the test subset of the run.
        progress: show progress on stderr.

    Raises:
        UsageError: a model file without ``data``.
        DataError: the images cannot be evaluated on.

    Example:
        >>> edgeall.evaluate_model("runs/a035").metrics.accuracy
        0.99
    """
    from .train.evaluation.config import EvaluateSettings
    from .train.evaluation.evaluate import evaluate

    settings = EvaluateSettings(data=None if data is None else Path(data))
    return evaluate(Path(target), settings, _progress(progress))


def _progress(shown: bool) -> Progress:
    from .console.progress import Progress

    return Progress(quiet=not shown)
