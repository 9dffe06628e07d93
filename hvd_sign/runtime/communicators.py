"""Streams of users' own communicators, for single votes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from hvd_sign.core.launch import check_not_a_copy
from hvd_sign.core.process import load_mpi
from hvd_sign.runtime.lifecycle import runtime
from hvd_sign.runtime.named import AdHocStream

if TYPE_CHECKING:
    from mpi4py import MPI


class _CommunicatorStreams:
    """Ad-hoc streams of users' own communicators, kept as attributes of these."""

    def __init__(self) -> None:
        self._key: int | None = None
        self._lock = threading.Lock()
        self._making: dict[int, threading.Lock] = {}

    def get(self, communicator: MPI.Intracomm) -> AdHocStream:
        with self._lock:
            if self._key is None:
                self._key = load_mpi().Comm.Create_keyval()
            making = self._making.setdefault(communicator.py2f(), threading.Lock())
        # One lock a communicator: threads may use several for the first time in any order.
        with making:
            return self._get(communicator, self._key)

    def _get(self, communicator: MPI.Intracomm, key: int) -> AdHocStream:
        current = runtime()
        kept: Any = communicator.Get_attr(key)
        if kept is not None and kept[0] is current:
            return kept[1]  # type: ignore[no-any-return]
        mpi = load_mpi()
        if communicator != mpi.COMM_SELF:
            check_not_a_copy(mpi.COMM_WORLD.Get_size(), "MPI")
        stream = current.adhoc_stream(current.transport(communicator.Dup()))
        communicator.Set_attr(key, (current, stream))
        return stream


communicator_streams = _CommunicatorStreams()
