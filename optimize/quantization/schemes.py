"""Names of the conversion schemes and of the sources of golden images. Imports nothing heavy."""

from __future__ import annotations

from ...edge_runtime.errors import UsageError

SCHEMES = ("float32", "float16", "dynamic", "ptq-int8", "qat-int8")
INTEGER_SCHEMES = ("ptq-int8", "qat-int8")
"""Fully integer: uint8 input and output, and no float tensor except around layers that stay in float on request."""
GOLDEN_SOURCES = ("test", "synthetic")
CLUSTERS = (8, 128)
"""Range of the number of clusters. More than half of the 255 integers gain nothing."""


def check_scheme(scheme: str) -> None:
    """Raise UsageError for an unknown scheme."""
    if scheme not in SCHEMES:
        raise UsageError(f"no scheme called {scheme!r}", hint=f"there are: {', '.join(SCHEMES)}")


def check_golden(source: str) -> None:
    """Raise UsageError for an unknown source of golden images."""
    if source not in GOLDEN_SOURCES:
        raise UsageError(f"no golden images called {source!r}", hint=f"there are: {', '.join(GOLDEN_SOURCES)}")
