"""What the votes of this process cost, counted where it happens."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace


@dataclass
class VoteStats:
    """Sums since the start of the process or the last ``reset_vote_stats()``.

    Attributes:
        votes: buckets decided.
        payload_bytes: bytes that this rank sent to other ranks for votes, headers included, to
            ranks of its own node too; a dense allreduce counts as a ring.
        pack_seconds: time spent turning signals into ballots.
        exchange_seconds: time between the start and the end of the votes' communication.
        tally_seconds: time spent counting ballots.
        apply_seconds: time spent writing verdicts into tensors.
        wait_seconds: time that callers were blocked waiting for votes.
        ties: coordinates of this rank's shards that were tied.
        nonfinite_chunks: chunks of 4096 coordinates in which this rank abstained over NaN or Inf.
        skipped_steps: steps that ``nonfinite="skip"`` left out.
    """

    votes: int = 0
    payload_bytes: int = 0
    pack_seconds: float = 0.0
    exchange_seconds: float = 0.0
    tally_seconds: float = 0.0
    apply_seconds: float = 0.0
    wait_seconds: float = 0.0
    ties: int = 0
    nonfinite_chunks: int = 0
    skipped_steps: int = 0

    def asdict(self) -> dict[str, int | float]:
        """The same as a dictionary."""
        return asdict(self)


class _Recorder:
    """Collects from the progress thread and from callers."""

    def __init__(self) -> None:
        self._renew_lock()
        self._sums = VoteStats()
        self._thread = threading.local()
        # The progress thread may hold it at a fork, and is not in the child.
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def add(self, **amounts: int | float) -> None:
        account = getattr(self._thread, "account", None)
        with self._lock:
            for sums in (self._sums, account):
                if sums is not None:
                    for name, amount in amounts.items():
                        setattr(sums, name, getattr(sums, name) + amount)

    @contextmanager
    def charging(self, account: VoteStats) -> Iterator[None]:
        """Within it, what this thread adds is counted in ``account`` too."""
        self._thread.account = account
        try:
            yield
        finally:
            self._thread.account = None

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - start})

    def snapshot(self) -> VoteStats:
        with self._lock:
            return replace(self._sums)

    def reset(self) -> None:
        with self._lock:
            self._sums = VoteStats()

    def take(self, account: VoteStats) -> VoteStats:
        """What was charged to ``account``, which begins anew at zero."""
        with self._lock:
            taken = replace(account)
            vars(account).update(vars(VoteStats()))
        return taken


recorder = _Recorder()


def vote_stats() -> VoteStats:
    """A snapshot of this process's sums."""
    return recorder.snapshot()


def reset_vote_stats() -> None:
    """Sets this process's sums to zero."""
    recorder.reset()
