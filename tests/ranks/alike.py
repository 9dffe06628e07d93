"""What ranks must do alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refused_alike(
    world: Any, call: Callable[[], Any], kinds: tuple[type[Exception], ...] = (ValueError,)
) -> str:
    """The message of the error that ``call`` must raise, the same on every rank."""
    try:
        call()
    except kinds as error:
        message = str(error)
    else:
        message = None
    messages = world.allgather(message)
    assert None not in messages, f"no error on some ranks: {messages}"
    assert len(set(messages)) == 1, f"the ranks say different things: {messages}"
    return messages[0]
