"""What goes wrong in calls of all ranks, as classes that scripts written for Horovod catch.

Horovod reports such things by RuntimeError (HorovodInternalError is one), hvd_sign by what Python
would say: each class here is both. None is a HorovodInternalError: elastic jobs answer that one by
trying again, which mends no difference between ranks, and over MPI no lost rank.

| class | also a | when |
|---|---|---|
| ``DisagreementError`` | ``ValueError`` | ranks differ in a call, or one rank's call was refused |
| ``NotInitializedError`` | ``ValueError`` | a call before ``init()`` or after ``shutdown()`` |
| ``RankLostError`` | ``ConnectionError`` | another rank's program ended, or it shut down |
| ``StallError`` | ``TimeoutError`` | a rank did not come within the shutdown time |
| ``OperationError`` | ``ValueError`` | an ``op`` that there is not, or that a call does not serve |
| ``CheckpointError`` | ``OSError``, ``ValueError`` | a checkpoint that cannot be written or read |
| ``CheckpointNotFoundError`` | ``FileNotFoundError`` | a ``CheckpointError``: there is none |

All are ``VoteError``, which itself tells that a stream of votes is closed or broken. Only a tensor
that a call cannot take is a ``TensorError``, both ``TypeError`` and ``ValueError``, as which
Horovod reports it.

Within a graph TensorFlow raises an error anew as one of its class only if that has the __init__ of
Exception; the others become a StagingError, which is none of these.
"""

from __future__ import annotations


class VoteError(RuntimeError):
    """A call that ranks make together has failed."""


class DisagreementError(ValueError, VoteError):
    """Ranks differ in what they call together, or one of them was refused; told to all of them."""

    __init__ = Exception.__init__


class NotInitializedError(ValueError, VoteError):
    """``init()`` has not been called, or ``shutdown()`` has since."""

    __init__ = Exception.__init__


class RankLostError(ConnectionError, VoteError):
    """Another rank takes part no more: its program has ended, or it has shut down."""


class StallError(TimeoutError, VoteError):
    """A rank has not come within HOROVOD_STALL_SHUTDOWN_TIME_SECONDS."""


class OperationError(ValueError, VoteError):
    """An operation that there is not, or that this call or runtime does not serve."""

    __init__ = Exception.__init__


class CheckpointError(OSError, ValueError, VoteError):
    """A checkpoint cannot be written or read, on one rank at least; the same on all of them."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No rank finds a checkpoint, as before the first one is complete."""


class TensorError(TypeError, ValueError):
    """A tensor whose kind or element type a call cannot take."""

    __init__ = Exception.__init__
