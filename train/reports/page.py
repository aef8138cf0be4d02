"""Templates and data URIs for self-contained HTML pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ...edge_runtime.manifest import RESEARCH_USE


def template(package: str, name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """Load ``templates/NAME`` of a package. It escapes all values and raises for undefined names.

    ``base.html``, which every page extends, and ``parts.html`` are in this package.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("edgeall.train.reports")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    environment.globals["research_use"] = RESEARCH_USE
    return environment.get_template(name)


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def jpeg_file_uri(path: Path) -> str:
    """A JPEG file as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def jpeg_uri(image: Image.Image) -> str:
    """An RGB image as a data URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
