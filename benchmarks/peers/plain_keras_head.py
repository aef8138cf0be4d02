"""What most people write: train a new head on a frozen backbone with a plain Keras `fit`, no cache of features.

python benchmarks/peers/plain_keras_head.py DATA WEIGHTS ALPHA EPOCHS  -> one JSON line

A program of its own, on purpose: it imports nothing of edgeall.
"""

import json
import os
import sys
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf
import tf_keras as keras

data, weights, alpha, epochs = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
images = keras.utils.image_dataset_from_directory(
    data, image_size=(224, 224), batch_size=32, validation_split=0.3, subset="training", seed=0
)
names = images.class_names
images = images.map(lambda x, y: (x / 127.5 - 1.0, y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
backbone = keras.applications.MobileNetV2((224, 224, 3), alpha=alpha, include_top=False, weights=None, pooling="avg")
backbone.load_weights(weights)
backbone.trainable = False
outputs = keras.layers.Dense(len(names), activation="softmax")(keras.layers.Dropout(0.2)(backbone.output))
model = keras.Model(backbone.input, outputs)
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
count = sum(len(labels) for _, labels in images)
rates = []
for _ in range(epochs):
    begin = time.perf_counter()
    model.fit(images, epochs=1, verbose=0)
    rates.append(count / (time.perf_counter() - begin))
print(json.dumps({"images_per_s": rates, "images": count}))
