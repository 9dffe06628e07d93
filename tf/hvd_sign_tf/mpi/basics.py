"""Who takes part, as operations that graphs run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from hvd_sign.standalone import ranks as standalone
from hvd_sign_tf.mpi.hosting import on_host

UNKNOWN_SET = -3
"""What ``process_set_included_op`` returns for a process set that is not registered."""


def check_num_rank_power_of_2(num_rank: int) -> bool:
    """Whether a number of ranks is a power of two."""
    return num_rank > 0 and num_rank & (num_rank - 1) == 0


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Whether TensorFlow sees a GPU.

    Args:
        ext_base_name: Horovod's name for the framework; without effect.
        verbose: without effect.
    """
    return bool(tf.config.list_physical_devices("GPU"))


def rank_op(name: str | None = None) -> tf.Tensor:
    """This process's number, read whenever the graph runs: int32[]."""
    return _number(standalone.rank)


def local_rank_op(name: str | None = None) -> tf.Tensor:
    """This process's number on its node, read whenever the graph runs: int32[]."""
    return _number(standalone.local_rank)


def size_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """How many ranks a process set has, read whenever the graph runs: int32[].

    Raises:
        ValueError: there is no such process set.
    """
    return _number(lambda: len(standalone.ranks().process_set(process_set_id).members()))


def local_size_op(name: str | None = None) -> tf.Tensor:
    """How many ranks there are on this node, read whenever the graph runs: int32[]."""
    return _number(standalone.local_size)


def process_set_included_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """1 if this process is in a process set, 0 if not, -3 if there is none: int32[]."""

    def look() -> int:
        try:
            return int(bool(standalone.ranks().process_set(process_set_id).included()))
        except ValueError:
            return UNKNOWN_SET

    return _number(look)


def _number(look: Callable[[], int]) -> tf.Tensor:
    (number,) = on_host(lambda _: [np.int32(look())], [], [tf.int32], [[]])
    return number
