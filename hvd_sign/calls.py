"""Calls that users make one by one, in any order: ranks first agree, by name, on what runs."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hvd_sign.agreement import JOINED, KIND, NEEDED, REFUSED, WAIVED
from hvd_sign.engine import Engine, Handle, Stream, Task
from hvd_sign.errors import DisagreementError
from hvd_sign.order import Decision, News, make_order
from hvd_sign.process import check_not_forked
from hvd_sign.transports.base import Pending, Transport

logger = logging.getLogger("hvd_sign")


class Call(ABC):
    """Something that all ranks do together once each has asked for it.

    Attributes:
        kind: such as ``"allreduce"``.
        patient: however long other ranks take is no stall.
        task: made by the stream.
    """

    kind: str
    patient = False
    task: Task

    @abstractmethod
    def claim(self) -> dict[str, Any]:
        """What has to be the same on all ranks beside the kind."""

    @abstractmethod
    def steps(self, name: str, transport: Transport) -> Iterator[Pending]:
        """What is done once all ranks are ready.

        Args:
            name: of the call.
            transport: for this call.
        """


GRADIENTS = "exchange of gradients"
"""The name of the opening of what an optimizer or a tape exchanges gradients by."""

VOTED, REDUCED = "vote", "allreduce"
"""The methods of such an exchange."""

PROCESS_SETS = "process sets"
"""The name of the opening of a change to the process sets."""

ADDED, REMOVED = "one more", "one less"
"""Such changes."""


class Opening(Call):
    """Waits until all ranks have come to open something that they will use together.

    What is collective without hearing goodbyes, such as making communicators, begins with one.

    Args:
        claim: what has to be the same on all ranks.
        patient: however long other ranks take is no stall.
        joined: whether ranks that have joined are needed; else it is served without them.
    """

    kind = "opening"

    def __init__(
        self, claim: dict[str, Any], *, patient: bool = False, joined: str = NEEDED
    ) -> None:
        self._claim = {**claim, JOINED: joined}
        self.patient = patient

    def claim(self) -> dict[str, Any]:
        """As given."""
        return self._claim

    def steps(self, name: str, transport: Transport) -> Iterator[Pending]:
        """The agreement was all."""
        return iter(())


def check_name(name: object) -> None:
    """Raises TypeError or ValueError unless ``name`` can name a call."""
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string or None, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"name: expected text that UTF-8 can encode, got {name!r}") from None


class NamedStream(Stream, ABC):
    """The stream of such calls among the voters of a transport."""

    def __init__(self, engine: Engine, transport: Transport, number: int) -> None:
        self._asked: dict[str, Call] = {}
        self._news: list[News] = []
        self._left = False
        self._owes = False
        self._unnamed: Counter[str] = Counter()
        self._opening = threading.Lock()
        self._order = make_order(transport, self._tally)
        super().__init__(engine, transport, number)
        self.in_order = self._order.in_order

    def ask(
        self, call: Call, name: str | None, finished: Callable[[], None] | None = None
    ) -> Handle:
        """Asks for a call; it runs once every rank has asked for it.

        Args:
            call: what to do.
            name: of the call; without one it is called after how many unnamed ones of its kind
                came before.
            finished: called by the progress thread when it has ended well.

        Raises:
            ValueError: a call of that name is under way on this rank.
            RuntimeError: the stream is closed, or this is a forked child.
        """
        check_not_forked()
        with self.engine.lock:
            self.check_usable()
            if name is None:
                name = self._next_unnamed(call.kind)
            if name in self._asked:
                raise ValueError(
                    f"name: a call named {name!r} is already under way on rank "
                    f"{self.transport.rank}; wait for it or give this one another name"
                )
            call.task = Task(name, self._run(name, call), finished, patient=call.patient)
            self._asked[name] = call
            self._tell(name, {KIND: call.kind, **call.claim()})
        logger.debug("stream %d: %s asked for", self.number, name)
        self.engine.wake()
        return call.task.handle

    def open(self, name: str, *, joined: str = NEEDED, **claim: Any) -> None:
        """Waits until all ranks have come to open something together. Blocks.

        Args:
            name: of what is opened.
            joined: see ``Opening``.
            claim: what has to be the same on all ranks.

        Raises:
            DisagreementError: on all ranks alike: they differ in it, or one of them was refused.
            RankLostError: a rank has left.
        """
        with self._opening:  # one of a name at a time, whatever threads there are
            self.ask(Opening(claim, joined=joined), name).wait()

    def open_dense(self) -> None:
        """Before this rank waits in another library for the sum of all ranks' gradients.

        Not where it could wait for ever: over Horovod's own collectives ranks come and go, and
        after a join some ranks have had their first step.

        Raises:
            DisagreementError: on all ranks alike: some ranks vote on their gradients.
            RankLostError: a rank has left.
        """
        if self._order.can_leave and self._order.joins == 0:
            self.open(GRADIENTS, joined=WAIVED, method=REDUCED)

    @contextmanager
    def refusing(self, kind: str, name: str | None) -> Iterator[None]:
        """Within it, what refuses this rank's call is told to the others, whose calls it ends.

        The call then counts as one of that name, so that later ones meet the others' later ones.

        Args:
            kind: of call.
            name: of the call.

        Raises:
            TypeError: ``name`` is neither a string nor None.
            VoteError: this is a forked child.
            Exception: raised within.
        """
        check_not_forked()
        try:
            check_name(name)
            yield
        except Exception as error:  # whatever it is, the others would wait for this call
            if name is not None:
                name = str(name).encode(errors="backslashreplace").decode()
            self._refuse(kind, name, str(error) or repr(error))
            raise

    def _refuse(self, kind: str, name: str | None, why: str) -> None:
        with self.engine.lock:
            # While one of that name is under way, all ranks refuse another.
            if self._broken is not None or name in self._asked:
                return
            name = self._next_unnamed(kind) if name is None else name
            self._tell(name, {REFUSED: why})
        logger.debug("stream %d: %s refused: %s", self.number, name, why)
        self.engine.wake()

    def _tell(self, name: str | None, claim: dict[str, Any]) -> None:
        self._news.append(News(self.transport.rank, name, claim, self._order.joins))

    def _next_unnamed(self, kind: str) -> str:
        self._unnamed[kind] += 1
        return f"{kind}.noname.{self._unnamed[kind] - 1}"

    def busy(self) -> bool:
        """Whether anything is asked for, under way, or owed to other ranks."""
        return bool(self._asked or self._news or self._left or self._owes) or super().busy()

    def leave(self) -> None:
        """Tells that this rank has joined: it will not ask for anything before ``come_back()``.

        What other ranks ask for meanwhile ends in the same error on all of them: ours, or
        Horovod's where its collectives carry the votes.
        """
        if not self._order.can_leave:
            return
        with self.engine.lock:
            self._left = True
            self._tell(None, {})
        self.engine.wake()

    def come_back(self) -> None:
        """Ends ``leave()``; all ranks have joined."""
        with self.engine.lock:
            self._left = False
            self._order.joins += 1

    def advance(self) -> bool:
        """Lets the ranks agree, then moves the first call forward."""
        moved = False
        try:
            if self._asked or self._news or self._left or self._owes:
                with self.engine.lock:
                    news, self._news = self._news, []
                    self._owes = True  # until all have heard
                for decision in self._order.listen([self._prepare(item) for item in news]):
                    self._start(decision)
                    moved = True
                self._owes = self._order.owes()
                places = {task: place for place, task in enumerate(self._queue, self._ended)}
                undecided = self._ended + len(places)
                for name, call in list(self._asked.items()):
                    place = places.get(call.task, undecided)
                    self.stalls.look(name, call.task.asked, place, patient=call.patient)
        except BaseException as failure:  # told to those who wait; the thread must live on
            self.fail(failure)
            return True
        return super().advance() or moved

    def fail(self, error: BaseException) -> None:
        """Ends all calls, asked for or under way."""
        with self.engine.lock:
            asked = list(self._asked.values())
            self._asked.clear()
            self._news.clear()
            self._owes = False
            super().fail(error)
        for call in asked:
            if not call.task.handle.done():
                call.task.handle.finish(error)

    def _prepare(self, item: News) -> News:
        """What this rank is ready for, as it is told to the others."""
        return item

    @abstractmethod
    def _tally(self, name: str, ballots: list[bytes]) -> bytes:
        """The verdict of a vote whose ballots travelled with the news."""

    def _start(self, decision: Decision) -> None:
        name, error = decision.name, decision.error
        call = self._asked[name]
        logger.debug("stream %d: %s %s", self.number, name, error or "begins")
        if error is not None:
            self._forget(name)
            call.task.handle.finish(DisagreementError(error))
            return
        with self.engine.lock:
            self._queue.append(call.task)

    def _run(self, name: str, call: Call) -> Iterator[Pending]:
        yield from call.steps(name, self._order.transport_for(name))
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self.engine.lock:
            del self._asked[name]
