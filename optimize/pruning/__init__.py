"""Steps of `edgeall.optimize.prune`: channel ranking, sparsity masks, training; and weight clustering.

May import what `edgeall.optimize` may import, and no other package of it.
"""
