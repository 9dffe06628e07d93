"""How every benchmark's program for TensorFlow begins and ends on a rank."""

from __future__ import annotations

import tensorflow as tf

import hvd_sign.tensorflow as hvd
from benchmarks.ranks import program
from benchmarks.ranks.program import Measure


def use_one_core() -> None:
    """Limits TensorFlow to one computing thread, and one that may wait for others meanwhile."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)


def main(module: str, doc: str | None, measure: Measure) -> None:
    """Reads `MODULE CONFIG EVENTS` from the command line and measures, on one core."""
    use_one_core()
    program.main(module, doc, hvd, measure)
