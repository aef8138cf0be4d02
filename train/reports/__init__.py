"""Reports: plots and self-contained HTML pages of a run or a model.

May import `edgeall.train.data`, `edgeall.train.evaluation` and what `edgeall.train` may import.
"""
