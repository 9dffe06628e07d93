"""What goes wrong between ranks, as classes that scripts written for Horovod catch.

Horovod reports such things by RuntimeError (HorovodInternalError is one), hvd_sign by what Python
would say: each class here is both. None is a HorovodInternalError: elastic jobs answer that one by
trying again, which mends no difference between ranks, and over MPI no lost rank.

| class | also a | when |
|---|---|---|
| ``DisagreementError`` | ``ValueError`` | ranks differ in a call, or one rank's call was refused |
| ``NotInitializedError`` | ``ValueError`` | a call before ``init()`` or after ``shutdown()`` |
| ``RankLostError`` | ``ConnectionError`` | another rank's program ended, or it shut down |
| ``StallError`` | ``TimeoutError`` | a rank did not come within the shutdown time |

All are ``VoteError``, which itself tells that a stream of votes is closed or broken.
"""

from __future__ import annotations


class VoteError(RuntimeError):
    """A call that ranks make together has failed."""


class DisagreementError(ValueError, VoteError):
    """Ranks differ in what they call together, or one of them was refused; told to all of them."""


class NotInitializedError(ValueError, VoteError):
    """``init()`` has not been called, or ``shutdown()`` has since."""


class RankLostError(ConnectionError, VoteError):
    """Another rank takes part no more: its program has ended, or it has shut down."""


class StallError(TimeoutError, VoteError):
    """A rank has not come within HOROVOD_STALL_SHUTDOWN_TIME_SECONDS."""
