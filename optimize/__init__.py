"""A trained run to one verified, packed ``model.tflite``: quantization, pruning, packaging, experiments.

May import `edgeall.train`, `edgeall.models`, `edgeall.edge_runtime` and `edgeall.console`; nothing below imports it.
"""
