"""Horovod's operations, of which unnamed ones get names of ours while votes travel over Horovod.

Horovod names an unnamed operation after its handle, and numbers the handles of all operations
together. Votes that travel over Horovod take handles too, whenever the progress thread comes to
them, so that an unnamed operation would bear another name on each rank, and wait for ever.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, cast

import torch
from horovod.torch import functions, mpi_ops

from hvd_sign.core.process import check_not_forked
from hvd_sign.frontend.backends import HorovodBackend
from hvd_sign_torch import backend as own

backend = cast(HorovodBackend, own.backend)
_lock = threading.Lock()
_counts: Counter[tuple[str, tuple[int, ...]]] = Counter()


def number_anew() -> None:
    """Begins to number unnamed calls anew, as ranks that have just started do."""
    with _lock:
        _counts.clear()


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose unnamed calls are numbered per kind and process set; not in a child."""
    # In place or not, at once or not: Horovod matches them all.
    kind = function.__name__.removesuffix("_").removesuffix("_async")
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_not_forked()
        if not backend.votes_over_horovod:
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["name"] is not None:
            return function(*args, **kwargs)
        key = kind, tuple(backend.members(bound.arguments["process_set"]))
        with _lock:
            number = _counts[key]
            _counts[key] += 1
        bound.arguments["name"] = f"hvd_sign.{kind}.noname.{number}"
        try:
            return function(*bound.args, **bound.kwargs)
        except (NotImplementedError, TypeError, ValueError):
            # Refused on this rank before Horovod had it: the number is free again.
            with _lock:
                _counts[key] -= 1
            raise

    return call


def _within(names: dict[str, Any], function: Any) -> Any:
    """A copy of ``function`` that finds what it calls in ``names``."""
    copy = FunctionType(
        function.__code__,
        names,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return wraps(function)(copy)


def _operations() -> dict[str, Any]:
    """All of Horovod's operations that can go without a name, by their own names.

    Their backward passes call unnamed operations, which have to be ours too.
    """
    names = dict(vars(mpi_ops))
    found = {}
    for name, thing in vars(mpi_ops).items():
        if isinstance(thing, type) and issubclass(thing, torch.autograd.Function):
            backward = staticmethod(_within(names, thing.backward))
            names[name] = type(name, (thing,), {"backward": backward})
        elif inspect.isfunction(thing) and not name.startswith("_"):
            parameter = inspect.signature(thing).parameters.get("name")
            if parameter is not None and parameter.default is None:
                found[name] = _named(_within(names, thing))
    names.update(found)
    return found


OPERATIONS = _operations()
"""Horovod's operations that can go without a name, the ``allreduce`` family included."""

allgather = OPERATIONS["allgather"]
allgather_async = OPERATIONS["allgather_async"]
alltoall = OPERATIONS["alltoall"]
alltoall_async = OPERATIONS["alltoall_async"]
broadcast = OPERATIONS["broadcast"]
broadcast_ = OPERATIONS["broadcast_"]
broadcast_async = OPERATIONS["broadcast_async"]
broadcast_async_ = OPERATIONS["broadcast_async_"]
grouped_allgather = OPERATIONS["grouped_allgather"]
grouped_allgather_async = OPERATIONS["grouped_allgather_async"]
grouped_reducescatter = OPERATIONS["grouped_reducescatter"]
grouped_reducescatter_async = OPERATIONS["grouped_reducescatter_async"]
reducescatter = OPERATIONS["reducescatter"]
reducescatter_async = OPERATIONS["reducescatter_async"]

broadcast_parameters = _within(
    {**vars(functions), "broadcast_async_": broadcast_async_}, functions.broadcast_parameters
)
