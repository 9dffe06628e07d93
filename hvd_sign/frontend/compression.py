"""Compressors: how a tensor becomes what travels, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

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
    """Sends one bit a coordinate: 1 = negative; zero counts as positive.

    The payload of d coordinates is uint8[ceil(d/8)], little-endian within a byte.
    """

    def compress(self, array: Any, name: str | None = None) -> tuple[Any, Any]:
        """Packs signs.

        Raises:
            TypeError: not fp32, fp64, fp16 or bf16.
            ValueError: NaN or Inf, which have no sign to vote with.
        """
        return pack_signs(array), (array.shape, array.dtype)

    def decompress(self, payload: Any, context: Any) -> Any:
        """Unpacks to +-1."""
        shape, dtype = context
        return unpack_signs(payload, int(np.prod(shape)), dtype).reshape(shape)


class VoteCompressor(SignCompressor):
    """A switch: an operation that is given it votes; where none is held, it is refused.

    What votes packs the signs itself and never calls ``compress()``. Whatever else calls that,
    Horovod's own functions included, would add up packed bits.
    """

    def compress(self, array: Any, name: str | None = None) -> tuple[Any, Any]:
        """Raises ValueError: nothing is voted on."""
        raise ValueError(
            "compression: hvd.Compression.sign asks for a vote, which only allreduce and "
            "grouped_allreduce hold, and what hvd_sign's DistributedOptimizer or "
            "DistributedGradientTape wraps; expected Compression.none or fp16"
        )


class Compression:
    """Compressors of numpy's arrays.

    ``sign`` packs what a ballot holds. In the bindings ``Compression.sign`` is a switch that turns
    voting on, whose ``compress()`` no vote calls.
    """

    none = NoneCompressor()
    fp16 = FP16Compressor()
    sign = SignCompressor()
