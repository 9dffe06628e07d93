"""What only Horovod itself can do, and what to do instead."""

from __future__ import annotations

from hvd_sign.standalone.absent import Absent

_TIMELINE = "set HVD_SIGN_TIMELINE, which names a file"

start_timeline = Absent("start_timeline", _TIMELINE)
stop_timeline = Absent("stop_timeline", _TIMELINE)


class HorovodInternalError(RuntimeError):
    """Horovod's; here nothing raises it. It stands for programs that name it."""
