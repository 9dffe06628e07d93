"""Votes that users call one by one, in any order."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

from hvd_sign.agreement import REFUSED
from hvd_sign.algorithms import Sign
from hvd_sign.ballots import BallotBox, Voter
from hvd_sign.boxes import check_possible, make_box
from hvd_sign.buckets import BLOCK, Bucket, TensorSpec
from hvd_sign.calls import Call, NamedStream
from hvd_sign.counting import Counts
from hvd_sign.engine import Engine, Handle
from hvd_sign.options import VoteOptions
from hvd_sign.order import Decision, News
from hvd_sign.posted import PostedBox, can_post, posted
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.votes import VoteRule

ALLREDUCE = "allreduce"
KEPT_BOXES = 16
"""Ballot boxes kept for shapes seen before."""

KEPT_NAMES = 16_384
"""Names whose votes are counted; in some 4 MB."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of an ad-hoc vote: its name, shape, element type and the voter that holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    voter: Voter


class VoteCall(Call):
    """A vote that this rank has asked for.

    Attributes:
        posted: its ballots travel with the ranks' agreement.
        number: how many votes of its name came before; agreed on when it begins.
        box: what it is held in, once it has begun.
    """

    kind = ALLREDUCE
    box: BallotBox

    def __init__(
        self,
        stream: AdHocStream,
        tensors: Sequence[Tensor],
        rule: VoteRule,
        options: VoteOptions,
        *,
        named: bool,
        step: int | None,
        posted: bool,
    ) -> None:
        self.tensors = tensors
        self.rule = rule
        self.options = options
        self.named = named
        self.step = step
        self.posted = posted
        self.number = 0
        self._stream = stream

    def claim(self) -> dict[str, Any]:
        """Rule, tensors and options."""
        return {
            "op": repr(self.rule),
            "number of tensors": len(self.tensors),
            "dtype": ", ".join(tensor.dtype for tensor in self.tensors),
            "shape": ", ".join(str(tensor.shape) for tensor in self.tensors),
            **asdict(self.options),
            "step": self.step,
        }

    def steps(self, name: str, transport: Transport) -> Iterator[Pending]:
        """The vote."""
        return self._stream.hold(name, self, transport)


class AdHocStream(NamedStream):
    """A stream of named calls that can hold votes."""

    def __init__(self, engine: Engine, transport: Transport, number: int) -> None:
        self._counts = Counts(KEPT_NAMES)
        self._boxes: OrderedDict[Any, BallotBox] = OrderedDict()
        super().__init__(engine, transport, number)

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
                Names other than the KEPT_NAMES used last are forgotten, and count on from a number
                that they have not had.
            finished: called by the progress thread when the vote has ended well.

        Raises:
            ValueError: no tensors, a vote of that name is under way on this rank, ``step`` is not
                in [0, 2^32), or the transport cannot hold such a vote.
            RuntimeError: the stream is closed.
        """
        with self.refusing(ALLREDUCE, name):
            if not tensors:
                raise ValueError("tensors: expected at least one, got none")
            if step is not None and not (isinstance(step, int) and 0 <= step < 2**32):
                raise ValueError(f"step: expected an integer in [0, 2**32), got {step!r}")
            check_possible(options, self.transport)
        blocks = sum(-(-math.prod(tensor.shape) // BLOCK) for tensor in tensors)
        carried = self._order.carries and can_post(blocks, options)
        call = VoteCall(
            self, tensors, rule, options, named=name is not None, step=step, posted=carried
        )
        return self.ask(call, name, finished)

    def hold(self, name: str, call: VoteCall, transport: Transport) -> Iterator[Pending]:
        """The vote of a call."""
        yield from self._decide(name, call, transport)
        if call.posted and self._posted_box(call).post.verdict is None:
            # Some ranks had forgotten the name, others not yet. Now all know the vote's number.
            call.posted = False
            yield from self._decide(name, call, transport)
        # Only votes that were held count: of those, every rank has seen the same number.
        if call.named:
            self._counts[name] = call.number + 1

    def _decide(self, name: str, call: VoteCall, transport: Transport) -> Iterator[Pending]:
        shapes = tuple(tensor.shape for tensor in call.tensors)
        key = (shapes, repr(call.rule), call.options, call.posted)
        box = self._boxes.pop(key, None) or self._make_box(call)
        call.box = box
        box.transport = transport
        # The name numbers the coins too, so that votes do not share theirs.
        count = call.number if call.step is None else call.step
        step = crc32(name.encode()) << 32 | count
        box.title = f"step {count} of {call.kind} {name!r}"
        yield from box.decide(step, [tensor.voter for tensor in call.tensors])
        self._boxes[key] = box
        if len(self._boxes) > KEPT_BOXES:
            self._boxes.popitem(last=False)

    def _prepare(self, item: News) -> News:
        """Gives the vote's number, and its ballot if that travels with the news."""
        call = None if item.name is None else self._asked.get(item.name)
        if REFUSED in item.claim or not isinstance(call, VoteCall):
            return item
        assert item.name is not None
        call.number = self._counts[item.name]
        item = item._replace(number=call.number)
        if not call.posted:
            return item
        with recorder.charging(self.spent):
            call.task.advance()
        return item._replace(ballot=self._posted_box(call).post.ballot)

    def _tally(self, name: str, ballots: list[bytes]) -> bytes:
        with recorder.charging(self.spent):
            return self._posted_box(self._asked[name]).count(ballots)

    def _start(self, decision: Decision) -> None:
        call = self._asked[decision.name]
        if isinstance(call, VoteCall) and decision.error is None:
            call.number = decision.number
            if call.posted:
                self._posted_box(call).post.answer(decision.verdict)
        super()._start(decision)

    @staticmethod
    def _posted_box(call: Call) -> PostedBox:
        assert isinstance(call, VoteCall)
        assert isinstance(call.box, PostedBox)
        return call.box

    def _make_box(self, call: VoteCall) -> BallotBox:
        specs = tuple(
            TensorSpec(tensor.name, tensor.shape, tensor.dtype, ordinal)
            for ordinal, tensor in enumerate(call.tensors)
        )
        make = PostedBox if call.posted else make_box
        options = posted(call.options) if call.posted else call.options
        return make(Bucket(0, specs), call.rule, Sign(), options, self.transport, self.number)
