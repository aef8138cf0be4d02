"""The one seed of all fixtures: no test may depend on which it is, nor on how well a network trained under it."""

from __future__ import annotations

import os

SEED = int(os.environ.get("EDGEALL_TEST_SEED", "0"))
"""Shifts what fixtures draw, split and train; see CONTRIBUTING.md."""
