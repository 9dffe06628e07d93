"""Host memory: numpy's arrays, and whatever else shows its memory by DLPack or a buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import RESIDUAL, Algorithm, normal, stepped
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.places import CHUNK, Packed, Place
from hvd_sign.devices.base import Device, HostArrays, Operand, TensorState

RUN = 16 * CHUNK
"""Coordinates that an algorithm without a kernel sees at a time: few enough to stay in cache."""


class HostDevice(Device):
    """Contiguous arrays of fp32, fp64, fp16 or bf16."""

    def host_arrays(self, operand: Operand) -> HostArrays | None:
        """The arrays themselves."""
        return HostArrays(operand.signal, operand.out)

    def zeros(self, spec: TensorSpec, like: Any) -> npt.NDArray[Any]:
        """A numpy array."""
        return np.zeros(spec.size, state_type(spec.dtype))

    def to_host(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array."""
        return array

    def from_host(self, numbers: npt.NDArray[Any], array: npt.NDArray[Any]) -> None:
        """Copies."""
        array[...] = numbers.reshape(-1)

    def flat(self, tensor: Any) -> npt.NDArray[Any]:
        """The numbers as numpy's, in fp32, or in fp64 for fp64."""
        array = np.asarray(tensor).reshape(-1)
        return array.astype(state_type(array.dtype.name), copy=False)

    def pack(
        self, operand: Operand, place: Place, algorithm: Algorithm, state: TensorState | None
    ) -> Packed:
        """Packs by the kernels, after the algorithm's step where that is not the kernels' too."""
        arrays = self.host_arrays(operand)
        assert arrays is not None
        if algorithm.is_gradient and arrays.signal is not None:
            return place.pack(arrays.signal)
        linear = algorithm.linear()
        if linear is not None and state is not None:
            return place.pack_linear(arrays.signal, state.fuse(linear, operand.unscale))
        gradient = None if arrays.signal is None else self.flat(arrays.signal)
        signal = _signal(gradient, operand.unscale, place.spec, algorithm, state)
        packed = place.pack(signal)
        if state is not None and RESIDUAL in state.current:
            sent = np.empty_like(signal)
            place.write(sent, packed.mean_abs, cast=True)
            old = state.current[RESIDUAL]
            state.next[RESIDUAL][...] = np.where(np.isnan(signal), old, signal - sent)
        return packed

    def write(self, operand: Operand, place: Place, scale: float) -> None:
        """Writes by the kernels."""
        place.write(operand.out, scale)

    def read(self, operand: Operand) -> npt.NDArray[np.float32] | None:
        """The gradient in fp32; what is too large for it becomes Inf."""
        if operand.signal is None:
            return None
        with np.errstate(over="ignore"):
            return np.asarray(operand.signal).astype(np.float32, copy=False)

    def numbers(self, operand: Operand) -> npt.NDArray[np.floating[Any]] | None:
        """The gradient in fp32, or in fp64 for fp64."""
        return None if operand.signal is None else self.flat(operand.signal)

    def take(self, operand: Operand, values: npt.NDArray[np.floating[Any]]) -> None:
        """Overwrites the array."""
        if operand.out is not None:
            if operand.factor != 1.0:
                values = values * np.float32(operand.factor)
            operand.out[...] = values.reshape(operand.out.shape)


HOST = HostDevice()
ABSENT = Operand(HOST, None, None, joined=True)
"""Of a rank that has joined."""


def state_type(dtype: str) -> Any:
    """The element type of state beside a tensor of that type: fp32, or fp64 for fp64."""
    return np.float64 if dtype == "float64" else np.float32


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _signal(
    gradient: npt.NDArray[Any] | None,
    unscale: float,
    spec: TensorSpec,
    algorithm: Algorithm,
    state: TensorState | None,
) -> npt.NDArray[Any]:
    """An algorithm's signal, NaN in the chunks whose state stays as it was."""
    signal = np.empty(spec.size, state_type(spec.dtype))
    for start in range(0, spec.size, RUN):
        run = slice(start, min(start + RUN, spec.size))
        given = np.zeros(run.stop - start, signal.dtype) if gradient is None else gradient[run]
        if unscale != 1.0:
            given = given * signal.dtype.type(unscale)
        old = (
            {}
            if state is None
            else {k: _read_only(state.current[k][run]) for k in algorithm.planes}
        )
        with np.errstate(all="ignore"):  # what is not finite is looked for
            made, new = stepped(algorithm, _read_only(given), old)
            if state is not None and RESIDUAL in state.current:
                made = normal(made + state.current[RESIDUAL][run])
        finite = np.isfinite(made)
        for plane in new.values():
            finite &= np.isfinite(plane)
        signal[run] = made
        if not finite.all():
            starts = np.arange(0, finite.size, CHUNK)
            sound = np.logical_and.reduceat(finite, starts)
            finite = np.repeat(sound, CHUNK)[: finite.size]
            signal[run][~finite] = np.nan
        if state is not None:
            for name, plane in new.items():
                into = state.next[name][run]
                if finite.all():
                    into[...] = plane
                else:
                    into[...] = np.where(finite, plane, old[name])
    return signal
