"""Packed models that differ from a given one in their archive alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeall.edge_runtime.bundle import open_bundle


def repack(
    source: Path, out: Path, change: Callable[[dict[str, Any]], None] = lambda golden: None, pad: int = 0
) -> Path:
    """A copy of a packed model with other golden expectations, or ``pad`` more bytes of noise in its archive."""
    out.write_bytes(open_bundle(source).flatbuffer)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "a") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "golden/golden.json":
                golden = json.loads(content)
                change(golden)
                content = json.dumps(golden).encode()
            new.writestr(name, content)
        if pad:
            new.writestr("noise.bin", np.random.default_rng(pad).bytes(pad))
    return out


def other_units(golden: dict[str, Any]) -> None:
    """What no device will make of the first image."""
    golden["images"][0]["units"] = [255 - unit for unit in golden["images"][0]["units"]]
