"""Microscope images before the model: frames, their quality, and the cells in a field.

Imports `edgeall.edge_runtime` and `edgeall.console`; OpenCV is loaded to find cells.
"""

from pathlib import Path

DEFAULT_MODEL = Path(__file__).with_name("cells.tflite")
"""The packed model that finds cells unless another one is given."""
