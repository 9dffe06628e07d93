"""Algorithms: which signal is voted on, and what they keep between steps. One file each."""

from __future__ import annotations

from hvd_sign.algorithms.base import (
    IDENTITY,
    RESIDUAL,
    VERDICT_RESIDUAL,
    Algorithm,
    Linear,
    checked,
    normal,
    stepped,
)
from hvd_sign.algorithms.ef_sign import EfSign
from hvd_sign.algorithms.lion import Lion
from hvd_sign.algorithms.onebit import OneBit
from hvd_sign.algorithms.sign import Sign
from hvd_sign.algorithms.signum import Signum

ALGORITHMS: dict[str, type[Algorithm]] = {
    algorithm.name: algorithm for algorithm in (Sign, Signum, Lion, EfSign, OneBit)
}


def make_algorithm(value: object) -> Algorithm:
    """The algorithm that a user means: an instance, a class, or a name with its defaults.

    Raises:
        ValueError: names the known ones; or what an algorithm says of itself cannot be.
    """
    if isinstance(value, Algorithm):
        return checked(value)
    if isinstance(value, type) and issubclass(value, Algorithm):
        return checked(value())
    if isinstance(value, str) and value in ALGORITHMS:
        return ALGORITHMS[value]()
    names = ", ".join(repr(name) for name in ALGORITHMS)
    raise ValueError(f"algorithm: expected an Algorithm, or one of {names}, got {value!r}")


__all__ = [
    "ALGORITHMS",
    "IDENTITY",
    "RESIDUAL",
    "VERDICT_RESIDUAL",
    "Algorithm",
    "EfSign",
    "Linear",
    "Lion",
    "OneBit",
    "Sign",
    "Signum",
    "make_algorithm",
    "normal",
    "stepped",
]
