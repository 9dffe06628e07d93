"""Exchanges: how ballots meet and how the verdict comes back. One file each."""

from hvd_sign.core.options import AUTO, choose
from hvd_sign.exchanges.allgather import AllGather
from hvd_sign.exchanges.base import Exchange, Load
from hvd_sign.exchanges.hierarchical import Hierarchical
from hvd_sign.exchanges.sharded import Sharded
from hvd_sign.transports.link import Parts

EXCHANGES: dict[str, type[Exchange]] = {
    exchange.name: exchange for exchange in (Sharded, AllGather, Hierarchical)
}

OWN = frozenset(EXCHANGES)
"""The names of those that are the same everywhere."""


def register(exchange: type[Exchange]) -> type[Exchange]:
    """Makes an exchange known by its name, on every rank, before any vote; a class decorator too.

    Raises:
        ValueError: another one has that name, or it is no exchange with a name.
    """
    if not (isinstance(exchange, type) and issubclass(exchange, Exchange)):
        raise ValueError(f"exchange: expected a class derived from Exchange, got {exchange!r}")
    if not isinstance(getattr(exchange, "name", None), str):
        raise ValueError(f"exchange: expected {exchange.__name__} to have a name")
    known = EXCHANGES.setdefault(exchange.name, exchange)
    if known is not exchange or exchange.name == AUTO:
        raise ValueError(f"exchange: the name {exchange.name!r} is taken")
    return exchange


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
    "OWN",
    "AllGather",
    "Exchange",
    "Hierarchical",
    "Load",
    "Parts",
    "Sharded",
    "check_exchange",
    "get_exchange",
    "register",
]
