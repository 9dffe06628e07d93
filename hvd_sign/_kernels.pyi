from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

__version__: Final[str]
MESSAGE_VERSION: Final[int]
HEADER_BYTES: Final[int]
BLOCK: Final[int]
CHUNK_BLOCKS: Final[int]
ABSTAINED: Final[int]
NONFINITE: Final[int]
JOINED: Final[int]
BALLOT: Final[int]
VERDICT: Final[int]

class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...

_Array = npt.NDArray[Any] | _DLPack
_Messages = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint64]

class ExactFloats:
    def __enter__(self) -> None: ...
    def __exit__(self, *raised: object) -> None: ...

class Geometry:
    def __init__(
        self,
        blocks: int,
        shards: int,
        nonzero: bool = False,
        trailer_floats: int = 0,
        chunk_scales: bool = False,
    ) -> None: ...
    @property
    def blocks(self) -> int: ...
    @property
    def shards(self) -> int: ...
    @property
    def nonzero(self) -> bool: ...
    @property
    def trailer_floats(self) -> int: ...
    @property
    def chunk_scales(self) -> bool: ...
    @property
    def shard_blocks(self) -> int: ...
    @property
    def signs_offset(self) -> int: ...
    @property
    def active_offset(self) -> int: ...
    @property
    def nonzero_offset(self) -> int: ...
    @property
    def scales_offset(self) -> int: ...
    @property
    def trailer_offset(self) -> int: ...
    @property
    def message_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...

def implementations() -> list[str]: ...
def implementation() -> str: ...
def set_implementation(name: str) -> None: ...
def coin_key(seed: int, stream: str, step: int) -> int: ...
def coin_words(key: int, ordinal: int, first_block: int, out: _Words) -> None: ...
def xor_words(words: _Words) -> int: ...
def pack(
    signal: _Array,
    messages: _Messages,
    geometry: Geometry,
    first_block: int,
    *,
    ties: int,
    key: int,
    parity: int,
    ordinal: int,
    bfloat16: bool = False,
    want_abs: bool = False,
) -> tuple[int, int, float]: ...
def pack_linear(
    gradient: _Array | None,
    state: _Array | None,
    next_state: _Array | None,
    messages: _Messages,
    geometry: Geometry,
    first_block: int,
    *,
    a: float,
    b: float,
    c: float,
    d: float,
    unscale: float,
    feedback: tuple[Any, Any, Any, Any] | None,
    ties: int,
    key: int,
    parity: int,
    ordinal: int,
    bfloat16: bool = False,
    want_abs: bool = False,
) -> tuple[int, int, float]: ...
def abstain(messages: _Messages, geometry: Geometry, first_block: int, blocks: int) -> None: ...
def place(
    signs: _Words,
    active: _Words,
    nonzero: _Words | None,
    messages: _Messages,
    geometry: Geometry,
    first_block: int,
) -> None: ...
def fetch(
    messages: _Messages,
    geometry: Geometry,
    first_block: int,
    signs: _Words,
    active: _Words,
    nonzero: _Words | None,
) -> None: ...
def seal(
    messages: _Messages,
    geometry: Geometry,
    *,
    kind: int,
    flags: int,
    ties: int,
    stream: int,
    bucket: int,
    segment: int,
    counter: int,
    step: int,
    sender: int,
    shard: int = -1,
) -> None: ...
def check(
    messages: _Messages,
    geometry: Geometry,
    *,
    kind: int,
    ties: int,
    stream: int,
    bucket: int,
    segment: int,
    step: int,
    shard: int = -1,
    ranks: list[int] | None = None,
) -> tuple[list[int], list[int]]: ...
def tally(
    ballots: _Messages,
    geometry: Geometry,
    verdict: _Messages,
    *,
    shard: int,
    ties: int,
    key: int,
    first_blocks: npt.NDArray[np.int64],
    ordinals: _Words,
    parity: int = 0,
    weights: npt.NDArray[np.int8] | None = None,
    lengths: _Words | None = None,
    agreed: _Words | None = None,
    judged: _Words | None = None,
) -> tuple[int, int]: ...
def tally_means(
    ballots: _Messages,
    geometry: Geometry,
    verdict: _Messages,
    *,
    shard: int,
    ties: int,
    key: int,
    first_blocks: npt.NDArray[np.int64],
    ordinals: _Words,
    lengths: _Words,
    unsaid: list[tuple[Any, Any, Any, Any]],
) -> tuple[int, int]: ...
def write_verdict(
    out: _Array,
    messages: _Messages,
    geometry: Geometry,
    first_block: int,
    *,
    scale: float = 1.0,
    bfloat16: bool = False,
) -> None: ...
def apply_verdict(
    p: _Array,
    messages: _Messages,
    geometry: Geometry,
    first_block: int,
    *,
    lr: float,
    bfloat16: bool = False,
) -> None: ...
