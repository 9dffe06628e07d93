"""Devices: where tensors live, and how they are packed and written there. One file each."""

from hvd_sign.core.places import Packed, Planes
from hvd_sign.devices.base import Device, HostArrays, Operand, PlaneDevice, TensorState
from hvd_sign.devices.host import ABSENT, HOST, HostDevice
from hvd_sign.devices.state import States, check_numbers

__all__ = [
    "ABSENT",
    "HOST",
    "Device",
    "HostArrays",
    "HostDevice",
    "Operand",
    "Packed",
    "PlaneDevice",
    "Planes",
    "States",
    "TensorState",
    "check_numbers",
]
