"""Errors between ranks as TensorFlow's users catch them: those of the core, and Horovod's at once.

Horovod reports such things by ``tf.errors``, by kinds that this module repeats. Of what the host
raises while a graph runs, TensorFlow itself makes one of its own errors: ``InvalidArgumentError``
of a ValueError, else ``UnknownError``; it begins with our error's name. None makes an elastic job
try again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from hvd_sign import errors


class VoteError(tf.errors.UnknownError, errors.VoteError):
    """``hvd_sign.errors.VoteError``."""


class DisagreementError(tf.errors.FailedPreconditionError, errors.DisagreementError):
    """``hvd_sign.errors.DisagreementError``."""


class RankLostError(tf.errors.UnknownError, errors.RankLostError):
    """``hvd_sign.errors.RankLostError``."""


class StallError(tf.errors.UnknownError, errors.StallError):
    """``hvd_sign.errors.StallError``."""


class OperationError(tf.errors.UnknownError, errors.OperationError):
    """``hvd_sign.errors.OperationError``."""


class TensorError(tf.errors.InvalidArgumentError, errors.TensorError):
    """``hvd_sign.errors.TensorError``."""


class RefusedError(tf.errors.InvalidArgumentError, ValueError):
    """An argument that this rank alone need look at, such as a process set that it is none of."""


class UnservedError(tf.errors.UnimplementedError, NotImplementedError, ValueError):
    """What no runtime serves, such as the minimum of ``tf.IndexedSlices``."""


_KINDS = {
    ValueError: RefusedError,
    errors.VoteError: VoteError,
    errors.DisagreementError: DisagreementError,
    errors.RankLostError: RankLostError,
    errors.StallError: StallError,
    errors.OperationError: OperationError,
    errors.TensorError: TensorError,
}


@contextmanager
def told_as_horovod() -> Iterator[None]:
    """Within it, the core's errors are raised as Horovod's too."""
    try:
        yield
    except Exception as error:
        kind = _KINDS.get(type(error))
        if kind is None:
            raise
        raise kind(None, None, str(error)).with_traceback(error.__traceback__) from error.__cause__
