"""Names of Horovod's that its own library alone can serve."""

from __future__ import annotations

from typing import Any, NoReturn


class Absent:
    """Stands for a function, class or module: whatever is done with it raises RuntimeError.

    Nothing is an instance of it, so that scripts may ask.

    Args:
        name: of what is not there.
        instead: what helps.
    """

    def __init__(self, name: str, instead: str) -> None:
        self._why = f"hvd.{name} needs Horovod itself (runtime 'mpi' is in use): {instead}"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError."""
        raise RuntimeError(self._why)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise RuntimeError(self._why)

    def __instancecheck__(self, instance: Any) -> bool:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(self._why)


def absent_in_elastic(name: str) -> Absent:
    """Stands for a name of elastic jobs, which need Horovod's launcher and its controller."""
    return Absent(
        f"elastic.{name}", "start a job of a fixed size, and let it go on from a checkpoint"
    )
