"""What every self-contained HTML page is made with."""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image


def template(package: str, name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """``templates/NAME`` of a package, escaping everything and refusing names that nobody gave."""
    source = importlib.resources.files(package).joinpath(f"templates/{name}").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    return environment.from_string(source)


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def jpeg_uri(image: Image.Image) -> str:
    """An RGB image as a data URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
