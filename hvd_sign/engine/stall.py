"""A rank that never comes: a warning that names the vote and the ranks, or an error, not a hang.

Horovod's settings hold here too: HOROVOD_STALL_CHECK_TIME_SECONDS (60) between warnings,
HOROVOD_STALL_SHUTDOWN_TIME_SECONDS (0: never) before an error, HOROVOD_STALL_CHECK_DISABLE=1.
Whatever they are, a rank that leaves says goodbye, and whoever waits for it hears that.
"""

from __future__ import annotations

import logging
import math
import os
import time
from typing import NamedTuple

from hvd_sign.core.agreement import ranks_text, reason
from hvd_sign.errors import RankLostError, StallError, VoteError
from hvd_sign.transports.base import Transport

logger = logging.getLogger("hvd_sign")

GRACE = 1.0
"""Seconds that other ranks have to tell that they wait too, before the missing ones are named."""

NAP = 1e-3
"""Seconds between two looks for ranks that come back."""

NOTICES = 2
"""The tag of such messages."""


class Wait(NamedTuple):
    """Tells that a voter has waited for long.

    Attributes:
        rank: its number.
        name: of the vote.
    """

    rank: int
    name: str


class Goodbye(NamedTuple):
    """Tells that a voter will come to no vote any more.

    Attributes:
        rank: its number.
        ended: how many votes of the stream it took part in.
        program: its program has ended; else it has called ``shutdown()``.
    """

    rank: int
    ended: int
    program: bool


class Failure(NamedTuple):
    """Tells that a rank's part in a vote has failed, after which it takes part in none.

    Attributes:
        rank: its number.
        ended: how many votes of the stream it took part in.
        why: what was raised.
    """

    rank: int
    ended: int
    why: str


class FailedElsewhereError(VoteError):
    """A vote cannot be held, since another rank's part in it has failed."""


class Return(NamedTuple):
    """Tells that a voter that called ``shutdown()`` has come to ``init()`` again.

    Attributes:
        rank: its number.
    """

    rank: int


class StallCheck:
    """Watches the votes of one stream.

    A rank that has waited too long tells all others, once; those from which no such word comes are
    the ones that have not called the vote.

    Attributes:
        said_goodbye: this rank has left.
        meets: ranks that have left will look for one another here when they come back.
    """

    said_goodbye = False
    meets = False

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._warn_after = _seconds("HOROVOD_STALL_CHECK_TIME_SECONDS", 60.0)
        self._fail_after = _seconds("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 0.0)
        if os.environ.get("HOROVOD_STALL_CHECK_DISABLE", "0") == "1" or self._warn_after <= 0:
            self._warn_after = math.inf
        # Over Horovod's collectives, Horovod itself watches.
        self._mailbox = transport.mailbox(NOTICES)
        self._told: dict[str, float] = {}
        self._waiting: dict[str, set[int]] = {}
        self._left: dict[int, Goodbye] = {}
        self._failed: dict[int, Failure] = {}
        self._ended: set[int] = set()
        self._returned: set[int] = set()
        self._listened = 0.0

    def look(self, name: str, begun: float, place: int, *, patient: bool = False) -> None:
        """Warns if the vote called ``name`` has waited for long since ``begun``.

        Args:
            name: the same on all ranks.
            begun: ``time.monotonic()`` when the vote was asked for.
            place: how many of the stream's votes come before it.
            patient: this rank does not mind; it only tells others that it is there.

        Raises:
            StallError: it has waited for the shutdown time.
            RankLostError: a rank has left before it took part.
            FailedElsewhereError: a rank's part in it, or in an earlier one, has failed.
        """
        if self._mailbox is None:
            return
        now = time.monotonic()
        age = now - begun
        if age < GRACE or (age < self._warn_after and now < self._listened + GRACE):
            return
        self._listened = now
        self._listen()
        self._check_left(name, place)
        if age < self._warn_after:
            return
        if name not in self._told:
            self._told[name] = age + GRACE
            self._tell(Wait(self._transport.rank, name))
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

    def say_goodbye(self, ended: int, *, program: bool) -> None:
        """Tells all others that this rank will come to no vote any more.

        Args:
            ended: how many votes of the stream it took part in.
            program: its program ends; else it has called ``shutdown()``.
        """
        if self._mailbox is not None:
            self._tell(Goodbye(self._transport.rank, ended, program))
            self.said_goodbye = True

    def tell_failure(self, error: BaseException, ended: int) -> None:
        """Tells all others that this rank's part in a vote has failed, unless that is their error.

        Args:
            error: what was raised.
            ended: how many votes of the stream it took part in.
        """
        known = isinstance(error, (FailedElsewhereError, RankLostError, StallError))
        if self._mailbox is not None and not known:
            self._tell(Failure(self._transport.rank, ended, reason(error)))

    def sent(self) -> bool:
        """Whether all that was told is on its way."""
        return self._mailbox is None or self._mailbox.sent()

    def all_left(self) -> bool:
        """Whether every other rank has said goodbye, which is the last that it says."""
        if self._mailbox is not None:
            self._listen()
        return len(self._left) == self._transport.size - 1

    def come_back(self) -> None:
        """Waits until all ranks, which had left, have come back. Blocks.

        Raises:
            RankLostError: the program of one has ended meanwhile.
        """
        self.meets = False
        if not self.said_goodbye:
            return
        self._tell(Return(self._transport.rank))
        while len(self._returned) < self._transport.size - 1:
            self._listen()
            if self._ended:
                who = ranks_text(sorted(self._ended))
                raise RankLostError(f"init(): the program of {who} has ended")
            time.sleep(NAP)

    def _tell(self, notice: Wait | Goodbye | Failure | Return) -> None:
        assert self._mailbox is not None
        for rank in range(self._transport.size):
            if rank != self._transport.rank:
                self._mailbox.send(notice, rank)

    def _listen(self) -> None:
        assert self._mailbox is not None
        for notice in self._mailbox.receive():
            if isinstance(notice, Goodbye):
                self._left.setdefault(notice.rank, notice)  # its program may end later
                if notice.program:
                    self._ended.add(notice.rank)
            elif isinstance(notice, Failure):
                self._failed.setdefault(notice.rank, notice)
            elif isinstance(notice, Return):
                self._returned.add(notice.rank)
            else:
                self._waiting.setdefault(notice.name, set()).add(notice.rank)

    def _check_left(self, name: str, place: int) -> None:
        for failure in self._failed.values():
            if failure.ended <= place:
                raise FailedElsewhereError(
                    f"vote {name!r} cannot be held: it failed on rank {failure.rank}: {failure.why}"
                )
        # What a rank took part in before it left may still be on its way.
        missed = [
            self._left[rank] for rank in sorted(self._left) if self._left[rank].ended <= place
        ]
        ended = [goodbye.rank for goodbye in missed if goodbye.program]
        shut_down = [goodbye.rank for goodbye in missed if not goodbye.program]
        reasons = []
        if ended:
            reasons.append(f"the program of {ranks_text(ended)} has ended")
        if shut_down:
            reasons.append(f"{ranks_text(shut_down)} called shutdown()")
        if reasons:
            raise RankLostError(f"vote {name!r} cannot be held: {', and '.join(reasons)}")

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
