"""torch.distributed beside Horovod, in the same ranks."""

from __future__ import annotations

import os
import socket

import psutil
import torch
import torch.distributed as dist

import hvd_sign.torch as hvd


def start(interface: str | None) -> None:
    """Starts torch.distributed among Horovod's ranks: Gloo, and NCCL for tensors on GPUs.

    Rank 0 opens a store on a free port, and tells the others through Horovod where.

    Args:
        interface: the network interface that every rank shall use; None: loopback where all ranks
            are on one host, else the one that the host's name stands for.

    Raises:
        ValueError: there is no such interface, or it has no IPv4 address.
    """
    if interface is None and hvd.local_size() == hvd.size():
        interface = "lo"
    host = socket.gethostname() if interface is None else _address(interface)
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    store = None
    if hvd.rank() == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    place = (host, store.port) if store is not None else None
    place = hvd.broadcast_object(place, root_rank=0, name="torch.distributed")
    if store is None:
        store = dist.TCPStore(*place, is_master=False)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=hvd.rank(), world_size=hvd.size())


def stop() -> None:
    """Ends what start() began."""
    dist.destroy_process_group()


def _address(interface: str) -> str:
    for found in psutil.net_if_addrs().get(interface, ()):
        if found.family == socket.AF_INET:
            return str(found.address)
    raise ValueError(f"interface: expected one with an IPv4 address, got {interface!r}")
