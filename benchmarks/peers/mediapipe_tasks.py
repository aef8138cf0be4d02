"""MediaPipe Tasks' ImageClassifier, as its guide shows it; it needs nothing but our file.

python benchmarks/peers/mediapipe_tasks.py MODEL LABELS LIST  -> a line for each image
"""

import sys

import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

model, labels, listing = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=model), max_results=1)
with open(listing) as paths, vision.ImageClassifier.create_from_options(options) as classifier:
    for path in paths.read().splitlines():
        result = classifier.classify(mp.Image.create_from_file(path))
        print(path, labels.index(result.classifications[0].categories[0].category_name), sep="\t")
