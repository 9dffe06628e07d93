"""The vote on numpy arrays, over any MPI communicator; needs no Horovod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import make_algorithm
from hvd_sign.core.buckets import check_dtype
from hvd_sign.core.launch import check_launcher
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.process import load_mpi
from hvd_sign.devices import HOST, Operand
from hvd_sign.exchanges import check_exchange
from hvd_sign.runtime.communicators import communicator_streams
from hvd_sign.runtime.named import ALLREDUCE, Tensor
from hvd_sign.votes import MajorityVote, make_rule

if TYPE_CHECKING:
    from mpi4py import MPI


def allreduce(
    array: npt.ArrayLike,
    op: object = MajorityVote,
    *,
    exchange: str = "sharded",
    ties: str = "coin",
    comm: MPI.Intracomm | None = None,
    name: str | None = None,
    seed: int = 0,
    step: int | None = None,
    scale: str | None = None,
    local: str = "vote",
    fallback: str | None = None,
    algorithm: Any = "sign",
) -> npt.NDArray[Any]:
    """Decides each coordinate of ``array`` by a vote of all ranks. Blocks.

    Collective over ``comm``; ranks may call votes of several names in any order from several
    threads.

    Args:
        array: fp32, fp64, fp16 or (ml_dtypes) bf16, any shape; the same shape and type on all
            ranks. Not modified.
        op: a vote rule, as class or instance.
        exchange: as of ``hvd_sign.VoteOptions``, where all options of a vote are documented.
        ties: see there.
        comm: an mpi4py communicator; MPI_COMM_WORLD if None.
        name: of the vote; without one, votes are matched by how many unnamed ones came before.
        seed: see there.
        step: the coins' argument beside seed and name, in [0, 2^32); by default the number of
            earlier votes of that name.
        scale: see there.
        local: see there.
        fallback: see there.
        algorithm: see there. What it keeps belongs to ``name``, which it then needs.

    Returns:
        An array like ``array`` of the verdict in {-1, 0, +1}, times the scale.

    Raises:
        TypeError: the element type cannot be voted on, or ``comm`` is no intracommunicator.
        ValueError: an unknown or contradictory option; or ranks differ in anything, in which
            case all ranks raise the same error. If only some ranks' arguments are refused, the
            others raise a ValueError that names those ranks and tells why.
        RuntimeError: MPI cannot be used, or sees none of the other ranks.
    """
    if comm is None:
        check_launcher()
    mpi = load_mpi()
    communicator = mpi.COMM_WORLD if comm is None else comm
    if not isinstance(communicator, mpi.Intracomm):
        raise TypeError(f"comm: expected an mpi4py intracommunicator, got {comm!r}")
    if communicator == mpi.COMM_NULL:
        raise ValueError("comm: expected a communicator that this rank is in, got COMM_NULL")
    stream = communicator_streams.get(communicator)
    with stream.refusing(ALLREDUCE, name):
        rule = make_rule(op)
        check_exchange(exchange)
        options = VoteOptions(
            ties=ties,
            exchange=exchange,
            seed=seed,
            scale=scale,
            local=local,
            fallback=fallback,
            algorithm=make_algorithm(algorithm),
        )
        signal = np.asarray(array, order="C")
        check_dtype("array", signal.dtype.name if signal.dtype.isnative else signal.dtype.str)
    out = np.empty_like(signal)
    tensor = Tensor(name or "array", signal.shape, signal.dtype.name, Operand(HOST, signal, out))
    stream.vote([tensor], rule, options, name=name, step=step).wait()
    return out
