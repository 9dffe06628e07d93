"""``hvd.Compression``: what votes beside the runtime's own."""

from __future__ import annotations

from hvd_sign.frontend.compression import VoteCompressions
from hvd_sign_tf.backend import horovod_api


class Compression(VoteCompressions, horovod_api.Compression):
    """The runtime's ``none`` and ``fp16``, and what votes: ``sign``, ``signum()`` and so on."""
