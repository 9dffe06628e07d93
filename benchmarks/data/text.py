"""A text file as a sequence of bytes; its last tenth is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.data.dataset import TOKENS, DataError, Dataset, Split

TEST_SHARE = 10  # the last tenth is for testing
VOCABULARY = 256


def load(
    path: Path, sequence: int, limit: int | None = None, test_limit: int | None = None
) -> Dataset:
    """Cuts a text into samples: uint8[N, L] bytes, and for each byte the next one as its label.

    Args:
        path: the file, of any encoding.
        sequence: L, bytes of a sample.
        limit: at most so many training samples; None: all.
        test_limit: the same of the test samples.

    Raises:
        DataError: it cannot be read, or its last tenth is too short for one sample.
    """
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    held_out = len(content) // TEST_SHARE
    if held_out <= sequence:
        raise DataError(
            f"{path}: expected more than {TEST_SHARE * (sequence + 1) - 1} bytes, so that a tenth "
            f"holds a sample of {sequence} and its next byte, got {len(content)}"
        )
    border = len(content) - held_out
    return Dataset(
        name="text",
        title=f"bytes of {path.name}",
        origin=str(path),
        kind=TOKENS,
        classes=VOCABULARY,
        train=_samples(content[:border], sequence).first(limit),
        test=_samples(content[border:], sequence).first(test_limit),
    )


def _samples(content: np.ndarray, sequence: int) -> Split:
    count = (len(content) - 1) // sequence
    size = count * sequence
    return Split(
        content[:size].reshape(count, sequence), content[1 : size + 1].reshape(count, sequence)
    )
