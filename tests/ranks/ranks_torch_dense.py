"""Optimizers that reduce gradients beside, or in the place of, ones that vote on them.

After a join nobody compares the ones that Horovod reduces by: this file comes before such tests.
"""

from __future__ import annotations

import pytest
import torch
from alike import refused_alike
from helpers import plain

from hvd_sign_torch.require import BINDING


def train(hvd, name: str, **arguments):
    """A step on gradients of 1; what they became."""
    parameter = torch.nn.Parameter(torch.zeros(70))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([parameter], lr=0.5), named_parameters=[(name, parameter)], **arguments
    )
    parameter.sum().backward()
    optimizer.step()
    return parameter.grad


@pytest.mark.ranks(2)
def test_one_rank_reduces_what_the_others_vote_on(hvd, world):
    reduces = world.rank == world.size - 1
    sign = {} if reduces else {"compression": hvd.Compression.sign}
    message = refused_alike(world, lambda: train(hvd, "apart", **sign))
    assert "exchange of gradients" in message
    assert "method differs between ranks: vote on rank" in message
    assert message.endswith(f"; allreduce on rank {world.size - 1}")
    if BINDING.runtime == "horovod" and not reduces:  # what Horovod still waits for
        hvd.allreduce(torch.zeros(70), name="apart", op=hvd.Average)
    assert (train(hvd, "together") == 1).all()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("wrong", [{"ties": "never"}, {"bucket_bytes": -1}, {"groups": "all"}])
def test_an_optimizer_that_one_rank_refuses_is_refused_on_all(hvd, world, wrong):
    arguments = wrong if world.rank == 1 else {}
    said = None
    try:
        train(hvd, "refused", op=hvd.MajorityVote, **arguments)
    except (TypeError, ValueError) as error:
        said = str(error)
    everyone = world.allgather(said)
    assert None not in everyone
    assert all("refused on rank 1: " in other for other in everyone[:1] + everyone[2:])
    assert (train(hvd, "served", op=hvd.MajorityVote) == 1).all()


@pytest.mark.runtime("horovod")
@pytest.mark.ranks(2)
def test_two_optimizers_that_ranks_build_in_different_orders(hvd, world):
    generator, critic = (torch.nn.Parameter(torch.zeros(70)) for _ in range(2))

    def voting():
        return hvd.DistributedOptimizer(
            torch.optim.SGD([generator], lr=0.5), [("g", generator)], op=hvd.MajorityVote
        )

    def reducing():
        return hvd.DistributedOptimizer(torch.optim.SGD([critic], lr=0.5), [("c", critic)])

    if world.rank == 0:
        votes, sums = voting(), reducing()
    else:
        sums, votes = reducing(), voting()
    for step in range(1, 3):
        (critic.sum() * 3).backward()
        sums.step()
        sums.zero_grad()
        (generator.sum() * 3).backward()
        votes.step()
        votes.zero_grad()
        assert plain(critic).tolist() == [-1.5 * step] * 70
        assert plain(generator).tolist() == [-0.5 * step] * 70


@pytest.mark.runtime("horovod")
@pytest.mark.ranks(2)
def test_first_steps_that_joined_ranks_do_not_take(hvd, world):
    """As in Horovod, they count as zeros; later they come back."""
    parameter = torch.nn.Parameter(torch.zeros(70))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([parameter], lr=0.5), named_parameters=[("joined", parameter)]
    )

    def step(mean):
        parameter.sum().backward()
        optimizer.step()
        torch.testing.assert_close(parameter.grad, torch.full((70,), mean))
        optimizer.zero_grad()

    for turn in range(world.size):
        if turn == world.rank:
            step(1 / world.size)
        hvd.join()
    step(1.0)
