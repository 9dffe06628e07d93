"""What stops the set-up, in one sentence that ends with the remedy."""

from __future__ import annotations

import re
import signal

NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution"
    r"|Name or service not known|Network is unreachable|Connection refused|Connection reset"
    r"|ProxyError|SSLError|Failed to establish a new connection|Could not resolve"
)
SPACE = re.compile(r"No space left on device|Disk quota exceeded")
MEMORY = re.compile(r"Killed signal terminated program|virtual memory exhausted|MemoryError")
MISSING = re.compile(r"No matching distribution found for (\S+)")


class SetupError(Exception):
    """The set-up cannot go on.

    Attributes:
        detail: lines of the failed program's output that the reader may need; often none.
    """

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


def explain(what: str, status: int, output: str, log: str) -> SetupError:
    """Returns the error for a program that failed.

    Args:
        what: it was doing, as in "installing PyTorch".
        status: its exit status; below zero, the signal that ended it.
        output: of the program, errors included.
        log: the file that holds all of it.
    """
    if NETWORK.search(output):
        return SetupError(
            f"{what} failed because the package index cannot be reached: connect this machine to "
            "it, or point pip at a copy that can be (PIP_INDEX_URL, PIP_FIND_LINKS)"
        )
    if SPACE.search(output):
        return SetupError(f"{what} failed because the disk is full: free some space and run again")
    if MEMORY.search(output):
        return SetupError(
            f"{what} failed because memory ran out: free some, or compile on fewer cores, as in "
            "`taskset -c 0 make test`"
        )
    missing = MISSING.search(output)
    if missing:
        return SetupError(
            f"{what} failed because pip's index has no {missing[1]} for this Python and machine: "
            "choose another version (TORCH=...) or another Python (PYTHON=...)"
        )
    if status < 0:
        return SetupError(f"{what} was ended by {signal.Signals(-status).name}: run it again")
    tail = [line for line in output.splitlines() if line.strip()][-20:]
    return SetupError(
        f"{what} failed: see the lines above, and all of it in {log}", "\n".join(tail)
    )
