"""Modules that bear the names of Horovod's, so that scripts find in ours what they import from it.

A module of ``hvd_sign.torch`` such as ``mpi_ops`` has all names of Horovod's, or of the one that
stands for it on our own MPI runtime, and ours wherever there is one of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


def namesake(
    theirs: ModuleType, *ours: ModuleType
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a module needs to be the namesake of another: its __getattr__, __dir__ and __all__.

    Args:
        theirs: whose names it lists, but for modules that it has imported.
        ours: where every name is looked for first, in this order, also one that is not listed:
            what Horovod's module has imported for itself, the one that stands for it may not have.
    """
    names = [
        name
        for name, thing in vars(theirs).items()
        if not (name.startswith("__") or isinstance(thing, ModuleType))
    ]

    def get(name: str) -> Any:
        # A module's own attributes, such as __path__, are nobody else's.
        for module in () if name.startswith("__") else (*ours, theirs):
            thing = vars(module).get(name)
            if thing is not None and not isinstance(thing, ModuleType):
                return thing
        raise AttributeError(f"module {theirs.__name__!r} has no attribute {name!r}")

    return get, lambda: sorted(names), [name for name in names if not name.startswith("_")]
