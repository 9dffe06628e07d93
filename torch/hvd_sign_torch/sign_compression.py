"""``hvd.Compression``: what votes beside Horovod's own."""

from __future__ import annotations

from hvd_sign.frontend.compression import VoteCompressions
from hvd_sign_torch.backend import horovod_api


class Compression(VoteCompressions, horovod_api.Compression):  # type: ignore[misc]
    """Horovod's ``none`` and ``fp16``, and what votes: ``sign``, ``signum()`` and so on."""
