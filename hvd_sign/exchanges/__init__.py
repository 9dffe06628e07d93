"""Exchanges: how ballots meet and how the verdict comes back. One file each."""

from hvd_sign.exchanges.allgather import AllGather
from hvd_sign.exchanges.base import Exchange
from hvd_sign.exchanges.sharded import Sharded
from hvd_sign.options import choose

EXCHANGES: dict[str, Exchange] = {exchange.name: exchange for exchange in (Sharded(), AllGather())}


AUTO = "auto"
"""Per bucket the cheapest, by the cost model."""


def check_exchange(name: str) -> str:
    """Returns ``name`` if it is an exchange's or ``"auto"``.

    Raises:
        ValueError: names the known ones.
    """
    return choose("exchange", name, (*EXCHANGES, AUTO))


def get_exchange(name: str) -> Exchange:
    """The exchange called ``name``.

    Raises:
        ValueError: names the known ones.
    """
    return EXCHANGES[choose("exchange", name, tuple(EXCHANGES))]


__all__ = [
    "AUTO",
    "EXCHANGES",
    "AllGather",
    "Exchange",
    "Sharded",
    "check_exchange",
    "get_exchange",
]
