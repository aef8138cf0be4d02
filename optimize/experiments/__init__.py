"""Studies of many models: comparison, grid, search, and the leak of augmentation before the split.

May import everything in `edgeall.optimize`.
"""
