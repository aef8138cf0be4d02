"""Evaluation: metrics with intervals, calibration, corruptions, Grad-CAM, external validation and paired comparison.

May import `edgeall.train.data` and what `edgeall.train` may import.
"""
