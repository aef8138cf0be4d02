"""A trained model becomes one verified ``model.tflite``: fold, quantize, convert, prove what it cost, pack."""
