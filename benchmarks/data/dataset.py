"""A data set in memory, and how the launcher hands it to the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchError

IMAGES, TOKENS = "images", "tokens"
PIXEL_SAMPLE = 1000  # images that the mean and the deviation of pixels are taken from


class DataError(BenchError):
    """A data set that is missing, damaged or of the wrong form; the message is one sentence."""


@dataclass(frozen=True)
class Split:
    """Samples and what a model is to answer.

    Attributes:
        inputs: images uint8[N, C, H, W], or tokens, unsigned, [N, L].
        labels: of images int64[N]; of tokens the one after each, [N, L].
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Split:
        """The first samples only; all of them for None."""
        return Split(self.inputs[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """What a model can be trained and judged on.

    Attributes:
        name: for the choice of learning rates: 'fashion-mnist', 'digits', 'folder', 'text',
            'synthetic'.
        title: as shown.
        origin: where it was found.
        kind: IMAGES or TOKENS.
        classes: of images; of tokens the size of the vocabulary.
        train: to learn from.
        test: held out; empty for data that nothing can be learned from.
    """

    name: str
    title: str
    origin: str
    kind: str
    classes: int
    train: Split
    test: Split

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: (C, H, W) of an image, (L,) of tokens."""
        return self.train.inputs.shape[1:]

    def pixel_scale(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of the training pixels, a channel each; of a sample of the images."""
        sample = self.train.inputs[:PIXEL_SAMPLE].astype(np.float64)
        deviation = np.maximum(sample.std((0, 2, 3)), 1)
        return sample.mean((0, 2, 3)).tolist(), deviation.tolist()


def store(dataset: Dataset, folder: Path) -> None:
    """Writes both splits where ranks can map them, so that a host holds them in memory once."""
    for name in ("train", "test"):
        split = getattr(dataset, name)
        np.save(folder / f"{name}-inputs.npy", split.inputs)
        np.save(folder / f"{name}-labels.npy", split.labels)


def stored(folder: Path) -> tuple[Split, Split]:
    """The training and the test split that were stored in a folder."""
    return _mapped(folder, "train"), _mapped(folder, "test")


def _mapped(folder: Path, name: str) -> Split:
    # Copy on write: PyTorch wants arrays that could be written to.
    inputs, labels = (
        np.load(folder / f"{name}-{part}.npy", mmap_mode="c") for part in ("inputs", "labels")
    )
    return Split(inputs, labels)
