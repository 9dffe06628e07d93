"""What stops the set-up, in one sentence that ends with the remedy."""

from __future__ import annotations

import re

NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution"
    r"|Name or service not known|Network is unreachable|Connection refused|Connection reset"
    r"|ProxyError|SSLError|Failed to establish a new connection|Could not resolve"
)
SPACE = re.compile(r"No space left on device|Disk quota exceeded")
MISSING = re.compile(r"No matching distribution found for (\S+)")


class SetupError(Exception):
    """The set-up cannot go on.

    Attributes:
        detail: lines of the failed program's output that the reader may need; often none.
    """

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


def explain(what: str, output: str, log: str) -> SetupError:
    """Returns the error for a program that failed.

    Args:
        what: it was doing, as in "installing PyTorch".
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
    missing = MISSING.search(output)
    if missing:
        return SetupError(
            f"{what} failed because pip's index has no {missing[1]} for this Python and machine: "
            "choose another version (TORCH=...) or another Python (PYTHON=...)"
        )
    tail = "\n".join(line for line in output.splitlines() if line.strip()).splitlines()[-20:]
    return SetupError(
        f"{what} failed: see the lines above, and all of it in {log}", "\n".join(tail)
    )
