"""Horovod's own optimizers and tapes, before they first wait for other ranks."""

from __future__ import annotations

from typing import Any, cast

import tensorflow as tf

from hvd_sign.frontend.backends import HorovodBackend
from hvd_sign_tf.backend import backend


def meet_first(exchange: Any, method: str, process_set: Any, *, once: bool = False) -> None:
    """Lets one ask, before it first reduces gradients, whether other ranks vote on theirs.

    Args:
        exchange: Horovod's.
        method: of it, which reduces gradients.
        process_set: the ranks that take part.
        once: to ask once is enough for the process set.
    """
    reduce = getattr(exchange, method)

    @tf.autograph.experimental.do_not_convert
    def meet(*args: Any, **kwargs: Any) -> Any:
        cast(HorovodBackend, backend).open_dense(process_set, once=once)
        setattr(exchange, method, reduce)
        return reduce(*args, **kwargs)

    setattr(exchange, method, meet)
