"""What only Horovod itself raises."""

from __future__ import annotations


class HorovodInternalError(RuntimeError):
    """Horovod's; here nothing raises it. It stands for programs that name it."""
