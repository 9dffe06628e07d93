"""The native engine; see native/engine/ for what each part does."""

from typing import Any

__version__: str

class Plan:
    @property
    def chunks(self) -> int: ...
    @property
    def scales(self) -> list[float]: ...

class Vote:
    def test(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @property
    def flags(self) -> int: ...
    def totals(self) -> dict[str, int | float]: ...
    def spans(self) -> list[tuple[str, int, float, float]]: ...

class Stream: ...

class Engine:
    def open(self, ballots: int, verdicts: int) -> Stream: ...
    def close(self, stream: Stream) -> None: ...
    def submit(self, stream: Stream, vote: Vote) -> None: ...
    def nap(self, seconds: float) -> None: ...
    def stop(self) -> None: ...

def library_version() -> str: ...
def plan(
    *,
    tensors: list[tuple[int, int, int]],
    blocks: int,
    ties: int,
    sharded: bool,
    scaled: bool,
    rank: int,
    voters: int,
    stream: int,
    bucket: int,
    chunk_blocks: int,
    slots: int,
    ballots: Any,
    verdicts: Any,
) -> Plan: ...
def vote(
    *,
    plan: Plan,
    feeds: list[tuple[Any, Any, float, bool, int, int, float]],
    step: int,
    zero_key: int,
    tie_key: int,
    joined: bool,
    keep: bool,
    trace: bool,
) -> Vote: ...
