"""What most people write: the interpreter, Pillow, one image after the other.

python benchmarks/peers/plain_interpreter.py MODEL THREADS LIST  -> a line for each image; p50 of invoke in ms on stderr

A program of its own, on purpose: it imports nothing of edgeall. LIST is a text file of image paths; the model takes
uint8.
"""

import statistics
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

model, threads, listing = sys.argv[1], int(sys.argv[2]), sys.argv[3]
interpreter = Interpreter(model_path=model, num_threads=threads)
interpreter.allocate_tensors()
source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
_, height, width, _ = source["shape"]
times = []
with open(listing) as paths:
    for path in paths.read().splitlines():
        image = Image.open(path).convert("RGB").resize((width, height), Image.BILINEAR)
        pixels = np.asarray(image)[None]
        begin = time.perf_counter()
        interpreter.set_tensor(source["index"], pixels)
        interpreter.invoke()
        scores = interpreter.get_tensor(result["index"])[0]
        times.append(time.perf_counter() - begin)
        print(path, scores.argmax(), sep="\t")
print(1000 * statistics.median(times), file=sys.stderr)
