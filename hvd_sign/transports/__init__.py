"""Transports: how messages get from rank to rank."""

from hvd_sign.transports.base import Pending, Transport
from hvd_sign.transports.horovod import HorovodCollectives, HorovodTransport
from hvd_sign.transports.local import LocalTransport
from hvd_sign.transports.mpi import MpiTransport

__all__ = [
    "HorovodCollectives",
    "HorovodTransport",
    "LocalTransport",
    "MpiTransport",
    "Pending",
    "Transport",
]
