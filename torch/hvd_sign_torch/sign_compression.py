"""``hvd.Compression`` with ``sign`` beside Horovod's own."""

from __future__ import annotations

from hvd_sign.frontend.compression import VoteCompressor
from hvd_sign_torch.backend import horovod_api


class Compression(horovod_api.Compression):  # type: ignore[misc]
    """Horovod's ``none`` and ``fp16``, and ``sign``, a switch: it turns voting on.

    A vote packs the signs itself, and does not call ``sign.compress()``.
    """

    sign = VoteCompressor()
