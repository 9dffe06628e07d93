"""A joined rank's side of a session, and how ranks leave one together."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from hvd_sign.core.stats import recorder
from hvd_sign.engine.progress import Handle
from hvd_sign.errors import DisagreementError
from hvd_sign.runtime.sessions import VoteSession, failing
from hvd_sign.transports.communication import Pending


class ServedSession:
    """A joined rank's side of a session: abstains until every rank has joined.

    What a backward pass without ``step()`` has begun is ended first, abstaining in the rest.
    """

    def __init__(self, session: VoteSession) -> None:
        self._session = session
        self._begun = session.abandon()
        self.first_step = self._step = session.step + int(self._begun)
        self._ended = threading.Event()
        self._handle: Handle | None = None
        if session.buckets:
            self._next()
        else:
            self._ended.set()

    def wait(self) -> None:
        """Blocks until every rank has joined.

        Raises:
            Exception: whatever ended a vote early.
        """
        while not self._ended.is_set():
            with self._session.stream.engine.lock:
                handle = self._handle
            assert handle is not None
            handle.wait()  # a next one is there before this one ends, unless all have joined

    def steps_of_all(self) -> list[int]:
        """How many steps each rank had taken when it joined; only after ``wait()``."""
        return self._session.stream.transport.gather_objects(self.first_step)

    def _next(self) -> None:
        held = self._session.absent_step(self._step)
        for number, (name, steps) in enumerate(held, 1):
            if self._begun:
                steps = self._after_begun(steps)
            with self._session.stream.engine.lock:
                self._handle = self._session.stream.submit(
                    name, steps, self._round_ended if number == len(held) else None, patient=True
                )
        self._step += 1

    def _after_begun(self, steps: Iterator[Pending]) -> Iterator[Pending]:
        """A vote on which the step before it, that nobody waits for, may bear by how it ends."""
        stream, before = self._session.stream, self._step - 1
        self._begun = False
        ahead, stream.starts_ahead = stream.starts_ahead, False

        def begin() -> Iterator[Pending]:
            stream.starts_ahead = ahead
            self._session.end_step(before)
            yield from steps

        return begin()

    def _round_ended(self) -> None:
        ended = self._step - 1
        self._session.end_step(ended)
        if all(vote.all_joined for vote in self._session.rounds_of(ended)):
            self._session.step = self._step
            recorder.take(self._session.stream.spent)
            self._ended.set()
        else:
            self._next()


def leave_together(session: VoteSession) -> None:
    """Holds one more step, in which all ranks are to say that they leave the session.

    Raises:
        DisagreementError: others vote on in it; they hear of that at their next step.
        Exception: whatever ended a vote early.
    """
    step, stream = session.step, session.stream
    for handle in [stream.submit(name, steps) for name, steps in session.absent_step(step)]:
        handle.wait()
    if all(vote.all_joined for vote in session.rounds_of(step)):
        return
    error = DisagreementError(
        f"rank {stream.transport.rank} has other parameters to exchange than before (added, "
        "frozen or unfrozen), and other ranks have not; let all ranks change them between the "
        "same two steps"
    )
    stream.submit(f"step {step}: parameters", failing(error))
    raise error
