"""``hvd.Compression`` with ``sign`` beside the runtime's own."""

from __future__ import annotations

from hvd_sign.compression import VoteCompressor
from hvd_sign_tf.worlds import plain


class Compression(plain.Compression):
    """The runtime's ``none`` and ``fp16``, and ``sign``: 1 bit a coordinate, decided by vote."""

    sign = VoteCompressor()
