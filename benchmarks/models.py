"""The networks that the training benchmark trains."""

from __future__ import annotations

from torch import nn


def small_cnn(classes: int = 10) -> nn.Module:
    """Two convolutions and two dense layers for float32 images [N, 1, 28, 28]: 1,621,706 weights.

    Three by three convolutions of 16 and 32 channels, each followed by ReLU and 2 x 2 max pooling,
    then 1,568 -> 1,024 -> classes. Most weights are dense, so a step is cheap to compute and dear
    to communicate, as in much larger networks. There is no batch normalisation: running
    statistics are no parameters, would differ between workers, and would blur the comparison.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 1024),
        nn.ReLU(),
        nn.Linear(1024, classes),
    )


def parameter_count(model: nn.Module) -> int:
    """The number of trainable coordinates."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


MODELS = {"cnn": small_cnn}
