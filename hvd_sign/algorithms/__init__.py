"""Algorithms: which signal is voted on, and what they keep between steps. One file each."""

from hvd_sign.algorithms.base import Algorithm
from hvd_sign.algorithms.sign import Sign
from hvd_sign.options import choose

ALGORITHMS: dict[str, type[Algorithm]] = {algorithm.name: algorithm for algorithm in (Sign,)}


def check_algorithm(name: str) -> str:
    """Returns ``name`` if it is an algorithm's.

    Raises:
        ValueError: names the known ones.
    """
    return choose("algorithm", name, tuple(ALGORITHMS))


def make_algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``, with nothing kept yet.

    Raises:
        ValueError: names the known ones.
    """
    return ALGORITHMS[check_algorithm(name)]()


__all__ = ["ALGORITHMS", "Algorithm", "Sign", "check_algorithm", "make_algorithm"]
