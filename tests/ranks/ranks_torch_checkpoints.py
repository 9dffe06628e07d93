"""``save_checkpoint`` and ``load_checkpoint``: what is in them, resumed runs, other voters."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
import torch
from additions.esteem import Esteem
from additions.feedback import Feedback
from helpers import backward, gradients, plain, same_everywhere
from jobs import KINDS, Job, Model, equal, errors
from onebit import Rank, World

from hvd_sign.algorithms import OneBit

KEY = "hvd_sign"
COMMON, MANIFEST = "common.pt", "manifest.json"


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_one(hvd, world, path, kind):
    whose = 0 if kind == "unwrapped" else world.rank  # which by itself makes no ranks alike
    job = Job(hvd, kind)
    job.train(whose, range(3))
    hvd.save_checkpoint(path, **job.things, epoch=3, seen=[torch.tensor([1.5])])
    job.train(whose, range(3, 6))
    other = Job(hvd, kind)
    other.train(whose, range(7, 8))  # has been somewhere else
    rest = hvd.load_checkpoint(path, **other.things)
    assert equal(rest, {"epoch": 3, "seen": [torch.tensor([1.5])]})
    other.train(whose, range(3, 6))
    assert equal(job.all_state(), other.all_state())
    assert int(other.model.seen) == 6


def momenta(ranks: int, beta: float, turns) -> list[list[np.ndarray]]:
    """Each rank's, by numpy, in fp32."""
    kept = []
    for rank in range(ranks):
        params = list(Model().parameters())
        v = [np.zeros(p.numel(), np.float32) for p in params]
        for turn in turns:
            for i, g in enumerate(gradients(rank, params, turn)):
                v[i] = np.float32(beta) * v[i] + np.float32(1 - beta) * g.numpy().reshape(-1)
        kept.append(v)
    return kept


def test_the_files(hvd, world, shared):
    """What numpy, json and PyTorch alone find in them; the last save is the only one."""
    job = Job(hvd)
    for turns in (range(1), range(1, 3)):
        job.train(world.rank, turns)
        hvd.save_checkpoint(str(shared / "a" / "b"), job.model, job.optimizer, epoch=1)
    world.Barrier()
    assert os.listdir(shared / "a" / "b") == ["00000002"]
    place = shared / "a" / "b" / "00000002"
    names = {COMMON, MANIFEST, *(f"rank{rank}.npz" for rank in range(world.size))}
    assert set(os.listdir(place)) == names
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["format"] == "hvd_sign checkpoint"
    assert manifest["ranks"] == world.size
    assert manifest["voters"] == {"optimizer": list(range(world.size))}
    for rank, wanted in enumerate(momenta(world.size, 0.9, range(3))):
        with np.load(place / f"rank{rank}.npz", allow_pickle=False) as kept:
            assert set(kept) == {f"optimizer/momentum/{i}" for i in range(3)}
            for i, array in enumerate(wanted):
                np.testing.assert_array_equal(kept[f"optimizer/momentum/{i}"], array, strict=True)
    common = torch.load(place / COMMON, weights_only=True)
    assert equal(common["states"]["model"], job.model.state_dict())
    assert common["states"]["epoch"] == 1
    assert common["votes"]["optimizer"]["common"] == {"step": torch.tensor(3)}
    said = {"algorithm": "Signum(beta=0.9)", "seed": "5", "op": "MajorityVote"}
    assert said.items() <= common["votes"]["optimizer"]["said"].items()
    assert KEY not in common["states"]["optimizer"]


def test_a_part_of_it(hvd, world, shared):
    """As for an evaluation: the model alone; what was not asked for comes back."""
    job = Job(hvd)
    job.train(world.rank, range(2))
    hvd.save_checkpoint(shared, **job.things, epoch=3)
    model = Model()
    rest = hvd.load_checkpoint(shared, model)
    assert equal(model.state_dict(), job.model.state_dict())
    assert set(rest) == {"optimizer", "scheduler", "epoch"}
    told = errors(world, lambda: hvd.load_checkpoint(shared, teacher=Model()))
    assert "teacher: expected one of ['epoch', 'model', 'optimizer', 'scheduler']" in told
    told = errors(world, lambda: hvd.load_checkpoint(shared, epoch=3))
    assert "epoch: expected load_state_dict(), got int" in told


@pytest.fixture(scope="module")
def fewer(hvd, world):
    """A process set of all ranks but the last."""
    made = hvd.add_process_set(list(range(world.size - 1)))
    yield made
    hvd.remove_process_set(made)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("grows", [True, False])
def test_other_voters(hvd, world, path, fewer, grows):
    """A median, a mean, and a kept sum, as numpy has them; the steps' number goes on."""
    part, all_of_them = {"process_set": fewer}, {"process_set": hvd.global_process_set}
    before, after = (part, all_of_them) if grows else (all_of_them, part)
    old = world.size - 1 if grows else world.size
    new = world.size if grows else world.size - 1
    job = Job(hvd, algorithm=Feedback(), **before)
    own = {}
    if world.rank < old:
        job.train(world.rank, range(3))
        own = {k: a.numpy() for k, a in job.optimizer.state_dict()[KEY].items() if k != "step"}
        assert len(own) == 9
    hvd.save_checkpoint(path, optimizer=job.optimizer)
    other = Job(hvd, algorithm=Feedback(), **after)
    hvd.load_checkpoint(path, optimizer=other.optimizer)
    everything = world.allgather(own)[:old]
    if world.rank < new:
        kept = other.optimizer.state_dict()[KEY]
        assert int(kept["step"]) == 3
        for i in range(3):
            stacks = {
                plane: np.stack([theirs[f"{plane}/{i}"] for theirs in everything])
                for plane in Feedback().keeps
            }
            fast, slow = kept[f"fast/{i}"].numpy(), kept[f"slow/{i}"].numpy()
            median = np.median(stacks["fast"].astype(np.float64), axis=0)
            np.testing.assert_array_equal(fast, median.astype(np.float32))
            np.testing.assert_allclose(slow, stacks["slow"].mean(axis=0), rtol=1e-5, atol=1e-7)
    residuals = [{k: a.numpy() for k, a in (other.optimizer.state_dict().get(KEY) or {}).items()}]
    now = [theirs[0] for theirs in world.allgather(residuals)][:new]
    for i in range(3):
        was = sum(theirs[f"residual/{i}"].astype(np.float64) for theirs in everything)
        total = sum(theirs[f"residual/{i}"].astype(np.float64) for theirs in now)
        np.testing.assert_allclose(total, was, rtol=2**-23, atol=1e-30)
        assert all(
            np.array_equal(theirs[f"residual/{i}"], now[0][f"residual/{i}"]) for theirs in now
        )
    world.Barrier()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("grows", [True, False])
def test_what_those_kept_who_tallied_goes_to_those_who_will(hvd, world, path, fewer, grows):
    """Steps go on as numpy's do, whose ranks' residuals are summed and split."""
    part, all_of_them = {"process_set": fewer}, {"process_set": hvd.global_process_set}
    before, after = (part, all_of_them) if grows else (all_of_them, part)
    old = world.size - 1 if grows else world.size
    new = world.size if grows else world.size - 1
    options = {"algorithm": OneBit(), "ties": "zero"}
    job, other = Job(hvd, **options, **before), Job(hvd, **options, **after)
    sides = [World(old, p.numel()) for p in job.params]
    if world.rank < old:
        job.train(world.rank, range(3))
    everyones = [[gradients(r, job.params, turn) for r in range(world.size)] for turn in range(4)]
    for turn in range(3):
        for i, side in enumerate(sides):
            side.step([everyones[turn][rank][i].numpy() for rank in range(old)])
    hvd.save_checkpoint(path, optimizer=job.optimizer)
    hvd.load_checkpoint(path, optimizer=other.optimizer)
    if world.rank < new:
        other.train(world.rank, range(3, 4))
        for i, (p, side) in enumerate(zip(other.params, sides, strict=True)):
            left = sum(rank.left.astype(np.float64) for rank in side.ranks) / new
            side.ranks = [Rank(p.numel(), "zero") for _ in range(new)]
            for rank in side.ranks:
                rank.left = left.astype(np.float32)
            wanted = side.step([everyones[3][rank][i].numpy() for rank in range(new)])
            np.testing.assert_array_equal(plain(p.grad).reshape(-1), wanted)
    world.Barrier()


@pytest.mark.ranks(3)
def test_a_rule_of_other_voters_begins_anew(hvd, world, shared, fewer):
    params = list(Model().parameters())
    sgd = torch.optim.SGD(params, 0.01)
    many = hvd.DistributedOptimizer(sgd, op=Esteem(7))
    backward(params, gradients(world.rank, params))
    many.step()
    assert many.state_dict()[KEY]["rule/judged"].sum() > 0
    hvd.save_checkpoint(shared, optimizer=many)
    sgd = torch.optim.SGD(params, 0.01)
    few = hvd.DistributedOptimizer(sgd, op=Esteem(7), process_set=fewer)
    hvd.load_checkpoint(shared, optimizer=few)
    if world.rank < world.size - 1:
        kept = few.state_dict()[KEY]
        assert kept["rule/judged"].tolist() == [0] * (world.size - 1)
        assert int(kept["step"]) == 1


def test_what_is_said_of_a_vote_is_compared(hvd, world, shared, caplog):
    job = Job(hvd, seed=3)
    hvd.save_checkpoint(shared, optimizer=job.optimizer)
    other = Job(hvd, seed=4)
    with caplog.at_level(logging.WARNING, "hvd_sign"):
        hvd.load_checkpoint(shared, optimizer=other.optimizer)
    wanted = "optimizer goes on otherwise than it would have: seed was 3 and is 4"
    assert (wanted in caplog.text) == (world.rank == 0)


def test_several_of_a_kind(hvd, world, shared):
    """A loop of a generator and a discriminator, say, and a plain value of the same name."""
    jobs = [Job(hvd, "Signum"), Job(hvd, "Lion")]
    for job in jobs:
        job.train(world.rank, range(2))
    named = {"a": jobs[0].optimizer, "b": jobs[1].optimizer, "c": jobs[1].model}
    hvd.save_checkpoint(shared, jobs[0].model, **named)
    others = [Job(hvd, "Signum"), Job(hvd, "Lion")]
    named = {"a": others[0].optimizer, "b": others[1].optimizer, "c": others[1].model}
    hvd.load_checkpoint(shared, others[0].model, **named)
    for job, other in zip(jobs, others, strict=True):
        for each in (job, other):
            each.train(world.rank, range(2, 4))
        assert same_everywhere(world, *other.params)
        for p, q in zip(job.params, other.params, strict=True):
            np.testing.assert_array_equal(plain(p), plain(q))


def test_plain_optimizers_and_wrapped_ones(hvd, world, shared):
    """What is the optimizer's own goes from one to the other; votes go on as they are."""
    job = Job(hvd, "SGD")
    job.train(world.rank, range(2))
    kept = job.optimizer.state_dict()[KEY]
    hvd.save_checkpoint(shared, optimizer=job.optimizer)
    params = list(Model().parameters())
    bare = torch.optim.SGD(params, 0.5, momentum=0.9)
    hvd.load_checkpoint(shared, optimizer=bare)
    assert bare.param_groups[0]["lr"] == 0.005  # the scheduler's, after two steps
    mine, theirs = job.optimizer.state_dict()["state"], bare.state_dict()["state"]
    assert equal(mine, theirs)
    assert len(mine) == 3
    bare.param_groups[0]["lr"] = 0.25
    hvd.save_checkpoint(shared, optimizer=bare)
    hvd.load_checkpoint(shared, optimizer=job.optimizer)
    assert job.optimizer.param_groups[0]["lr"] == 0.25
    assert equal(job.optimizer.state_dict()[KEY], kept)
