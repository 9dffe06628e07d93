"""A rank that never comes: a warning that names the vote and the ranks, or an error, not a hang.

Horovod's settings hold here too: HOROVOD_STALL_CHECK_TIME_SECONDS (60) between warnings,
HOROVOD_STALL_SHUTDOWN_TIME_SECONDS (0: never) before an error, HOROVOD_STALL_CHECK_DISABLE=1.
"""

from __future__ import annotations

import logging
import os
import time

from hvd_sign.agreement import ranks_text
from hvd_sign.errors import RankLostError, StallError
from hvd_sign.transports.base import Transport
from hvd_sign.transports.mpi import Mailbox, MpiTransport

logger = logging.getLogger("hvd_sign")

GRACE = 1.0
"""Seconds that other ranks have to tell that they wait too, before the missing ones are named."""

LAST_WORDS = 5.0
"""Seconds in which what a rank sent before its end has surely come."""

NOTICES = 2
"""The tag of such messages."""


class StallCheck:
    """Watches the votes of one stream.

    A rank that has waited too long tells all others, once; those from which no such word comes are
    the ones that have not called the vote.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._warn_after = _seconds("HOROVOD_STALL_CHECK_TIME_SECONDS", 60.0)
        self._fail_after = _seconds("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 0.0)
        # Over Horovod's collectives, Horovod itself watches.
        watched = isinstance(transport, MpiTransport) and (
            os.environ.get("HOROVOD_STALL_CHECK_DISABLE", "0") != "1" and self._warn_after > 0
        )
        self._mailbox: Mailbox | None = None
        if watched:
            assert isinstance(transport, MpiTransport)
            self._mailbox = transport.mailbox(NOTICES)
        self._told: dict[str, float] = {}
        self._waiting: dict[str, set[int]] = {}
        self._ended: dict[int, float] = {}
        self._listened = 0.0

    def look(self, name: str, begun: float, *, patient: bool = False) -> None:
        """Warns if the vote called ``name`` has waited for long since ``begun``.

        Args:
            name: the same on all ranks.
            begun: ``time.monotonic()`` when the vote was asked for.
            patient: this rank does not mind; it only tells others that it is there.

        Raises:
            StallError: it has waited for the shutdown time.
            RankLostError: a rank's program has ended.
        """
        if self._mailbox is None:
            return
        now = time.monotonic()
        age = now - begun
        if age < GRACE or (age < self._warn_after and now < self._listened + GRACE):
            return
        self._listen(now)
        self._check_ends(name, now)
        if age < self._warn_after:
            return
        if name not in self._told:
            self._told[name] = age + GRACE
            for rank in range(self._transport.size):
                if rank != self._transport.rank:
                    self._mailbox.send((self._transport.rank, name), rank)
        if patient or age < self._told[name]:
            return
        self._told[name] = age + self._warn_after
        here = self._waiting.get(name, set()) | {self._transport.rank}
        missing = [rank for rank in range(self._transport.size) if rank not in here]
        # With nobody missing, it is the network or a busy rank that keeps everybody waiting.
        who = f"{ranks_text(missing)} did not come" if missing else "all ranks wait for it"
        sentence = f"vote {name!r} has waited for {age:.0f} s on rank {self._transport.rank}: {who}"
        if 0 < self._fail_after <= age:
            raise StallError(sentence)
        logger.warning(sentence)

    def say_goodbye(self) -> None:
        """Tells all others that this rank's program ends: it will come to no vote any more."""
        if self._mailbox is not None:
            for rank in range(self._transport.size):
                if rank != self._transport.rank:
                    self._mailbox.send((self._transport.rank, None), rank)

    def _listen(self, now: float) -> None:
        assert self._mailbox is not None
        self._listened = now
        for rank, name in self._mailbox.receive():
            if name is None:
                self._ended[rank] = now
            else:
                self._waiting.setdefault(name, set()).add(rank)

    def _check_ends(self, name: str, now: float) -> None:
        # A rank may end while the last of what it sent is still on its way.
        gone = sorted(rank for rank, at in self._ended.items() if now - at > LAST_WORDS)
        if gone:
            raise RankLostError(
                f"vote {name!r} cannot be held: the program of {ranks_text(gone)} has ended"
            )

    def forget(self, name: str) -> None:
        """The vote has ended."""
        self._told.pop(name, None)
        self._waiting.pop(name, None)


def _seconds(variable: str, default: float) -> float:
    """An environment variable as a number of seconds.

    Raises:
        ValueError: it is no number.
    """
    value = os.environ.get(variable, "")
    try:
        return float(value) if value else default
    except ValueError:
        raise ValueError(f"{variable}: expected a number of seconds, got {value!r}") from None
