"""The same int8 network, converted by tf2onnx, on ONNX Runtime's CPU provider with its default threads.

python benchmarks/peers/onnx_runtime.py MODEL.onnx LIST  -> a line for each image
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

model, listing = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
(source,) = session.get_inputs()
_, height, width, _ = source.shape
with open(listing) as paths:
    for path in paths.read().splitlines():
        image = Image.open(path).convert("RGB").resize((width, height), Image.BILINEAR)
        (scores,) = session.run(None, {source.name: np.asarray(image)[None]})
        print(path, scores[0].argmax(), sep="\t")
