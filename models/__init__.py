"""Backbones: one `ModelSpec` each, looked up by name with `registry.get`.

Only `keras_compat` imports TensorFlow and Keras. Of edgeall, imports `edgeall.console` and the errors
of `edgeall.edge_runtime`.
"""
