"""What our own runtime refuses: the same error on all ranks, or a name for what helps; no hang."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import named, parameters, plain

pytestmark = pytest.mark.runtime("mpi")


def still_works(hvd, world) -> None:
    total = hvd.allreduce(torch.ones(3), op=hvd.Sum, name="still works")
    np.testing.assert_array_equal(plain(total), world.size)


@pytest.mark.ranks(2)
def test_ranks_that_differ(hvd, world):
    first = world.rank == 0
    odd = torch.ones(2 if first else 3)
    half = torch.ones(2, dtype=torch.bfloat16 if first else torch.float16)
    op = hvd.Sum if first else hvd.Max
    for call, words in [
        (lambda: hvd.allreduce(odd, name="differs"), ["shape", "(2,) on rank 0"]),
        (lambda: hvd.allreduce(half, name="differs"), ["dtype", "bfloat16 on rank 0"]),
        (lambda: hvd.allgather(half, name="differs"), ["dtype", "bfloat16 on rank 0"]),
        (lambda: hvd.broadcast(half, 0, name="differs"), ["dtype", "bfloat16 on rank 0"]),
        (lambda: hvd.allreduce(odd[:2], name="differs", op=op), ["op", "Sum on rank 0"]),
        (lambda: hvd.broadcast(odd[:2], int(first), name="differs"), ["root_rank"]),
        (lambda: hvd.reducescatter(odd, name="differs"), ["shape"]),
        (lambda: hvd.grouped_allreduce([odd, odd], name="differs"), ["shape"]),
    ]:
        message = refused_alike(world, call)
        for word in ["differs", *words]:
            assert word in message
        still_works(hvd, world)


@pytest.mark.ranks(2)
def test_one_rank_refused_ends_the_others_too(hvd, world):
    bad = {
        "complex": torch.ones(2, dtype=torch.complex64),
        "sparse": torch.eye(2).to_sparse(),
        "torch.Tensor": [1.0, 2.0],
    }
    for word, thing in bad.items():
        given = thing if world.rank == 1 else torch.ones(2)
        with pytest.raises((TypeError, ValueError), match=word) as caught:
            hvd.synchronize(hvd.allreduce_async(given, name=word, op=hvd.Sum))
        assert world.rank == 1 or "rank 1" in str(caught.value)
        still_works(hvd, world)


def test_unknown_and_absent(hvd):
    tensor = torch.ones(2)
    sgd = torch.optim.SGD(parameters((2,)), lr=1.0)
    for call, words in [
        (lambda: hvd.allreduce(tensor, op=hvd.Adasum), "Adasum needs Horovod itself"),
        (lambda: hvd.allreduce(tensor, op=17), "op: expected one of Average"),
        (lambda: hvd.allreduce(tensor, average=True, op=hvd.Sum), "average"),
        (lambda: hvd.broadcast(tensor, 99), "root_rank: expected one of"),
        (lambda: hvd.allgather(torch.tensor(1.0)), "at least one dimension"),
        (lambda: hvd.reducescatter(tensor, op=hvd.Max), "op: expected Average or Sum"),
        (lambda: hvd.broadcast_parameters("model", 0), "params"),
        (lambda: hvd.alltoall(torch.ones(3), splits=[99] * hvd.size()), "splits"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    for call, words in [
        (lambda: hvd.SyncBatchNorm(4), "torch.nn.SyncBatchNorm"),
        (lambda: types.new_class("Own", (hvd.SyncBatchNorm,)), "torch.nn.SyncBatchNorm"),
        (lambda: hvd.SyncBatchNorm.convert_sync_batchnorm(None), "torch.nn.SyncBatchNorm"),
        (lambda: hvd.elastic.run(print), "elastic.run needs Horovod itself .* fixed size"),
        (lambda: hvd.elastic.TorchState(), "fixed size"),
        (lambda: hvd.elastic.sampler.ElasticSampler([1]), "fixed size"),
        (lambda: hvd.DistributedOptimizer(sgd, op=hvd.Adasum), "Adasum"),
        (lambda: hvd.grouped_allreduce([tensor], op=hvd.Adasum), "Adasum"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            call()
    assert not isinstance(torch.nn.BatchNorm1d(1), hvd.SyncBatchNorm)
    with pytest.raises(ImportError, match="HOROVOD_WITH_PYTORCH=1"):
        hvd.check_extension("horovod.torch", "HOROVOD_WITH_PYTORCH", __file__, "mpi_lib_v2")
    assert hvd.mpi_ops.gpu_available("torch") == torch.cuda.is_available()


def test_optimizers_that_cannot_be(hvd):
    params = parameters((3,))
    for options, words in [
        ({"op": hvd.Adasum}, "Adasum"),
        ({"op": hvd.Max}, "expected Average, Sum or a vote"),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, "gradient_predivide_factor"),
        ({"backward_passes_per_step": 0}, "backward_passes_per_step"),
        ({"groups": -1}, "groups"),
    ]:
        with pytest.raises(ValueError, match=words):
            hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), named(params), **options)
    with pytest.raises(ValueError, match="LBFGS"):
        hvd.DistributedOptimizer(torch.optim.LBFGS(params), named(params))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), named(params))
    with pytest.raises(ValueError, match="already"):
        hvd.DistributedOptimizer(optimizer, named(params))
    with pytest.raises(ValueError, match="add_param_group"):
        optimizer.add_param_group({"params": parameters((2,))})


@pytest.mark.ranks(2)
def test_parameters_that_differ(hvd, world):
    for shapes, names, words in [
        ([(3,), (2 + world.rank,)], ["a", "b"], "parameter 'b': shape"),
        ([(3,), (2,)], ["a", f"of rank {world.rank}"], "nothing on"),
    ]:
        params = parameters(*shapes)
        message = refused_alike(
            world,
            lambda params=params, names=names: hvd.DistributedOptimizer(
                torch.optim.SGD(params, lr=1.0), list(zip(names, params, strict=True))
            ),
        )
        assert words in message


def test_timelines_begin_and_end_when_asked(hvd, world, tmp_path):
    path = Path(world.bcast(str(tmp_path)))
    hvd.allreduce(torch.ones(2), name="before")
    hvd.start_timeline(str(path / "first.json"))
    hvd.allreduce(torch.ones(2), name="within", op=hvd.Sum)
    hvd.start_timeline(str(path / "second.json"), mark_cycles=True)
    hvd.allgather(torch.ones(2), name="later")
    hvd.stop_timeline()
    hvd.allreduce(torch.ones(2), name="after")
    hvd.stop_timeline()
    for file, label, kind in [
        ("first.json", "allreduce.within", "ALLREDUCE"),
        ("second.json", "allgather.later", "ALLGATHER"),
    ]:
        events = json.loads((path / file).read_text())
        labels = [e["args"] for e in events if e.get("name") == "process_name"]
        assert labels[1:] == [{"name": label}]
        spans = [(e["ph"], e.get("name")) for e in events if e["ph"] != "M"]
        assert spans == [("B", f"NEGOTIATE_{kind}"), ("E", None), ("B", kind), ("E", None)]
        times = [e["ts"] for e in events if e["ph"] != "M"]
        assert times == sorted(times)
    world.Barrier()


@pytest.mark.ranks(2)
def test_a_name_under_way(hvd, world):
    if world.rank == 0:
        handle = hvd.allreduce_async(torch.ones(2), name="once", op=hvd.Sum)
        with pytest.raises(ValueError, match="'once' is already under way"):
            hvd.allreduce_async(torch.ones(2), name="once", op=hvd.Sum)
        assert not hvd.poll(handle)
    world.Barrier()
    if world.rank:
        handle = hvd.allreduce_async(torch.ones(2), name="once", op=hvd.Sum)
    np.testing.assert_array_equal(plain(hvd.synchronize(handle)), world.size)


@pytest.mark.ranks(2)
def test_process_sets(hvd, world):
    part = hvd.add_process_set(hvd.ProcessSet(range(1, world.size)))
    if part.included():
        total = hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=part)
        assert total.item() == world.size - 1
        got = hvd.broadcast(torch.tensor([world.rank]), world.size - 1, process_set=part)
        assert got.item() == world.size - 1
    else:
        with pytest.raises(ValueError, match="none of its ranks"):
            hvd.allreduce(torch.ones(1), process_set=part)
    assert hvd.remove_process_set(part)
    with pytest.raises(ValueError, match="process_set"):
        hvd.allreduce(torch.ones(1), process_set=part)
