"""Exchanges: how ballots meet and how the verdict comes back. One file each."""

from hvd_sign.exchanges.allgather import AllGather
from hvd_sign.exchanges.base import Exchange
from hvd_sign.exchanges.hierarchical import Hierarchical
from hvd_sign.exchanges.sharded import Sharded
from hvd_sign.options import AUTO, choose

EXCHANGES: dict[str, type[Exchange]] = {
    exchange.name: exchange for exchange in (Sharded, AllGather, Hierarchical)
}


def check_exchange(name: str) -> str:
    """Returns ``name`` if it is an exchange's or ``"auto"``.

    Raises:
        ValueError: names the known ones.
    """
    return choose("exchange", name, (*EXCHANGES, AUTO))


def get_exchange(name: str) -> type[Exchange]:
    """The class of the exchange called ``name``.

    Raises:
        ValueError: names the known ones.
    """
    return EXCHANGES[choose("exchange", name, tuple(EXCHANGES))]


__all__ = [
    "AUTO",
    "EXCHANGES",
    "AllGather",
    "Exchange",
    "Hierarchical",
    "Sharded",
    "check_exchange",
    "get_exchange",
]
