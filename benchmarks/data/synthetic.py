"""Random images or tokens: nothing can be learned from them, and nothing but time is measured.

As in Horovod's synthetic benchmark they are made once, and the same few are used again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.data.dataset import IMAGES, Dataset, Split

SAMPLES = 512
SIDE = 224


@dataclass(frozen=True)
class Shape:
    """What a model takes.

    Attributes:
        kind: IMAGES or TOKENS.
        side: pixels of images, where the data leave a choice; None: no wish.
        classes: of images.
        sequence: tokens of a sample.
        vocabulary: how many tokens there are.
        seed: of what is random.
    """

    kind: str
    side: int | None = None
    classes: int = 10
    sequence: int = 64
    vocabulary: int = 256
    seed: int = 0


def load(shape: Shape) -> Dataset:
    """Images uint8[N, 3, side, side] or tokens uint16 or uint32[N, L], and no test samples."""
    rng = np.random.default_rng(shape.seed)
    if shape.kind == IMAGES:
        side = shape.side or SIDE
        inputs = rng.integers(0, 256, (SAMPLES, 3, side, side), np.uint8)
        labels = rng.integers(0, shape.classes, SAMPLES, np.int64)
        what, classes = f"random images, {side} x {side}", shape.classes
    else:
        dtype = np.min_scalar_type(shape.vocabulary - 1)
        inputs, labels = rng.integers(0, shape.vocabulary, (2, SAMPLES, shape.sequence), dtype)
        what, classes = f"random sequences of {shape.sequence} tokens", shape.vocabulary
    return Dataset(
        name="synthetic",
        title=what,
        origin=f"{SAMPLES} made once",
        kind=shape.kind,
        classes=classes,
        train=Split(inputs, labels),
        test=Split(inputs[:0], labels[:0]),
    )
