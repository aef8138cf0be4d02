"""edgeall: from a folder of labelled microscope images to a small, verified classifier on a Pi or a phone.

The Python interface is in `edgeall.api`; its names are offered here and loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Model",
    "Prediction",
    "__version__",
    "evaluate_model",
    "inspect_model",
    "load",
    "quantize_run",
    "train_model",
]

if TYPE_CHECKING:
    from .api import Model, Prediction, evaluate_model, inspect_model, load, quantize_run, train_model


def __getattr__(name: str) -> Any:
    """Load the interface on first use, so that `import edgeall` costs nothing."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'edgeall' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
