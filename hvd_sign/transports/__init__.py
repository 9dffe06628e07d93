"""Transports: how messages get from rank to rank."""

from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import NamedCollectives, Pending
from hvd_sign.transports.horovod import HorovodTransport
from hvd_sign.transports.local import LocalTransport
from hvd_sign.transports.mpi import MpiTransport

__all__ = [
    "HorovodTransport",
    "LocalTransport",
    "MpiTransport",
    "NamedCollectives",
    "Pending",
    "Transport",
]
