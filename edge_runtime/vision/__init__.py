"""Microscope images before the model: frames, their quality, and the cells in a field.

Imports `edgeall.edge_runtime` and `edgeall.console`; OpenCV is loaded to find cells.
"""
