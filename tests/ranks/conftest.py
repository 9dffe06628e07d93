"""Fixtures of the tests that run under ranks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI


@pytest.fixture(scope="session")
def world() -> Iterator[MPI.Intracomm]:
    """For the tests' own messages: gathering what the ranks hold, to compare it."""
    comm = MPI.COMM_WORLD.Dup()
    yield comm
    comm.Free()


@pytest.fixture(params=["self", "world", "duplicate"])
def comm(request: pytest.FixtureRequest) -> Iterator[MPI.Intracomm]:
    """The communicators that the same test bodies run on."""
    if request.param == "self":
        yield MPI.COMM_SELF
    elif request.param == "world":
        yield MPI.COMM_WORLD
    else:
        duplicate = MPI.COMM_WORLD.Dup()
        yield duplicate
        duplicate.Free()


@pytest.fixture(params=["inline", "sharded", "allgather"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An exchange by name; small votes of `sharded` are inline, unless that is switched off."""
    if request.param == "sharded":
        monkeypatch.setattr("hvd_sign.rounds.inline.MOST_BLOCKS", -1)
    return "sharded" if request.param == "inline" else str(request.param)


@pytest.fixture
def rng(world: MPI.Intracomm) -> np.random.Generator:
    """Different numbers on each rank, the same in each run."""
    return np.random.default_rng([20, world.rank])


@pytest.fixture
def shared(world: MPI.Intracomm) -> Iterator[Path]:
    """A folder that all ranks share."""
    made = world.bcast(tempfile.mkdtemp() if world.rank == 0 else None)
    yield Path(made)
    world.Barrier()
    if world.rank == 0:
        shutil.rmtree(made)


@pytest.fixture(params=["shared", "each its own"])
def path(request: pytest.FixtureRequest, world: MPI.Intracomm, shared: Path) -> Path:
    """Where checkpoints go: one folder, or one for each rank, as on nodes' own disks."""
    return shared / ("all" if request.param == "shared" else f"of {world.rank}")


@pytest.fixture(scope="session")
def hvd(world: MPI.Intracomm) -> Iterator[object]:
    """The PyTorch binding, initialised."""
    import hvd_sign.torch as binding  # the tests of the core must run without it

    binding.init(process_sets="dynamic")
    yield binding
    world.Barrier()
    binding.shutdown()


@pytest.fixture(scope="session")
def hvd_tf(world: MPI.Intracomm) -> Iterator[object]:
    """The TensorFlow binding, initialised; each rank on one thread of TensorFlow's."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    import hvd_sign.tensorflow as binding

    binding.init(process_sets="dynamic")
    yield binding
    world.Barrier()
    binding.shutdown()
