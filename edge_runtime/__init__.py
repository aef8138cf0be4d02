"""Runs a packed ``model.tflite`` on a device: image in, prediction out.

Imports numpy, Pillow, the TFLite interpreter and the standard library; never TensorFlow, and nothing of edgeall but
`edgeall.console`. ``tools/`` and ``vision/`` build on it.
"""
