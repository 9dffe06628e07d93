"""Votes that users call one by one, in any order."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from hvd_sign.algorithms import make_algorithm
from hvd_sign.core.agreement import REFUSED
from hvd_sign.core.buckets import BLOCK, Bucket, TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand
from hvd_sign.devices.state import States
from hvd_sign.engine.coordinator import Request, Response
from hvd_sign.engine.operations import NamedStream, Operation
from hvd_sign.engine.progress import Engine, Handle
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.rounds.choice import check_possible, make_round, terms
from hvd_sign.rounds.inline import InlineRound, fits_inline, inline_options
from hvd_sign.runtime.counting import Counts
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending
from hvd_sign.votes import VoteRule

ALLREDUCE = "allreduce"
KEPT_ROUNDS = 16
"""Rounds kept for shapes seen before."""

KEPT_NAMES = 16_384
"""Names whose votes are counted; in some 4 MB."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of an ad-hoc vote: its name, shape and type, and what this rank brings to it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    operand: Operand


class VoteOperation(Operation):
    """A vote that this rank has enqueued.

    Attributes:
        inline: its ballots travel with the ranks' agreement.
        said: what rule and exchange say of the vote.
        number: how many votes of its name came before; agreed on when it begins.
        round: what it is held in, once it has begun.
    """

    kind = ALLREDUCE
    round: Round

    def __init__(
        self,
        stream: AdHocStream,
        tensors: Sequence[Tensor],
        rule: VoteRule,
        options: VoteOptions,
        *,
        named: bool,
        step: int | None,
        inline: bool,
        said: dict[str, Any],
    ) -> None:
        self.tensors = tensors
        self.rule = rule
        self.options = options
        self.named = named
        self.step = step
        self.inline = inline
        self.said = said
        self.number = 0
        self._stream = stream

    def claim(self) -> dict[str, Any]:
        """Rule, tensors and options."""
        return {
            "op": repr(self.rule),
            "number of tensors": len(self.tensors),
            "dtype": ", ".join(tensor.dtype for tensor in self.tensors),
            "shape": ", ".join(str(tensor.shape) for tensor in self.tensors),
            **self.options.claim(),
            "step": self.step,
            **self.said,
        }

    def steps(self, name: str, transport: Transport) -> Iterator[Pending]:
        """The vote."""
        return self._stream.hold(name, self, transport)


class AdHocStream(NamedStream):
    """A stream of named operations that can hold votes."""

    def __init__(self, engine: Engine, transport: Transport, number: int) -> None:
        self._counts = Counts(KEPT_NAMES)
        self._rounds: OrderedDict[Any, Round] = OrderedDict()
        self._states: dict[str, tuple[str, States]] = {}
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
        """Enqueues a vote; it runs once every rank has enqueued it.

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
            check_possible(options, self.transport, rule)
            said = terms(options, self.transport, rule)
            if rule.learns:
                raise ValueError(
                    f"op: {rule} learns from step to step, which an optimizer has; expected a rule "
                    "that does not"
                )
            algorithm = make_algorithm(options.algorithm)
            if algorithm.keeps:
                self._check_state(tensors, options, name)
        blocks = sum(-(-math.prod(tensor.shape) // BLOCK) for tensor in tensors)
        carried = self._coordinator.carries_ballots and fits_inline(blocks, options)
        # A ballot that travels may have to be packed again, which a state would see.
        carried = carried and not algorithm.keeps
        operation = VoteOperation(
            self,
            tensors,
            rule,
            options,
            named=name is not None,
            step=step,
            inline=carried,
            said=said,
        )
        return self.enqueue(operation, name, finished)

    def _check_state(
        self, tensors: Sequence[Tensor], options: VoteOptions, name: str | None
    ) -> None:
        """Raises ValueError unless what an algorithm keeps can be kept, or fits what it keeps."""
        who = f"name: {options.algorithm!r} keeps what belongs to a tensor under its name"
        if name is None:
            raise ValueError(f"{who}; expected one, got None")
        layouts = _layouts(options, tensors)
        before, _ = self._states.get(name, (layouts, None))
        if layouts != before:
            raise ValueError(f"{who}; expected {before} for {name!r} as before, got {layouts}")

    def hold(self, name: str, operation: VoteOperation, transport: Transport) -> Iterator[Pending]:
        """The vote of an operation."""
        yield from self._decide(name, operation, transport)
        if operation.inline and self._inline_round(operation).pending.verdict is None:
            # Some ranks had forgotten the name, others not yet. Now all know the vote's number.
            operation.inline = False
            yield from self._decide(name, operation, transport)
        # Only votes that were held count: of those, every rank has seen the same number.
        if operation.named:
            self._counts[name] = operation.number + 1

    def _decide(
        self, name: str, operation: VoteOperation, transport: Transport
    ) -> Iterator[Pending]:
        layouts = tuple((tensor.shape, tensor.dtype) for tensor in operation.tensors)
        rule = type(operation.rule), repr(operation.rule), repr(operation.said)
        key = (layouts, rule, operation.options, operation.inline)
        vote = self._rounds.pop(key, None) or self._make_round(operation)
        operation.round = vote
        vote.transport = transport
        # The name numbers the coins too, so that votes do not share theirs.
        count = operation.number if operation.step is None else operation.step
        step = crc32(name.encode()) << 32 | count
        vote.title = f"step {count} of {operation.kind} {name!r}"
        if vote.algorithm.keeps:
            vote.states = self._states_of(name, operation, vote)
        yield from vote.run(step, [tensor.operand for tensor in operation.tensors])
        vote.states.end(counts=True)
        self._rounds[key] = vote
        if len(self._rounds) > KEPT_ROUNDS:
            self._rounds.popitem(last=False)

    def _states_of(self, name: str, operation: VoteOperation, vote: Round) -> States:
        """What an algorithm keeps under a name, for the tensors of its last vote."""
        layouts = _layouts(operation.options, operation.tensors)
        if name not in self._states:
            self._states[name] = (
                layouts,
                States(
                    vote.algorithm,
                    vote.bucket.specs,
                    tentative=False,
                    exact=operation.options.ties == "zero",
                ),
            )
        return self._states[name][1]

    def _prepare(self, request: Request) -> Request:
        """Gives the vote's number, and its ballot if that travels with the request."""
        operation = None if request.name is None else self._operations.get(request.name)
        if REFUSED in request.claim or not isinstance(operation, VoteOperation):
            return request
        assert request.name is not None
        operation.number = self._counts[request.name]
        request = request._replace(number=operation.number)
        if not operation.inline:
            return request
        with recorder.charging(self.spent):
            operation.task.advance()
        return request._replace(ballot=self._inline_round(operation).pending.ballot)

    def _tally(self, name: str, ballots: list[bytes]) -> bytes:
        with recorder.charging(self.spent):
            return self._inline_round(self._operations[name]).tally(ballots)

    def _start(self, response: Response) -> None:
        operation = self._operations[response.name]
        if isinstance(operation, VoteOperation) and response.error is None:
            operation.number = response.number
            if operation.inline:
                self._inline_round(operation).pending.answer(response.verdict)
        super()._start(response)

    @staticmethod
    def _inline_round(operation: Operation) -> InlineRound:
        assert isinstance(operation, VoteOperation)
        assert isinstance(operation.round, InlineRound)
        return operation.round

    def _make_round(self, operation: VoteOperation) -> Round:
        specs = tuple(
            TensorSpec(tensor.name, tensor.shape, tensor.dtype, ordinal)
            for ordinal, tensor in enumerate(operation.tensors)
        )
        make = InlineRound if operation.inline else make_round
        options = inline_options(operation.options) if operation.inline else operation.options
        algorithm = make_algorithm(options.algorithm)
        return make(
            Subject(
                Bucket(0, specs), operation.rule, algorithm, options, self.transport, self.number
            )
        )


def _layouts(options: VoteOptions, tensors: Sequence[Tensor]) -> str:
    """An algorithm, the tensors that it keeps something for, and what else that depends on."""
    shapes = ", ".join(f"{tensor.dtype}{list(tensor.shape)}" for tensor in tensors)
    ties = f" with ties={options.ties!r}" if options.algorithm.feedback else ""
    return f"{options.algorithm!r} of {shapes}{ties}"
