"""How many votes of each name were held, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict


class Counts:
    """Counts of the names used last.

    A name that was forgotten counts on from the largest count ever forgotten, as a new one then
    does, so that no number comes twice for a name.

    Args:
        most: names that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._forgotten = 0

    def __getitem__(self, name: str) -> int:
        return self._counts.get(name, self._forgotten)

    def __setitem__(self, name: str, count: int) -> None:
        self._counts[name] = count
        self._counts.move_to_end(name)
        if len(self._counts) > self._most:
            _, forgotten = self._counts.popitem(last=False)
            self._forgotten = max(self._forgotten, forgotten)

    def __len__(self) -> int:
        return len(self._counts)
