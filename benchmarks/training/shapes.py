"""Shapes of gradients to exchange: those of ResNet-50, cut or repeated to a given size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle

Shape = tuple[int, ...]


def resnet50() -> Iterator[Shape]:
    """The parameters of ResNet-50 for 1,000 classes, 25,557,032 in all (He et al. 2015).

    In the order in which they are registered; arXiv 1512.03385, table 1.
    """

    def convolution(out: int, into: int, width: int) -> Iterator[Shape]:
        yield from ((out, into, width, width), (out,), (out,))  # and its batch normalisation

    yield from convolution(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, channels, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, channels, 1)
            channels = 4 * width
    yield from ((1000, channels), (1000,))


def of_size(coordinates: int) -> list[Shape]:
    """Shapes of that many coordinates in all.

    They are ResNet-50's from the first on, over and over. The first that is too large is cut to as
    many of its rows as there is room for; a vector takes what is left.
    """
    found: list[Shape] = []
    left = coordinates
    for shape in cycle([*resnet50()]):
        row = math.prod(shape[1:])
        rows = min(shape[0], left // row)
        if rows:
            found.append((rows, *shape[1:]))
            left -= rows * row
        if rows < shape[0]:
            break
    return [*found, (left,)] if left else found
