"""Steps of `edgeall.optimize.quantize`: fold, placement, PTQ, QAT, conversion, verification, calibration.

May import `edgeall.optimize.pruning` and what `edgeall.optimize` may import.
"""
