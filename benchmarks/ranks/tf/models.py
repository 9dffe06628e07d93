"""The networks that the training benchmark trains, for TensorFlow, with random weights.

Every one takes float32 images [B, H, W, C] and answers with logits, [B, classes]. ResNet-50 (He et
al. 2015, arXiv 1512.03385) is that of Keras. What is written here runs on Keras 2 and 3 alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow import keras

from benchmarks.errors import BenchError

Options = Mapping[str, Any]
Input = tuple[int, ...]


class ModelError(BenchError):
    """A model that cannot be built, or does not take the data; the message is one sentence."""


def small_cnn(shape: Input, classes: int, width: int = 1024) -> keras.Model:
    """The network of models_torch.small_cnn, layer for layer, begun as Keras begins its layers."""
    channels, height, across = shape
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((height, across, channels)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dense(classes),
        ]
    )


def resnet50(shape: Input, classes: int) -> keras.Model:
    """Keras's ResNet-50, whose convolutions have biases: 25,583,592 weights for 1,000 classes."""
    channels, height, across = shape
    return keras.applications.ResNet50(
        weights=None,
        input_shape=(height, across, channels),
        classes=classes,
        classifier_activation=None,
    )


MODELS: dict[str, Callable[..., keras.Model]] = {"cnn": small_cnn, "resnet50": resnet50}


def build(name: str, shape: Input, classes: int, options: Options) -> keras.Model:
    """A model for inputs of a shape, with Keras's present random state.

    Args:
        name: as given to --model.
        shape: of one input, (C, H, W).
        classes: of images.
        options: as given to --model-option.

    Raises:
        ModelError: the model has no such option, or cannot take such images.
    """
    try:
        return MODELS[name](shape, classes, **options)
    except TypeError as error:
        raise ModelError(f"--model-option: {name} cannot be built so: {error}") from error
    except ValueError as error:
        size = " x ".join(map(str, shape))
        raise ModelError(f"--model {name} does not take images of {size}: {error}") from error


def check(name: str, shape: Input, classes: int, options: Options) -> int:
    """Builds a model and returns its number of weights. Raises ModelError if it cannot be built."""
    return sum(math.prod(w.shape) for w in build(name, shape, classes, options).trainable_weights)


def check_device(device: str) -> None:
    """Raises ModelError where TensorFlow cannot compute on a device: 'cpu' or 'cuda'."""
    if device == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise ModelError("--device cuda: TensorFlow finds no GPU here; expected cpu")
