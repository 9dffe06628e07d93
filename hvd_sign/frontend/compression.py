"""Compressors: how a tensor becomes what travels, and back."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import (
    ALGORITHMS,
    IDENTITY,
    RESIDUAL,
    EfSign,
    Lion,
    OneBit,
    Signum,
    make_algorithm,
    normal,
    stepped,
)
from hvd_sign.core.places import CHUNK, Packed
from hvd_sign.frontend.signs import pack_signs, unpack_signs


class Compressor:
    """Turns an array into its payload and back; the base class knows no framework.

    Stateful algorithms keep what belongs to a tensor under its name, so that a compressor serves
    any number of tensors.
    """

    def compress(self, array: Any, name: str | None = None) -> tuple[Any, Any]:
        """Compresses an array.

        Args:
            array: of the compressor's framework, any shape.
            name: the tensor's, for compressors that keep state.

        Returns:
            The payload, and the context that ``decompress()`` needs.
        """
        raise NotImplementedError

    def decompress(self, payload: Any, context: Any) -> Any:
        """Restores an array of the compressed one's shape and type."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Sends everything as it is."""

    def compress(
        self, array: npt.NDArray[Any], name: str | None = None
    ) -> tuple[npt.NDArray[Any], Any]:
        """Returns the array itself."""
        return array, None

    def decompress(self, payload: npt.NDArray[Any], context: Any) -> npt.NDArray[Any]:
        """Returns the payload itself."""
        return payload


class FP16Compressor(Compressor):
    """Sends floating-point arrays as fp16."""

    def compress(
        self, array: npt.NDArray[Any], name: str | None = None
    ) -> tuple[npt.NDArray[Any], Any]:
        """Rounds floating-point arrays to fp16; leaves others alone."""
        if np.issubdtype(array.dtype, np.floating):
            return array.astype(np.float16), array.dtype
        return array, array.dtype

    def decompress(self, payload: npt.NDArray[Any], context: Any) -> npt.NDArray[Any]:
        """Converts back to the array's own type."""
        return payload.astype(context, copy=False)


class SignCompressor(Compressor):
    """Sends one bit a coordinate of an algorithm's signal: 1 = negative; zero counts as positive.

    The payload of d coordinates is uint8[ceil(d/8)], little-endian within a byte.

    Args:
        algorithm: chooses the signal: an ``Algorithm``, or the name of one.

    Attributes:
        algorithm: that one.

    Raises:
        ValueError: an unknown algorithm.
    """

    def __init__(self, algorithm: Any = "sign") -> None:
        self.algorithm = make_algorithm(algorithm)
        self._states: dict[str, dict[str, npt.NDArray[Any]]] = {}

    def compress(self, array: Any, name: str | None = None) -> tuple[Any, Any]:
        """Packs signs.

        Raises:
            TypeError: not fp32, fp64, fp16 or bf16.
            ValueError: NaN or Inf, which have no sign to vote with; no name, or another size under
                it than before, with an algorithm that keeps something.
        """
        if self.algorithm.is_gradient:
            return pack_signs(array), (array.shape, array.dtype, 1.0)
        array = np.asarray(array)
        signal, new = self._step(array, name)
        payload = pack_signs(signal)
        scale: Any = 1.0
        if self.algorithm.feedback:
            scale = _scales(signal, by_chunk=self.algorithm.averages)
            said = _said(payload, signal.size, array.dtype, scale)
            new[RESIDUAL] = signal - said.astype(signal.dtype)
        if new:
            self._states[name or ""] = new
        return payload, (array.shape, array.dtype, scale)

    def _step(
        self, array: npt.NDArray[Any], name: str | None
    ) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
        """The signal, and the new planes."""
        flat = array.reshape(-1)
        flat = flat.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False)
        who = f"compress: name: {self.algorithm!r} keeps what belongs to a tensor under its name"
        if self.algorithm.keeps and name is None:
            raise ValueError(f"{who}; expected one, got None")
        old = self._states.get(name or "")
        if old is None:
            old = {kept: np.zeros_like(flat) for kept in self.algorithm.keeps}
        for kept in old.values():
            if kept.size != flat.size:
                raise ValueError(
                    f"{who}; expected {kept.size} coordinates of {name!r}, got {flat.size}"
                )
        signal, new = flat, dict[str, npt.NDArray[Any]]()
        if self.algorithm.linear() != IDENTITY:
            planes = {plane: old[plane] for plane in self.algorithm.planes}
            signal, new = stepped(self.algorithm, flat, planes)
        if self.algorithm.feedback:
            signal = normal(signal + old[RESIDUAL])
        if not all(np.isfinite(made).all() for made in (signal, *new.values())):
            raise ValueError(f"compress: {name!r}: expected finite numbers, got NaN or Inf")
        return np.asarray(signal), new

    def decompress(self, payload: Any, context: Any) -> Any:
        """Unpacks to +-1, or of an algorithm with error feedback to +- the mean of |p|."""
        shape, dtype, scale = context
        return _said(payload, int(np.prod(shape)), dtype, scale).reshape(shape)


def _said(payload: Any, size: int, dtype: Any, scale: Any) -> npt.NDArray[Any]:
    """Signs times a scale, of all or of each coordinate, rounded to the type."""
    if isinstance(scale, float):
        return unpack_signs(payload, size, dtype, scale=scale)
    said: npt.NDArray[Any] = (unpack_signs(payload, size) * scale).astype(dtype)
    return said


def _scales(signal: npt.NDArray[Any], *, by_chunk: bool) -> Any:
    """The mean of |p|, of all or for each coordinate of its chunk of 4096."""
    chunks = np.split(signal, range(CHUNK, signal.size, CHUNK)) if by_chunk else [signal]
    means = [
        Packed(0, one.size, float(np.abs(one).sum(dtype=np.float64))).mean_abs for one in chunks
    ]
    if not by_chunk:
        return means[0]
    return np.repeat(np.array(means, np.float32), CHUNK)[: signal.size]


class VoteCompressor(SignCompressor):
    """What an operation is given that is to vote: by which algorithm. Also one of a user's own.

    What votes packs the signs itself, with state of its own, and never calls ``compress()``.
    Whatever else calls that, Horovod's own functions included, would add up packed bits.
    """

    def compress(self, array: Any, name: str | None = None) -> tuple[Any, Any]:
        """Raises ValueError: nothing is voted on."""
        raise ValueError(
            f"compression: {self!r} asks for a vote, which only allreduce and grouped_allreduce "
            "hold, and what hvd_sign's DistributedOptimizer or DistributedGradientTape wraps; "
            "expected Compression.none or fp16"
        )

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in vars(self.algorithm).items())
        name = self.algorithm.name
        if name == "sign":
            return "hvd.Compression.sign"
        return (
            f"hvd.Compression.{name}({given})"
            if name in ALGORITHMS
            else f"hvd.VoteCompressor({self.algorithm!r})"
        )


class SignCompressions:
    """Compressors of signs, one for each of hvd_sign's algorithms, all of one class."""

    _made: ClassVar[type[SignCompressor]] = SignCompressor

    @classmethod
    def signum(cls, beta: float = 0.9) -> SignCompressor:
        """Of each rank's momentum; see ``hvd_sign.algorithms.Signum``."""
        return cls._made(Signum(beta))

    @classmethod
    def lion(cls, beta1: float = 0.9, beta2: float = 0.99) -> SignCompressor:
        """As Lion's; see ``hvd_sign.algorithms.Lion``."""
        return cls._made(Lion(beta1, beta2))

    @classmethod
    def ef_sign(cls, beta: float = 0.0) -> SignCompressor:
        """With error feedback; see ``hvd_sign.algorithms.EfSign``."""
        return cls._made(EfSign(beta))

    @classmethod
    def onebit(cls, beta: float = 0.0) -> SignCompressor:
        """Scaled mean of signs, feedback on both sides; see ``hvd_sign.algorithms.OneBit``."""
        return cls._made(OneBit(beta))


class VoteCompressions(SignCompressions):
    """The compressors of a binding's ``Compression`` by which operations vote."""

    _made = VoteCompressor
    sign = VoteCompressor()


class Compression(SignCompressions):
    """Compressors of numpy's arrays.

    Those of signs pack what a ballot holds, and keep what an algorithm does under a tensor's name.
    The bindings' ``Compression`` has the same names for what turns voting on, whose ``compress()``
    no vote calls.
    """

    none = NoneCompressor()
    fp16 = FP16Compressor()
    sign = SignCompressor()
