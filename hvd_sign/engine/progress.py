"""The engine: one progress thread a process, which moves every stream's votes forward.

A vote is an iterator that yields the communications it has to wait for. The thread asks each
stream in turn whether its communication has ended and resumes it, so that streams never wait for
one another whatever order ranks submit them in. It sleeps when nothing is under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from hvd_sign.core import kernels
from hvd_sign.core.process import check_not_forked
from hvd_sign.core.stats import VoteStats, recorder
from hvd_sign.engine import parting
from hvd_sign.engine.stall import StallCheck
from hvd_sign.errors import VoteError
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending

logger = logging.getLogger("hvd_sign")

SHORTEST_NAP = 20e-6
LONGEST_NAP = 400e-6
"""Seconds between two looks at the communications: the longest is a fraction of the time in which
a 1 Gbit/s link fills a socket's buffer."""

IDLE = 1.0
"""Seconds after which the thread looks for work that nobody told it of."""


class Handle:
    """A vote under way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether the vote has ended, well or not."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until the vote has ended.

        Raises:
            TimeoutError: it has not ended after ``timeout`` seconds.
            VoteError: this is a forked child.
            Exception: whatever ended the vote early.
        """
        check_not_forked()
        with recorder.timed("wait_seconds"):
            ended = self._ended.wait(timeout)
        if not ended:
            raise TimeoutError(f"{self.name}: the vote has not ended after {timeout} s")
        if self._error is not None:
            raise self._error

    def finish(self, error: BaseException | None = None) -> None:
        """Marks the end; called by the engine."""
        self._error = error
        self._ended.set()


class Task:
    """A vote in a stream's queue: what is to be done, and whom to tell."""

    def __init__(
        self,
        name: str,
        steps: Iterator[Pending],
        finished: Callable[[], None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.name = name
        self.patient = patient
        self.enqueued = time.monotonic()
        self.handle = Handle(name)
        self._steps = steps
        self._pending: Pending | None = None
        self._finished = finished

    @property
    def begun(self) -> bool:
        """Whether a communication of it is under way."""
        return self._pending is not None

    def advance(self) -> bool:
        """Goes on if the communication waited for has ended; returns whether it did."""
        if self._pending is not None and not self._pending.test():
            return False
        try:
            self._pending = next(self._steps)
        except StopIteration:
            if self._finished is not None:
                self._finished()
            self.handle.finish()
        return True


_abandoned: list[Task] = []
"""What failed under way: MPI may yet write to its buffers, which live as long as it does."""


class Stream:
    """Votes that all ranks take part in in the same order.

    Args:
        engine: moves it forward.
        transport: this stream's own; no other stream's messages can meet its.
        number: told in every message.

    Attributes:
        in_order: votes end one after another; else side by side.
        starts_ahead: in order, but a vote may begin before the one before it has ended.
        closed: by ``close()``.
        spent: on this stream's votes, until somebody takes it from the recorder.
    """

    in_order = True
    starts_ahead = False
    closed = False

    def __init__(self, engine: Engine, transport: Transport, number: int) -> None:
        self.engine = engine
        self.transport = transport
        self.number = number
        self._queue: deque[Task] = deque()
        self._ended = 0
        self._broken: BaseException | None = None
        self.stalls = StallCheck(transport)
        self.spent = VoteStats()
        engine.attach(self)

    def submit(
        self,
        name: str,
        steps: Iterator[Pending],
        finished: Callable[[], None] | None = None,
        *,
        patient: bool = False,
    ) -> Handle:
        """Adds a vote at the end of the queue.

        Args:
            name: for messages.
            steps: the vote.
            finished: called by the progress thread when the vote has ended well.
            patient: however long it takes is no stall.

        Raises:
            VoteError: an earlier vote of this stream failed, the stream is closed, or this is a
                forked child.
        """
        check_not_forked()
        task = Task(name, steps, finished, patient=patient)
        logger.debug("stream %d: %s asked for", self.number, name)
        with self.engine.lock:
            self.check_usable()
            self._queue.append(task)
        self.engine.wake()
        return task.handle

    def check_usable(self) -> None:
        """Raises VoteError if the stream is closed or broken."""
        if self._broken is not None:
            raise VoteError(f"this vote stream is closed: {self._broken}") from self._broken

    @property
    def broken(self) -> bool:
        """Whether a vote has failed, or the stream is closed: it holds none any more."""
        return self._broken is not None

    def busy(self) -> bool:
        """Whether there is anything to move forward."""
        return bool(self._queue)

    def advance(self) -> bool:
        """Moves votes forward; returns whether anything happened."""
        moved = False
        waiting = False
        for place, task in enumerate(list(self._queue), self._ended):
            if waiting and self.in_order and (task.begun or not self.starts_ahead):
                continue
            try:
                with recorder.charging(self.spent):
                    ended = task.advance()
                if ended:
                    moved = True
                else:
                    self.stalls.look(task.name, task.enqueued, place, patient=task.patient)
            except BaseException as error:  # told to those who wait; the thread must live on
                self.stalls.tell_failure(error, self._ended)
                self.fail(error)
                return True
            if task.handle.done():
                self._queue.remove(task)
                self._ended += 1
                self.stalls.forget(task.name)
                logger.debug("stream %d: %s ended", self.number, task.name)
            else:
                waiting = True
        return moved

    def fail(self, error: BaseException) -> None:
        """Ends all votes with ``error`` and refuses later ones."""
        with self.engine.lock:
            self._broken = error
            failed = list(self._queue)
            self._queue.clear()
        _abandoned.extend(task for task in failed if task.begun)
        for task in failed:
            task.handle.finish(error)

    def say_goodbye(self, *, program: bool) -> None:
        """Tells the other ranks that this one will come to no vote any more.

        Args:
            program: its program ends; else it has called ``shutdown()``.
        """
        self.stalls.say_goodbye(self._ended, program=program)

    def close(self, reason: str, *, release: bool) -> None:
        """Ends the stream.

        Args:
            reason: told to whoever uses it later.
            release: give the transport back, unless a failure left something under way; if this
                rank said goodbye, once all others have.
        """
        release = release and self._broken is None
        self.closed = True
        self.fail(VoteError(reason))
        self.engine.detach(self)
        if release and self.stalls.said_goodbye:
            parting.begin(self.stalls, self.transport)
        else:
            self.transport.close(release=release)


class _Source(Protocol):
    def busy(self) -> bool: ...

    def advance(self) -> bool: ...


class Engine:
    """Owns the progress thread, which starts with the first vote.

    Attributes:
        nap: sleeps for so many seconds between two looks; replaced by one that a native vote's end
            cuts short.
    """

    def __init__(self) -> None:
        self.nap: Callable[[float], None] = time.sleep
        self.lock = threading.RLock()
        self._work = threading.Condition(self.lock)
        self._sources: list[_Source] = []
        self._thread: threading.Thread | None = None
        self._stopping = False

    def attach(self, source: _Source) -> None:
        """Adds a stream."""
        with self.lock:
            self._sources.append(source)

    def detach(self, source: _Source) -> None:
        """Removes a stream."""
        with self.lock:
            self._sources.remove(source)

    def start(self) -> None:
        """Starts the thread, which looks for work once a second, or when it is told of some."""
        with self.lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="hvd_sign progress", daemon=True
                )
                self._thread.start()

    def wake(self) -> None:
        """Tells the thread that a stream has work."""
        with self._work:
            self.start()
            self._work.notify()

    def drain(self, timeout: float) -> bool:
        """Waits until no stream has work; returns False if that takes over ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while any(source.busy() for source in list(self._sources)):
            if time.monotonic() > deadline:
                return False
            time.sleep(LONGEST_NAP)
        return True

    def stop(self) -> None:
        """Ends the thread; what is under way stays where it is."""
        with self._work:
            self._stopping = True
            self._work.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        with kernels.ExactFloats():
            self._move()

    def _move(self) -> None:
        nap = SHORTEST_NAP
        while True:
            with self._work:
                while not self._stopping and not any(source.busy() for source in self._sources):
                    self._work.wait(IDLE)
                    nap = SHORTEST_NAP
                if self._stopping:
                    return
                sources = list(self._sources)
            moved = [source.advance() for source in sources]
            if any(moved):
                nap = SHORTEST_NAP
            else:
                self.nap(nap)
                nap = min(2 * nap, LONGEST_NAP)
