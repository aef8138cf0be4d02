"""Reads Keras files that were made elsewhere, without running any code in them, and rebuilds them in Keras 2.

A file becomes a `graph.Network`: plain data, flat, with its weights. `edgeall.models.keras_files.build` makes a Keras 2
model from it. No class, function or module that a file names is ever imported: every layer has a twin in `twins`, or it
is refused by name.
"""
