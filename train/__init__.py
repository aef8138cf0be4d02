"""Training: a folder of labelled images to a run folder with a trained, evaluated Keras model.

May import `edgeall.models`, `edgeall.edge_runtime` and `edgeall.console`; never `edgeall.optimize` or `edgeall.rig`.
"""
