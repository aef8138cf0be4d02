"""The device: a packed ``model.tflite`` and an image in, a decision out. Never imports TensorFlow."""
