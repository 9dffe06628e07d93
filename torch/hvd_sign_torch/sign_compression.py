"""``hvd.Compression`` with ``sign`` beside Horovod's own."""

from __future__ import annotations

from hvd_sign.compression import VoteCompressor
from hvd_sign_torch.worlds import plain


class Compression(plain.Compression):  # type: ignore[misc]
    """Horovod's ``none`` and ``fp16``, and ``sign``: 1 bit a coordinate, decided by vote."""

    sign = VoteCompressor()
