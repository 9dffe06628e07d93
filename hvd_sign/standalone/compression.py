"""``hvd.Compression`` as Horovod has it, of any framework: what is done around an allreduce."""

from __future__ import annotations

from typing import Any


class Compressor:
    """What a compressor of a user's own derives from."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """The tensor that travels, and what ``decompress()`` needs to know."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: Any, context: Any) -> Any:
        """The tensor that came, as the compressed one was."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Leaves tensors as they are."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """The tensor itself."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Any, context: Any) -> Any:
        """The tensor itself."""
        return tensor
