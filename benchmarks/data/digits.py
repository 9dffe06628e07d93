"""Scikit-learn's bundled handwritten digits, enlarged to the form of Fashion-MNIST."""

from __future__ import annotations

import numpy as np

from benchmarks.data.dataset import IMAGES, DataError, Dataset, Split

TEST_SHARE = 5  # every fifth digit is for testing


def load(limit: int | None = None, test_limit: int | None = None) -> Dataset:
    """The digits as uint8[N, 1, 28, 28], at most so many. Raises DataError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits need scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    # 8 x 8 values of 0 to 16, each made 3 x 3, with a margin of 2: 28 x 28 bytes.
    enlarged = np.kron(digits.images / 16 * 255, np.ones((3, 3)))
    images = np.pad(enlarged.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    test = np.arange(len(labels)) % TEST_SHARE == 0
    return Dataset(
        name="digits",
        title="scikit-learn's handwritten digits",
        origin="bundled with scikit-learn",
        kind=IMAGES,
        classes=10,
        train=Split(images[~test], labels[~test]).first(limit),
        test=Split(images[test], labels[test]).first(test_limit),
    )
