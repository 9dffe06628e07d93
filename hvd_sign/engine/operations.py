"""Operations called one by one, in any order: ranks first agree, by name, on what runs."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hvd_sign.core.agreement import ELSEWHERE, JOINED, KIND, NEEDED, REFUSED, WAIVED, reason
from hvd_sign.core.process import check_not_forked
from hvd_sign.engine.coordinator import Request, Response, make_coordinator
from hvd_sign.engine.elsewhere import Elsewhere
from hvd_sign.engine.progress import Engine, Handle, Stream, Task
from hvd_sign.errors import DisagreementError
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending

logger = logging.getLogger("hvd_sign")


class Operation(ABC):
    """Something that all ranks do together once each has enqueued it.

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
            name: of the operation.
            transport: for this operation.
        """


GRADIENTS = "exchange of gradients"
"""The name of the opening of what an optimizer or a tape exchanges gradients by."""

VOTED, REDUCED = "vote", "allreduce"
"""The methods of such an exchange."""

PROCESS_SETS = "process sets"
"""The name of the opening of a change to the process sets."""

ADDED, REMOVED = "one more", "one less"
"""Such changes."""


class Opening(Operation):
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
    """Raises TypeError or ValueError unless ``name`` can name an operation."""
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string or None, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"name: expected text that UTF-8 can encode, got {name!r}") from None


class NamedStream(Stream, ABC):
    """The stream of such operations among the voters of a transport.

    Attributes:
        clash: ends in an error what other ranks wait for in another library: what it is, its name.
    """

    clash: Callable[[str, str], None] | None = None

    def __init__(self, engine: Engine, transport: Transport, number: int) -> None:
        self._operations: dict[str, Operation] = {}
        self._requests: list[Request] = []
        self._left = False
        self._owes = False
        self._unnamed: Counter[str] = Counter()
        self._opening = threading.Lock()
        self._elsewhere = Elsewhere()
        self._coordinator = make_coordinator(transport, self._tally)
        super().__init__(engine, transport, number)
        self.in_order = self._coordinator.in_order

    def enqueue(
        self, operation: Operation, name: str | None, finished: Callable[[], None] | None = None
    ) -> Handle:
        """Enqueues an operation; it runs once every rank has enqueued it.

        Args:
            operation: what to do.
            name: of the operation; without one it is called after how many unnamed ones of its
                kind came before.
            finished: called by the progress thread when it has ended well.

        Raises:
            ValueError: an operation of that name is under way on this rank.
            RuntimeError: the stream is closed, or this is a forked child.
        """
        check_not_forked()
        with self.engine.lock:
            self.check_usable()
            if name is None:
                name = self._next_unnamed(operation.kind)
            if name in self._operations:
                raise ValueError(
                    f"name: a call named {name!r} is already under way on rank "
                    f"{self.transport.rank}; wait for it or give this one another name"
                )
            operation.task = Task(
                name, self._run(name, operation), finished, patient=operation.patient
            )
            self._operations[name] = operation
            self._tell(name, {KIND: operation.kind, **operation.claim()})
        logger.debug("stream %d: %s asked for", self.number, name)
        self.engine.wake()
        return operation.task.handle

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
            self.enqueue(Opening(claim, joined=joined), name).wait()

    def open_dense(self) -> None:
        """Before this rank waits in another library for the sum of all ranks' gradients.

        Not where it could wait for ever: over Horovod's own collectives ranks come and go, and
        after a join some ranks have had their first step.

        Raises:
            DisagreementError: on all ranks alike: some ranks vote on their gradients.
            RankLostError: a rank has left.
        """
        if self._coordinator.can_leave and self._coordinator.joins == 0:
            self.open(GRADIENTS, joined=WAIVED, method=REDUCED)

    @contextmanager
    def refusing(self, kind: str, name: str | None) -> Iterator[None]:
        """Within it, what refuses this rank's operation is told to the others and ends theirs.

        It then counts as one of that name, so that later ones meet the others' later ones.

        Args:
            kind: of operation.
            name: of the operation.

        Raises:
            TypeError: ``name`` is neither a string nor None.
            VoteError: this is a forked child.
            Exception: raised within.
        """
        check_not_forked()
        try:
            check_name(name)
            yield
        except Exception as error:  # whatever it is, the others would wait for this operation
            if name is not None:
                name = str(name).encode(errors="backslashreplace").decode()
            self._refuse(kind, name, reason(error))
            raise

    @contextmanager
    def waiting_elsewhere(self, name: str, op: str) -> Iterator[None]:
        """Within it this rank waits for an operation of another library's.

        If it waits in vain, because all other ranks ask for a call of that name, those calls end in
        the same error. Not where it could wait for ever: over Horovod's own collectives.

        Args:
            name: of the operation.
            op: what it is.
        """
        if not self._coordinator.can_leave or self.transport.size == 1:
            yield
            return
        self.engine.start()
        with self._elsewhere.waiting(name, op):
            yield

    def _refuse(self, kind: str, name: str | None, why: str) -> None:
        with self.engine.lock:
            # While one of that name is under way, all ranks refuse another.
            if self._broken is not None or name in self._operations:
                return
            name = self._next_unnamed(kind) if name is None else name
            self._tell(name, {REFUSED: why})
        logger.debug("stream %d: %s refused: %s", self.number, name, why)
        self.engine.wake()

    def _tell(self, name: str | None, claim: dict[str, Any]) -> None:
        self._requests.append(self._request(name, claim))

    def _request(self, name: str | None, claim: dict[str, Any]) -> Request:
        return Request(self.transport.rank, name, claim, self._coordinator.joins)

    def _next_unnamed(self, kind: str) -> str:
        self._unnamed[kind] += 1
        return f"{kind}.noname.{self._unnamed[kind] - 1}"

    def busy(self) -> bool:
        """Whether anything is enqueued, under way, or owed to other ranks."""
        return self._agrees() or super().busy()

    def _agrees(self) -> bool:
        """Whether ranks have something to agree on."""
        to_tell = self._operations or self._requests or self._left or self._owes
        return bool(to_tell) or self._elsewhere.due()

    def leave(self) -> None:
        """Tells that this rank has joined: it enqueues nothing before ``come_back()``.

        What other ranks enqueue meanwhile ends in the same error on all of them: ours, or
        Horovod's where its collectives carry the votes.
        """
        if not self._coordinator.can_leave:
            return
        with self.engine.lock:
            self._left = True
            self._tell(None, {})
        self.engine.wake()

    def come_back(self) -> None:
        """Ends ``leave()``; all ranks have joined."""
        with self.engine.lock:
            self._left = False
            self._coordinator.joins += 1

    def advance(self) -> bool:
        """Lets the ranks agree, then moves the first operation forward."""
        moved = False
        try:
            if self._agrees():
                with self.engine.lock:
                    requests, self._requests = self._requests, []
                    waits = self._elsewhere.to_tell()
                    self._owes = True  # until all have heard
                prepared = [self._prepare(request) for request in requests]
                prepared += [self._request(name, {ELSEWHERE: op}) for name, op in waits]
                for response in self._coordinator.negotiate(prepared):
                    self._start(response)
                    moved = True
                self._owes = self._coordinator.owes()
                places = {task: place for place, task in enumerate(self._queue, self._ended)}
                undecided = self._ended + len(places)
                for name, operation in list(self._operations.items()):
                    place = places.get(operation.task, undecided)
                    self.stalls.look(
                        name, operation.task.enqueued, place, patient=operation.patient
                    )
        except BaseException as failure:  # told to those who wait; the thread must live on
            self.stalls.tell_failure(failure, self._ended)
            self.fail(failure)
            return True
        return super().advance() or moved

    def fail(self, error: BaseException) -> None:
        """Ends all operations, enqueued or under way."""
        with self.engine.lock:
            ended = list(self._operations.values())
            self._operations.clear()
            self._requests.clear()
            self._owes = False
            super().fail(error)
        for operation in ended:
            if not operation.task.handle.done():
                operation.task.handle.finish(error)

    def _prepare(self, request: Request) -> Request:
        """What this rank is ready for, as it is told to the others."""
        return request

    @abstractmethod
    def _tally(self, name: str, ballots: list[bytes]) -> bytes:
        """The verdict of a vote whose ballots travelled with the requests."""

    def _start(self, response: Response) -> None:
        name, error = response.name, response.error
        operation = self._operations[name]
        logger.debug("stream %d: %s %s", self.number, name, error or "begins")
        if error is not None:
            self._forget(name)
            if response.clash is not None and self.clash is not None:
                self.clash(response.clash, name)
            operation.task.handle.finish(DisagreementError(error))
            return
        with self.engine.lock:
            self._queue.append(operation.task)

    def _run(self, name: str, operation: Operation) -> Iterator[Pending]:
        yield from operation.steps(name, self._coordinator.transport_for(name))
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self.engine.lock:
            del self._operations[name]
