"""The training benchmark's data sets: found, checked and loaded, without any framework."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data import digits, fashion_mnist, folder, synthetic, text
from benchmarks.data.dataset import IMAGES, TOKENS, DataError, Dataset, Split, store, stored
from benchmarks.data.synthetic import Shape

__all__ = [
    "IMAGES",
    "NAMES",
    "TOKENS",
    "DataError",
    "Dataset",
    "Shape",
    "Split",
    "load",
    "store",
    "stored",
]

NAMES = ("auto", "fashion-mnist", "digits", "synthetic")


def load(
    wanted: str, shape: Shape, limit: int | None = None, test_limit: int | None = None
) -> Dataset:
    """Finds, checks and loads a data set.

    Args:
        wanted: one of NAMES, a folder of images or a text file. 'auto': Fashion-MNIST, or digits if
            need be, for images; synthetic for tokens.
        shape: what the model takes, and what shape where the data leave a choice.
        limit: at most so many training samples; None: all. Synthetic data have no end.
        test_limit: the same of the test samples.

    Raises:
        DataError: it cannot be had, or is not what the model takes.
    """
    path = Path(wanted)
    if wanted == "synthetic" or (wanted == "auto" and shape.kind == TOKENS):
        return synthetic.load(shape)
    if wanted not in NAMES and path.is_file():
        _require(shape, TOKENS, f"names a text, {wanted}")
        return text.load(path, shape.sequence, limit, test_limit)
    if wanted not in NAMES and not path.is_dir():
        raise DataError(
            f"--data: expected {', '.join(NAMES)}, a folder of images or a text file, "
            f"got {wanted!r}"
        )
    _require(shape, IMAGES, f"names images, {wanted}")
    if path.is_dir() and wanted not in NAMES:
        return folder.load(path, shape.side, limit, test_limit)
    found = fashion_mnist.find_or_install() if wanted != "digits" else None
    if found is not None:
        return fashion_mnist.load(found, limit, test_limit)
    if wanted == "fashion-mnist":
        raise DataError(fashion_mnist.REMEDY)
    return digits.load(limit, test_limit)


def _require(shape: Shape, kind: str, what: str) -> None:
    if shape.kind != kind:
        raise DataError(f"the model takes {shape.kind}, and --data {what}")
