"""Algorithms: which signal is voted on, and what they keep between steps. One file each."""

from hvd_sign.algorithms.base import Algorithm
from hvd_sign.algorithms.sign import Sign

__all__ = ["Algorithm", "Sign"]
