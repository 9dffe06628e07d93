"""Process sets: groups of ranks that exchange among themselves, as Horovod has them."""

from __future__ import annotations

from collections.abc import Sequence


class ProcessSet:
    """Some of the ranks.

    Args:
        ranks: their numbers, each once, in any order; None: all, known once ``init()`` was called.

    Attributes:
        ranks: in ascending order.
        process_set_id: 0 for all ranks; None while it is not registered.

    Raises:
        ValueError: no ranks, a rank twice, or one below zero.
    """

    def __init__(self, ranks: Sequence[int] | None) -> None:
        if ranks is not None and (not ranks or len(set(ranks)) != len(ranks) or min(ranks) < 0):
            raise ValueError(f"ranks: expected some ranks, each once, got {list(ranks)}")
        self.ranks: list[int] | None = None if ranks is None else sorted(ranks)
        self.process_set_id: int | None = None
        self._own: int | None = None

    def register(self, number: int | None, own: int | None) -> None:
        """Notes its number (None: it is removed) and this process's place in it, if it has one."""
        self.process_set_id, self._own = number, own

    def size(self) -> int:
        """How many ranks. Raises ValueError if it is not registered."""
        self._check()
        assert self.ranks is not None
        return len(self.ranks)

    def rank(self) -> int:
        """This process's place in it.

        Raises:
            ValueError: it is not registered, or this process is none of its ranks.
        """
        self._check()
        if self._own is None:
            raise ValueError(f"process_set: this process is none of its ranks {self.ranks}")
        return self._own

    def included(self) -> bool:
        """Whether this process is one of its ranks. Raises ValueError if it is not registered."""
        self._check()
        return self._own is not None

    def _check(self) -> None:
        if self.process_set_id is None:
            raise ValueError(
                f"process_set: expected one that was given to hvd.init() or hvd.add_process_set(), "
                f"got {self}"
            )

    def __str__(self) -> str:
        return f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks})"


global_process_set = ProcessSet(None)
