"""Where tensors live: how they are packed and written there, and where their state is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import IDENTITY, RESIDUAL, Algorithm, Linear, Sign, normal, stepped
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.places import CHUNK, Packed, Place, Planes, Words
from hvd_sign.core.residuals import unsaid

SIGN = Sign()


class TensorState:
    """What an algorithm keeps for one tensor: flat arrays by name, where the tensor lives.

    Args:
        device: where that is.
        current: by the names of all that the algorithm keeps.
        spare: arrays of the same shapes for steps that may not count; None: every step counts.

    The residual of a feedback is p until it is read, where the kernels keep it: they subtract what
    was sent in the next step's pass, for the scale of that is known when all of p is.

    Attributes:
        current: what a step begins with.
        next: where it leaves what it makes; the same arrays as ``current`` unless there are spare
            ones.
        made: whether the step under way has left something there.
        mean_abs: of what that step has packed.
    """

    mean_abs = 0.0

    def __init__(
        self, device: Device, current: dict[str, Any], spare: dict[str, Any] | None = None
    ) -> None:
        self.device = device
        self.current = current
        self.next = current if spare is None else spare
        self.made = False
        # By chunk of 4096 coordinates, where the kernels keep p: what it was sent with.
        self._sent: npt.NDArray[np.float32] | None = None
        self._next_sent: npt.NDArray[np.float32] | None = None

    def fuse(self, linear: Linear, unscale: float) -> tuple[Any, ...]:
        """What the kernels need to step an algorithm of one plane as they pack; it is then made."""
        self.made = True
        now, then = self.current, self.next
        plane = next((name for name in now if name != RESIDUAL), "")
        feedback = None
        if RESIDUAL in now:
            if self._sent is None:
                self._sent = np.zeros(-(-len(now[RESIDUAL]) // CHUNK), np.float32)
                self._next_sent = self._sent if then is now else self._sent.copy()
            feedback = now[RESIDUAL], then[RESIDUAL], self._sent, self._next_sent
        return (*linear, unscale, now.get(plane), then.get(plane), feedback)

    def drop_residual(self) -> None:
        """Forgets what the step under way has left unsaid, if the algorithm has feedback."""
        if RESIDUAL in self.next:
            self.next[RESIDUAL][...] = 0
        if self._next_sent is not None:
            self._next_sent[:] = 0

    def end(self, *, counts: bool) -> None:
        """Ends a step: what it made becomes current, or is forgotten."""
        if self.made and counts:
            if self._next_sent is not None:
                self._next_sent[np.isnan(self._next_sent)] = self.mean_abs
            self.current, self.next = self.next, self.current
            self._sent, self._next_sent = self._next_sent, self._sent
        self.made = False

    def numbers(self, name: str, *, exact: bool) -> npt.NDArray[Any]:
        """A copy of an array, for a checkpoint.

        Args:
            name: of what the algorithm keeps.
            exact: zeros are not voted on.
        """
        array = self.device.to_host(self.current[name])
        if name == RESIDUAL and self._sent is not None:
            return unsaid(array, self._sent, exact=exact)
        return np.array(array)


class Operand(NamedTuple):
    """What a rank brings to a vote on one tensor, and where the verdict goes.

    Attributes:
        device: knows what the other fields are.
        signal: the gradient; None: there is none on this rank.
        out: takes the verdict; may be ``signal`` itself; None drops the verdict.
        factor: multiplies the verdict.
        unscale: multiplies the gradient before an algorithm with state sees it.
        joined: this rank has no more data; it abstains, whatever the algorithm keeps.
        raw: the gradient is the signal, whatever the algorithm.
    """

    device: Device
    signal: Any
    out: Any
    factor: float = 1.0
    unscale: float = 1.0
    joined: bool = False
    raw: bool = False

    def votes(self, algorithm: Algorithm) -> bool:
        """Whether it has a gradient, or the algorithm goes on without one."""
        return self.signal is not None or not (self.joined or algorithm.absent == "abstain")

    def pack(self, place: Place, algorithm: Algorithm, state: TensorState | None) -> Packed:
        """Puts the ballot of the algorithm's signal into the place."""
        if not self.votes(algorithm):
            return place.abstain()
        if self.raw:
            algorithm = SIGN
        packed = self.device.pack(self, place, algorithm, state)
        if state is not None:
            state.made = True
            state.mean_abs = packed.mean_abs
        return packed

    def write(self, place: Place, scale: float) -> None:
        """Takes ``scale`` times the verdict from the place."""
        if self.out is not None:
            self.device.write(self, place, scale * self.factor)


class HostArrays(NamedTuple):
    """An operand's arrays for those who read and write host memory by themselves.

    Attributes:
        signal: contiguous, or None.
        out: contiguous, or None if only the device can write it.
    """

    signal: Any
    out: Any


class Device(ABC):
    """Packs tensors that live in one kind of memory, and writes verdicts to them.

    Its methods are called by the progress thread.
    """

    @abstractmethod
    def zeros(self, spec: TensorSpec, like: Any) -> Any:
        """A state array: flat, fp32, or fp64 for fp64, where ``like``, a tensor or None, lives."""

    @abstractmethod
    def to_host(self, array: Any) -> npt.NDArray[Any]:
        """A state array's numbers, for a checkpoint; may share memory."""

    @abstractmethod
    def from_host(self, numbers: npt.NDArray[Any], array: Any) -> None:
        """Fills a state array."""

    @abstractmethod
    def pack(
        self, operand: Operand, place: Place, algorithm: Algorithm, state: TensorState | None
    ) -> Packed:
        """Puts the ballot of the algorithm's signal into the place; leaves its new state."""

    @abstractmethod
    def write(self, operand: Operand, place: Place, scale: float) -> None:
        """Overwrites ``operand.out`` with ``scale`` times the verdict."""

    @abstractmethod
    def read(self, operand: Operand) -> npt.NDArray[np.float32] | None:
        """The gradient in host memory as fp32, for those who add it up; None: there is none."""

    def numbers(self, operand: Operand) -> npt.NDArray[np.floating[Any]] | None:
        """The gradient in host memory, in fp64 for fp64; None: there is none."""
        return self.read(operand)

    @abstractmethod
    def take(self, operand: Operand, values: npt.NDArray[np.floating[Any]]) -> None:
        """Overwrites ``operand.out`` with float32 or float64[size] in the place of a verdict."""

    def host_arrays(self, operand: Operand) -> HostArrays | None:
        """The arrays behind it, if they are in host memory."""
        return None


class PlaneDevice(Device):
    """A device that packs and unpacks planes of bits; zeros, ties and coins are the core's."""

    @abstractmethod
    def flat(self, tensor: Any) -> Any:
        """The tensor as a flat array of the device, in fp32, or in fp64 for fp64."""

    @abstractmethod
    def planes(self, signal: Any, kept: Sequence[Any], *, want_abs: bool) -> tuple[Planes, Any]:
        """Packs a flat signal, which has at least one coordinate.

        Args:
            signal: flat array.
            kept: arrays of the same size: a chunk in which any of them is not finite abstains.
            want_abs: sum up the absolute signal.

        Returns:
            The planes in host memory, and which coordinates lie in finite chunks, for ``keep()``.
        """

    @abstractmethod
    def keep(self, sound: Any, new: Any, old: Any, into: Any) -> None:
        """Fills ``into`` with ``new`` where ``sound``, else with ``old``."""

    @abstractmethod
    def unpack(self, out: Any, signs: Words, keep: Words, scale: float) -> None:
        """Overwrites a tensor with ``scale`` times the verdict, 0 at the 0 bits of ``keep``.

        Where an algorithm has error feedback it is also called with a state array, and a ballot.
        """

    def working(self, operand: Operand) -> AbstractContextManager[Any]:
        """Within it the device's own work is queued in the right order."""
        return nullcontext()

    def pack(
        self, operand: Operand, place: Place, algorithm: Algorithm, state: TensorState | None
    ) -> Packed:
        """Lets the algorithm step on the device, packs there, places the planes here."""
        if place.spec.size == 0:
            return place.abstain()
        with self.working(operand):
            current = {} if state is None else state.current
            kept = {name: current[name] for name in algorithm.planes}
            if operand.signal is None:
                gradient = self.flat(self.zeros(place.spec, operand.out))
            else:
                gradient = self.flat(operand.signal)
            signal, new = gradient, dict[str, Any]()
            if operand.unscale != 1.0 and not algorithm.is_gradient:
                signal = gradient = gradient * operand.unscale
            if algorithm.linear() != IDENTITY:
                signal, new = stepped(algorithm, gradient, kept)
            if RESIDUAL in current:
                signal = normal(signal + current[RESIDUAL])
            planes, sound = self.planes(signal, list(new.values()), want_abs=place.messages.scaled)
            if state is not None:
                for name, array in new.items():
                    self.keep(sound, array, current[name], state.next[name])
            if place.messages.averaged:
                numbers = self._sound_numbers(place, signal, sound)
        # The scales of chunks are the kernels', on the host, where its numbers are then needed.
        packed = place.pack(numbers) if place.messages.averaged else place.put(planes)
        if state is not None and RESIDUAL in current:
            with self.working(operand):
                sent = self.zeros(place.spec, current[RESIDUAL])
                if place.messages.averaged:
                    place.write(numbers, 1.0, cast=True)
                    self.from_host(numbers, sent)
                else:
                    self.unpack(sent, *place.fetch(cast=True), packed.mean_abs)
                self.keep(sound, signal - sent, current[RESIDUAL], state.next[RESIDUAL])
        return packed

    def _sound_numbers(self, place: Place, signal: Any, sound: Any) -> npt.NDArray[Any]:
        """A flat signal in host memory, NaN where it is not sound."""
        kept, unsound = self.zeros(place.spec, signal), self.zeros(place.spec, signal)
        self.from_host(np.full(place.spec.size, np.nan), unsound)
        self.keep(sound, signal, unsound, kept)
        return np.array(self.to_host(kept))

    def numbers(self, operand: Operand) -> npt.NDArray[np.floating[Any]] | None:
        """The gradient, brought to the host as the device's flat array of it."""
        if operand.signal is None:
            return None
        with self.working(operand):
            return self.to_host(self.flat(operand.signal))

    def write(self, operand: Operand, place: Place, scale: float) -> None:
        """Takes the verdict's bits to the device and unpacks them there, or a mean's numbers."""
        if place.spec.size and place.messages.averaged:
            wide = place.spec.dtype == "float64"
            values: npt.NDArray[np.floating[Any]]
            values = np.empty(place.spec.size, np.float64 if wide else np.float32)
            place.write(values, scale)
            self.take(operand._replace(factor=1.0), values)
        elif place.spec.size:
            signs, keep = place.fetch()
            with self.working(operand):
                self.unpack(operand.out, signs, keep, scale)
