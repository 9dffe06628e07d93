"""``hvd.Compression`` with ``sign`` beside the runtime's own."""

from __future__ import annotations

from hvd_sign.frontend.compression import VoteCompressor
from hvd_sign_tf.backend import horovod_api


class Compression(horovod_api.Compression):
    """The runtime's ``none`` and ``fp16``, and ``sign``, a switch: it turns voting on.

    A vote packs the signs itself, and does not call ``sign.compress()``.
    """

    sign = VoteCompressor()
