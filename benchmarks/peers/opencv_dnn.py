"""The same int8 network, converted by tf2onnx, on OpenCV's DNN module, which also decodes and resizes.

python benchmarks/peers/opencv_dnn.py MODEL.onnx LIST  -> a line for each image

OpenCV 4: its own TFLite importer refuses the file, and of OpenCV 5 (5.0.0) the new engine refuses the ONNX model and
the classic one gives every image the same label. It takes quantized inputs as signed bytes.
"""

import sys

import cv2
import numpy as np

model, listing = sys.argv[1:]
net = cv2.dnn.readNetFromONNX(model)
with open(listing) as paths:
    for path in paths.read().splitlines():
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, (224, 224), interpolation=cv2.INTER_LINEAR)
        net.setInput((image ^ 0x80).view(np.int8)[np.newaxis])
        print(path, net.forward()[0].argmax(), sep="\t")
