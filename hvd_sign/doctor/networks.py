"""The networks of a machine, and those that the environment names."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from hvd_sign.core.launch import Placement
from hvd_sign.doctor.findings import FAILED, OK, WARNING, Seen

NAMES = (
    "OMPI_MCA_btl_tcp_if_include",
    "OMPI_MCA_oob_tcp_if_include",
    "PRTE_MCA_prte_if_include",
    "GLOO_SOCKET_IFNAME",
    "HOROVOD_GLOO_IFACE",
)
"""Variables that name interfaces, with commas between them."""
EXCLUDES = ("OMPI_MCA_btl_tcp_if_exclude", "UCX_NET_DEVICES", "UCX_TLS")
"""Variables by which somebody has chosen in another way."""
VIRTUAL = re.compile(r"(docker|virbr|br-|podman|cni|flannel|lxcbr|lxdbr)")
"""Bridges to a machine's own containers, by which no other machine can be reached."""
SIOCGIFADDR = 0x8915
SIOCGIFFLAGS = 0x8913
IFF_UP, IFF_RUNNING = 0x1, 0x40
DEVICES = Path("/sys/class/infiniband")


def interfaces(environment: Mapping[str, str], place: Placement) -> Seen:
    """Whether the interfaces that are named are up, and whether a choice is needed."""
    up = {name: address for name, address in addresses() if address is not None}
    fabrics = sorted(path.name for path in DEVICES.iterdir()) if DEVICES.is_dir() else []
    outward = {name: address for name, address in up.items() if name != "lo"}
    found = ", ".join([*(f"{name} {address}" for name, address in outward.items()), *fabrics])
    for variable, name in _named(environment):
        if name not in up:
            what = "has no address or is down" if name in _all_names() else "is not there"
            remedy = f"name one that is up in {variable} (ip -br addr), or set it up"
            return Seen(FAILED, f"{variable}: {name} {what}; up: {found or 'none'}", remedy)
    if fabrics and environment.get("OMPI_MCA_pml") == "ob1":
        remedy = "unset OMPI_MCA_pml, or set it to ucx"
        return Seen(WARNING, f"{found}; OMPI_MCA_pml=ob1 forces TCP", remedy)
    chosen = any(environment.get(variable) for variable in (*NAMES, *EXCLUDES)) or fabrics
    virtual = [name for name in outward if VIRTUAL.match(name)]
    if virtual and not chosen and (place.size or 1) > 1:
        remedy = (
            "OMPI_MCA_btl_tcp_if_include=, or INTERFACE= in slurm/, the one that reaches the "
            "other machines"
        )
        where = f"{', '.join(virtual)} may lead to no other machine"
        return Seen(WARNING, f"{found}; {where}", remedy)
    return Seen(OK, found or "the loopback alone")


def addresses() -> Iterator[tuple[str, str | None]]:
    """Interfaces that are up, with their IPv4 address if they have one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in _all_names():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFFLAGS, request)
                flags = struct.unpack("16xH", answer[:18])[0]
                if flags & IFF_UP and flags & IFF_RUNNING:
                    answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
                    yield name, socket.inet_ntoa(answer[20:24])
            except OSError:
                yield name, None


def _all_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _named(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables and the interfaces that they name; networks, such as 10.0.0.0/8, are passed by."""
    for variable in NAMES:
        for name in environment.get(variable, "").split(","):
            if name and "/" not in name:
                yield variable, name
