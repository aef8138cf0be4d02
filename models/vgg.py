"""VGG16 and VGG19 (Simonyan and Zisserman 2015), from ``tf_keras.applications``."""

from __future__ import annotations

from functools import partial
from typing import Any

from .registry import BuildArgs, Facts, ModelSpec, register

REFERENCE = "Simonyan and Zisserman 2015, Very deep convolutional networks for large-scale image recognition"


def build(application: str, args: BuildArgs) -> Any:
    """The backbone up to the pooled features, ``(batch, 512)`` float32."""
    from .rewrite import CAFFE, rewrite
    from .weights import load_application

    return rewrite(load_application(application, args), CAFFE)


# Fine-tuned from block 5 on: without BatchNormalization the large gradients of a new head destroy the features of the
# lower layers, and training them would take 2.5 times as long (15 and 20 GMACs per image for the forward pass).
# Source: Chollet 2016, "Building powerful image classification models using very little data".
_16 = Facts(
    parameters=14_714_688,
    macs=15_346_630_656,
    features=512,
    layers=21,
    sparsity_weights=14_708_736,
    channel_groups=13,
)
_19 = Facts(
    parameters=20_024_384,
    macs=19_508_428_800,
    features=512,
    layers=24,
    sparsity_weights=20_017_152,
    channel_groups=16,
)
for _name, _application, _unfreeze, _facts in (("vgg16", "VGG16", 5, _16), ("vgg19", "VGG19", 6, _19)):
    register(
        ModelSpec(
            name=_name,
            build=partial(build, _application),
            input_hw=(224, 224),
            unfreeze=_unfreeze,
            reference=REFERENCE,
            facts=_facts,
        )
    )
