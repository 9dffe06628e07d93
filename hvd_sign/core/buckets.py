"""Buckets: which tensors are voted on together, and where each one's blocks stand."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.core.kernels import CHUNK_BLOCKS
from hvd_sign.core.options import AUTO
from hvd_sign.errors import TensorError

BLOCK = 64
"""Coordinates in a block: one word of the sign plane, one bit of the activity bitmap."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is voted on.

    Attributes:
        name: unique within its registered list.
        shape: its shape.
        dtype: the element type's name, such as ``"float32"``.
        ordinal: its number in the registered list; with the offset it numbers a coordinate.
        vote: False: it goes dense, and gets the mean of the ranks' tensors instead of a verdict.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    ordinal: int
    vote: bool = True

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """Number of blocks of 64 coordinates; the last may be part filled."""
        return -(-self.size // BLOCK)


@dataclass(frozen=True)
class Bucket:
    """Tensors whose ballots share their messages.

    Attributes:
        index: the bucket's number; buckets are launched in this order.
        specs: its tensors.
        chunked: each tensor begins at a whole chunk of 4096 coordinates, for messages with chunk
            scales.
        first_blocks: int64[len(specs) + 1], where each tensor's blocks start, and the total.
        ordinals: uint64[len(specs)].
        lengths: uint64[len(specs)], their coordinates.
    """

    index: int
    specs: tuple[TensorSpec, ...]
    chunked: bool = False
    first_blocks: npt.NDArray[np.int64] = field(init=False, compare=False, repr=False)
    ordinals: npt.NDArray[np.uint64] = field(init=False, compare=False, repr=False)
    lengths: npt.NDArray[np.uint64] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Derives the block table."""
        sizes = [spec.blocks for spec in self.specs]
        if self.chunked:
            sizes = [-(-blocks // CHUNK_BLOCKS) * CHUNK_BLOCKS for blocks in sizes]
        starts = np.cumsum([0, *sizes], dtype=np.int64)
        object.__setattr__(self, "first_blocks", starts)
        ordinals = np.array([spec.ordinal for spec in self.specs], dtype=np.uint64)
        object.__setattr__(self, "ordinals", ordinals)
        lengths = np.array([spec.size for spec in self.specs], dtype=np.uint64)
        object.__setattr__(self, "lengths", lengths)

    def __str__(self) -> str:
        names = [spec.name for spec in self.specs]
        return f"bucket {self.index} ({' to '.join(dict.fromkeys((names[0], names[-1])))})"

    @property
    def blocks(self) -> int:
        """Total number of blocks."""
        return int(self.first_blocks[-1])


def check_bucket_bytes(value: object) -> None:
    """Raises ValueError unless ``value`` is a number above zero, or ``"auto"``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value != AUTO and not (number and value > 0):  # type: ignore[operator]
        raise ValueError(f"bucket_bytes: expected a number above zero or 'auto', got {value!r}")


def plan_buckets(
    specs: Sequence[TensorSpec],
    bucket_bytes: int,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Bucket]:
    """Splits tensors into buckets, in reverse order of registration, as backward makes them ready.

    Those that go dense have buckets of their own.

    Args:
        specs: all tensors, in order of registration.
        bucket_bytes: a bucket is closed when its tensors' fp32 size reaches this many bytes.
        groups: tensors that share a bucket, as lists of positions in ``specs``; a tensor in none
            of them is a group of its own. With groups, ``bucket_bytes`` serves those alone that go
            dense, whatever group they are in.

    Raises:
        ValueError: ``bucket_bytes`` is not positive.
    """
    check_bucket_bytes(bucket_bytes)
    dense = [position for position, spec in enumerate(specs) if not spec.vote]
    voted = [position for position, spec in enumerate(specs) if spec.vote]
    if groups is not None:
        grouped = {position for group in groups for position in group}
        loners = [[position] for position in voted if position not in grouped]
        chosen = [set(group).intersection(voted) for group in [*groups, *loners]]
        members = [sorted(group, reverse=True) for group in chosen if group]
        members.sort(key=lambda group: group[0], reverse=True)
    else:
        members = _filled(specs, voted, bucket_bytes)
    if dense:
        members += _filled(specs, dense, bucket_bytes)
        members.sort(key=lambda group: group[-1], reverse=True)  # as backward completes them
    return [
        Bucket(index, tuple(specs[position] for position in group))
        for index, group in enumerate(members)
    ]


def _filled(
    specs: Sequence[TensorSpec], positions: Sequence[int], bucket_bytes: int
) -> list[list[int]]:
    """Positions of tensors that share a bucket, filled from the last tensor on."""
    members: list[list[int]] = []
    filled = bucket_bytes
    for position in reversed(positions):
        if filled >= bucket_bytes:
            members.append([])
            filled = 0
        members[-1].append(position)
        filled += 4 * specs[position].size
    return members


def apart(buckets: list[Bucket], ordinals: Collection[int]) -> list[Bucket]:
    """The buckets with the tensors of some ordinals in one of their own, the last."""
    if not ordinals:
        return buckets
    rows = [tuple(s for s in bucket.specs if s.ordinal not in ordinals) for bucket in buckets]
    rows.append(tuple(s for bucket in buckets for s in bucket.specs if s.ordinal in ordinals))
    return [Bucket(index, row) for index, row in enumerate(filter(None, rows))]


def group_positions(
    groups: Any, members: Sequence[Any], kind: Any, name: str
) -> list[list[int]] | None:
    """Horovod's ``groups`` as positions in ``members``.

    Args:
        groups: how many groups of about as many members each; or lists of members; or None.
        members: of the framework's kind.
        kind: the framework's tensors or variables: a class, or a tuple of classes.
        name: what users call those.

    Raises:
        ValueError: ``groups`` is something else, or has a member twice.
    """
    if groups is None:
        return None
    if isinstance(groups, int):
        if groups <= 0:
            raise ValueError(f"groups: expected a number above zero, got {groups}")
        count = min(groups, len(members)) or 1
        return [part.tolist() for part in np.array_split(np.arange(len(members)), count)]
    if not isinstance(groups, (list, tuple)):
        raise ValueError(f"groups should be a non-negative integer or a list of list of {name}.")
    grouped = [member for group in groups for member in group]
    if any(not isinstance(member, kind) for member in grouped):
        raise ValueError(f"groups must consist of {name}.")
    if len({id(member) for member in grouped}) != len(grouped):
        raise ValueError("A parameter can only appear once in groups.")
    position = {id(member): i for i, member in enumerate(members)}
    return [[position[id(m)] for m in group if id(m) in position] for group in groups]


DTYPES = ("float32", "float64", "float16", "bfloat16")
"""Element types that can be voted on."""


def check_dtype(who: str, dtype: str) -> None:
    """Raises TensorError unless ``dtype`` can be voted on."""
    if dtype not in DTYPES:
        raise TensorError(f"{who}: expected one of {', '.join(DTYPES)}, got {dtype}")
