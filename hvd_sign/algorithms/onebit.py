"""1-bit compression with error feedback on both sides (Tang et al. 2021, arXiv 2102.02888)."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_sign.algorithms.ef_sign import EfSign


@dataclass(frozen=True)
class OneBit(EfSign):
    """As ``EfSign`` on each rank; what tallies takes the mean of what the ranks say.

    A rank says p = g + e by its signs, times the mean |p| of each chunk of 4096 coordinates, and
    keeps e = p - what it said. Whoever tallies a chunk says q = the ranks' mean + r in the same
    way, to all of them, and keeps r. So the sum over all steps is that of the mean gradients, but
    for what is left unsaid, whatever the ranks' data; as any mean, one rank moves it as far as it
    likes.

    Attributes:
        beta: in [0, 1); above 0 a momentum v = beta v + (1 - beta) g comes in the place of g.

    Raises:
        ValueError: ``beta`` is outside of that.
    """

    name = "onebit"
    averages = True
