"""Votes that users call one by one, in any order: ranks first agree, by name, on what runs."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

from hvd_sign.agreement import REFUSED
from hvd_sign.algorithms import Sign
from hvd_sign.ballots import BallotBox, Voter
from hvd_sign.boxes import check_possible, make_box
from hvd_sign.buckets import BLOCK, Bucket, TensorSpec
from hvd_sign.engine import Engine, Handle, Stream, Task
from hvd_sign.options import VoteOptions
from hvd_sign.order import Decision, News, make_order
from hvd_sign.posted import PostedBox, can_post
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.votes import VoteRule

logger = logging.getLogger("hvd_sign")

UNNAMED = "vote.noname."
KEPT_BOXES = 16
"""Ballot boxes kept for shapes seen before."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of an ad-hoc vote: its name, shape, element type and the voter that holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    voter: Voter


@dataclass
class _Call:
    """A vote that this rank has asked for."""

    tensors: Sequence[Tensor]
    rule: VoteRule
    options: VoteOptions
    step: int | None
    posted: bool = False
    task: Task = field(init=False)
    box: BallotBox = field(init=False)

    def claim(self) -> dict[str, Any]:
        """What has to be the same on all ranks."""
        return {
            "op": repr(self.rule),
            "number of tensors": len(self.tensors),
            "dtype": ", ".join(tensor.dtype for tensor in self.tensors),
            "shape": ", ".join(str(tensor.shape) for tensor in self.tensors),
            **asdict(self.options),
            "step": self.step,
        }


class AdHocStream(Stream):
    """The stream of ad-hoc votes among the voters of a transport."""

    def __init__(self, engine: Engine, transport: Transport, number: int) -> None:
        self._asked: dict[str, _Call] = {}
        self._news: list[News] = []
        self._left = False
        self._owes = False
        self._unnamed = 0
        self._counts: dict[str, int] = {}
        self._boxes: OrderedDict[Any, BallotBox] = OrderedDict()
        self._order = make_order(transport, self._tally)
        super().__init__(engine, transport, number)
        self.in_order = self._order.in_order

    def vote(
        self,
        tensors: Sequence[Tensor],
        rule: VoteRule,
        options: VoteOptions,
        *,
        name: str | None = None,
        step: int | None = None,
        finished: Callable[[], None] | None = None,
    ) -> Handle:
        """Asks for a vote; it runs once every rank has asked for it.

        Args:
            tensors: voted on together.
            rule: decides.
            options: the same on all ranks.
            name: of the vote; without one it is called after how many unnamed ones came before.
            step: the coins' argument beside the name; without one it is the number of earlier
                votes of that name, so that it does not depend on what else a program votes on.
            finished: called by the progress thread when the vote has ended well.

        Raises:
            ValueError: no tensors, a vote of that name is under way on this rank, ``step`` is not
                in [0, 2^32), or the transport cannot hold such a vote.
            RuntimeError: the stream is closed.
        """
        with self.refusing(name):
            if not tensors:
                raise ValueError("tensors: expected at least one, got none")
            if step is not None and not (isinstance(step, int) and 0 <= step < 2**32):
                raise ValueError(f"step: expected an integer in [0, 2**32), got {step!r}")
            check_possible(options, self.transport)
        call = _Call(tensors, rule, options, step)
        if self._order.carries:
            blocks = sum(-(-math.prod(tensor.shape) // BLOCK) for tensor in tensors)
            call.posted = can_post(blocks, options)
        with self.engine.lock:
            self.check_usable()
            count = 0
            if name is None:
                name = self._next_unnamed()
            else:
                count = self._counts.get(name, 0)
            if name in self._asked:
                raise ValueError(
                    f"name: a vote called {name!r} is already under way on rank "
                    f"{self.transport.rank}; wait for it or give this one another name"
                )
            # The name numbers the coins too, so that votes do not share theirs.
            coins = crc32(name.encode()) << 32 | (count if step is None else step)
            call.task = Task(name, self._run(name, call, coins), finished)
            self._asked[name] = call
            self._tell(name, call.claim())
        logger.debug("stream %d: %s asked for", self.number, name)
        self.engine.wake()
        return call.task.handle

    @contextmanager
    def refusing(self, name: str | None) -> Iterator[None]:
        """Within it, what refuses this rank's call is told to the others, whose calls it ends.

        The call then counts as one of that name, so that later ones meet the others' later ones.

        Args:
            name: of the vote.

        Raises:
            TypeError: raised within; so is ValueError.
        """
        try:
            yield
        except (TypeError, ValueError) as error:
            self._refuse(name, str(error))
            raise

    def _refuse(self, name: str | None, why: str) -> None:
        with self.engine.lock:
            # While one of that name is under way, all ranks refuse another.
            if self._broken is not None or name in self._asked:
                return
            name = self._next_unnamed() if name is None else name
            self._tell(name, {REFUSED: why})
        logger.debug("stream %d: %s refused: %s", self.number, name, why)
        self.engine.wake()

    def _tell(self, name: str | None, claim: dict[str, Any]) -> None:
        self._news.append(News(self.transport.rank, name, claim, self._order.joins))

    def _next_unnamed(self) -> str:
        self._unnamed += 1
        return f"{UNNAMED}{self._unnamed - 1}"

    def busy(self) -> bool:
        """Whether anything is asked for, under way, or owed to other ranks."""
        return bool(self._asked or self._news or self._left or self._owes) or super().busy()

    def leave(self) -> None:
        """Tells that this rank has joined: it will not ask for votes before ``come_back()``.

        Votes that other ranks ask for meanwhile end in the same error on all of them: ours, or
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
        """Lets the ranks agree, then moves the first vote forward."""
        moved = False
        try:
            if self._asked or self._news or self._left or self._owes:
                with self.engine.lock:
                    news, self._news = self._news, []
                    self._owes = True  # until all have heard
                for decision in self._order.listen([self._with_ballot(item) for item in news]):
                    self._start(decision)
                    moved = True
                self._owes = self._order.owes()
                for name, call in list(self._asked.items()):
                    self.stalls.look(name, call.task.asked)
        except BaseException as failure:  # told to those who wait; the thread must live on
            self.fail(failure)
            return True
        return super().advance() or moved

    def fail(self, error: BaseException) -> None:
        """Ends all votes, asked for or under way."""
        with self.engine.lock:
            asked = list(self._asked.values())
            self._asked.clear()
            self._news.clear()
            self._owes = False
            super().fail(error)
        for call in asked:
            if not call.task.handle.done():
                call.task.handle.finish(error)

    def _with_ballot(self, item: News) -> News:
        """What this rank is ready for, and its ballot if that travels with the news."""
        if item.name is None or REFUSED in item.claim or not self._asked[item.name].posted:
            return item
        call = self._asked[item.name]
        with recorder.charging(self.spent):
            call.task.advance()
        return item._replace(ballot=self._posted_box(call).post.ballot)

    def _tally(self, name: str, ballots: list[bytes]) -> bytes:
        with recorder.charging(self.spent):
            return self._posted_box(self._asked[name]).count(ballots)

    @staticmethod
    def _posted_box(call: _Call) -> PostedBox:
        assert isinstance(call.box, PostedBox)
        return call.box

    def _start(self, decision: Decision) -> None:
        name, error, verdict = decision
        call = self._asked[name]
        logger.debug("stream %d: %s %s", self.number, name, error or "begins")
        if error is not None:
            self._forget(name)
            call.task.handle.finish(ValueError(error))
            return
        if verdict is not None:
            self._posted_box(call).post.verdict = verdict
        with self.engine.lock:
            self._queue.append(call.task)

    def _forget(self, name: str) -> None:
        with self.engine.lock:
            del self._asked[name]

    def _run(self, name: str, call: _Call, step: int) -> Iterator[Pending]:
        shapes = tuple(tensor.shape for tensor in call.tensors)
        key = (shapes, repr(call.rule), call.options, call.posted)
        box = self._boxes.pop(key, None) or self._make_box(call)
        call.box = box
        box.transport = self._order.transport_for(name)
        yield from box.decide(step, [tensor.voter for tensor in call.tensors])
        self._boxes[key] = box
        if len(self._boxes) > KEPT_BOXES:
            self._boxes.popitem(last=False)
        # Only votes that were held count: of those, every rank has seen the same number.
        if not name.startswith(UNNAMED):
            self._counts[name] = self._counts.get(name, 0) + 1
        self._forget(name)

    def _make_box(self, call: _Call) -> BallotBox:
        specs = tuple(
            TensorSpec(tensor.name, tensor.shape, tensor.dtype, ordinal)
            for ordinal, tensor in enumerate(call.tensors)
        )
        make = PostedBox if call.posted else make_box
        return make(Bucket(0, specs), call.rule, Sign(), call.options, self.transport, self.number)
