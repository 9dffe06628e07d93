"""What training loops do with PyTorch, with optimizers that vote.

What momentum and votes have to be is told by numpy from each rank's own gradients, which autograd
computes once more; or by a plain run of the same, bit for bit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import backward, expected, gradients, named, parameters, plain, same_everywhere, values
from reference import verdict
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import COEFFICIENTS, LR, Momenta, batch, check, loss_of, make_model, wrap


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_micro_batches(hvd, world, kind):
    """As DDP's no_sync(): one vote on the sum of three backward passes."""
    model = make_model()
    params = list(model.parameters())
    optimizer = wrap(hvd, kind, model, backward_passes_per_step=3)
    momenta = Momenta(world, kind, params)
    for turn in range(2):
        optimizer.zero_grad()
        sums = [torch.zeros_like(p) for p in params]
        for part in range(3):
            x = batch(world.rank, 3 * turn + part)
            for total, g in zip(sums, torch.autograd.grad(loss_of(model, x), params), strict=True):
                total += g
            loss_of(model, x).backward()
        optimizer.step()
        check(params, momenta.verdicts(sums))
    assert same_everywhere(world, *params)


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_bf16_autocast(hvd, world, kind):
    model = make_model()
    params = list(model.parameters())
    optimizer = wrap(hvd, kind, model)
    momenta = Momenta(world, kind, params)

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model, x)

    for turn in range(3):
        optimizer.zero_grad()
        x = batch(world.rank, turn)
        given = torch.autograd.grad(loss(x), params)
        loss(x).backward()
        optimizer.step()
        check(params, momenta.verdicts(list(given)))
    assert all(p.dtype == torch.float32 for p in params)
    assert same_everywhere(world, *params)


@pytest.mark.parametrize("how", ["optimizer", "compression"])
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_a_grad_scaler(hvd, world, kind, how):
    """The scale doubles and halves meanwhile; what overflows on one rank is skipped on all."""
    model = make_model()
    params = list(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    if how == "optimizer":
        optimizer = wrap(hvd, kind, model, grad_scaler=scaler)
    else:
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(params, lr=LR),
            model.named_parameters(),
            compression=getattr(hvd.Compression, kind.lower())(),
            ties="zero",
            grad_scaler=scaler,
        )
    momenta = Momenta(world, kind, params)
    scales = []
    for turn in range(6):
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        before = [plain(p) for p in params]
        x = batch(world.rank, turn)
        given = torch.autograd.grad(loss_of(model, x), params)
        overflows = turn == 3 and world.rank == 0
        scaler.scale(loss_of(model, x) * (float("inf") if overflows else 1)).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if turn != 3:
            check(params, momenta.verdicts(list(given)))
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        moved = any((plain(p) != old).any() for p, old in zip(params, before, strict=True))
        assert moved == (turn != 3)
    assert scales == [256, 256, 512, 512, 256, 256]
    assert same_everywhere(world, *params)


def run(hvd, world, model: nn.Module, forward, steps: int = 3) -> list[np.ndarray]:
    """Parameters after some steps of a vote."""
    optimizer = wrap(hvd, "Signum", model)
    for turn in range(steps):
        optimizer.zero_grad()
        loss_of(forward, batch(world.rank, turn)).backward()
        optimizer.step()
    assert same_everywhere(world, *model.parameters())
    return [plain(p) for p in model.parameters()]


def test_compiled_models(hvd, world):
    """By AOTAutograd, whose backward is one graph, and bit for bit what the plain model does."""
    plain_model, model = make_model(), make_model()
    wanted = run(hvd, world, plain_model, plain_model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for p, want in zip(run(hvd, world, model, compiled), wanted, strict=True):
        np.testing.assert_array_equal(p, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(hvd, world, reentrant):
    plain_model, model = make_model(), make_model()
    wanted = run(hvd, world, plain_model, plain_model)

    def forward(x: torch.Tensor) -> torch.Tensor:
        first = model[:2](x)
        return model[4](checkpoint(model[2:4], first, use_reentrant=reentrant))

    for p, want in zip(run(hvd, world, model, forward), wanted, strict=True):
        np.testing.assert_array_equal(p, want)


def test_zeroed_gradients(hvd, world):
    """set_to_none=False: bit for bit as without, and a parameter that is unused has zeros."""
    wanted = run(hvd, world, (other := make_model()), other)
    model = make_model()
    unused = nn.Parameter(torch.ones(70))
    optimizer = hvd.Signum([*model.parameters(), unused], lr=LR, ties="zero")
    optimizer = hvd.DistributedOptimizer(optimizer)
    unused.grad = torch.zeros(70)
    for turn in range(3):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, batch(world.rank, turn)).backward()
        optimizer.step()
        assert all(p.grad is not None for p in (*model.parameters(), unused))
    for p, want in zip(model.parameters(), wanted, strict=True):
        np.testing.assert_array_equal(plain(p), want)
    np.testing.assert_array_equal(plain(unused), 1)


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_sparse_embeddings(hvd, world, kind):
    """Rows that were used go on by their momentum; those that nobody used stay."""
    torch.manual_seed(0)
    table = nn.Embedding(20, 64, sparse=True)
    optimizer = getattr(hvd, kind)(table.parameters(), lr=LR, ties="zero")
    optimizer = hvd.DistributedOptimizer(optimizer, sparse_as_dense=True)
    momenta = Momenta(world, kind, [table.weight])
    before = plain(table.weight)
    for turn in range(3):
        rows = torch.tensor([world.rank + turn, 7])
        optimizer.zero_grad()
        (table(rows) * values(10 * turn + world.rank, 2, 64)).sum().backward()
        given = table.weight.grad.to_dense().clone()
        optimizer.step()
        assert table.weight.grad.is_sparse
        check([table.weight], momenta.verdicts([given]))
    used = sorted({7, *(rank + turn for rank in range(world.size) for turn in range(3))})
    moved = (plain(table.weight) != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == used


def test_model_parallel_process_sets(hvd, world):
    """Even ranks hold one half of a model, odd ones the other; each votes among its own."""
    members = [list(range(half, world.size, 2)) for half in range(min(2, world.size))]
    sets = [hvd.add_process_set(ranks) for ranks in members] if world.size > 1 else []
    half = world.rank % 2
    mine = members[half]
    params = parameters((64, 10), (33,)) if half == 0 else parameters((500,), (7,), (3, 3))
    optimizer = hvd.Signum(params, lr=LR, ties="zero")
    options = {"process_set": sets[half]} if sets else {}
    optimizer = hvd.DistributedOptimizer(optimizer, named(params), min_size=8, **options)
    kept = [[np.zeros(p.shape, np.float32) for p in params] for _ in mine]
    for turn in range(3 + half):
        optimizer.zero_grad()
        given = [gradients(rank, params, turn) for rank in mine]
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        for i, p in enumerate(params):
            if p.numel() < 8:
                mean = np.mean([plain(theirs[i]) for theirs in given], axis=0)
                np.testing.assert_allclose(plain(p.grad), mean, rtol=1e-5)
                continue
            for arrays, theirs in zip(kept, given, strict=True):
                arrays[i] = np.float32(0.9) * arrays[i] + np.float32(1 - 0.9) * theirs[i].numpy()
            verdict([arrays[i] for arrays in kept], "zero").check(plain(p.grad))
    halves = world.allgather((half, [plain(p).tobytes() for p in params]))
    assert all(found == theirs for h, found in halves for g, theirs in halves if h == g)
    for one in sets:
        hvd.remove_process_set(one)
    for made in sets:
        hvd.remove_process_set(made)


def test_a_gan(hvd, world):
    """Two optimizers take turns; the critic is frozen while the generator learns through it."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(8, 64), nn.Linear(64, 1)
    made, judged = list(generator.parameters()), list(critic.parameters())
    of_generator = hvd.DistributedOptimizer(
        hvd.Signum(made, lr=LR, ties="zero"), generator.named_parameters()
    )
    of_critic = hvd.DistributedOptimizer(
        torch.optim.Adam(judged, lr=LR), critic.named_parameters(), op=hvd.MajorityVote, ties="zero"
    )
    momenta = Momenta(world, "Signum", made)
    for turn in range(3):
        noise, real = values(world.rank + 50 * turn, 5, 8), values(world.rank + 70 * turn, 5, 64)

        def critics_loss(noise=noise, real=real) -> torch.Tensor:
            return (critic(generator(noise).detach()) - critic(real)).mean()

        def generators_loss(noise=noise) -> torch.Tensor:
            return -critic(generator(noise)).tanh().mean()

        of_critic.zero_grad()
        given = torch.autograd.grad(critics_loss(), judged)
        critics_loss().backward()
        of_critic.step()
        for p, g in zip(judged, given, strict=True):
            expected(world, g, "zero").check(plain(p.grad))
        critic.requires_grad_(False)
        of_generator.zero_grad()
        given = torch.autograd.grad(generators_loss(), made)
        generators_loss().backward()
        of_generator.step()
        check(made, momenta.verdicts(list(given)))
        critic.requires_grad_(True)
    assert same_everywhere(world, *made, *judged)


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_uneven_data(hvd, world, kind):
    """Rank r has r + 2 batches; who has joined abstains, and its momentum stays as it was."""
    model = make_model()
    params = list(model.parameters())
    optimizer = wrap(hvd, kind, model)
    momenta = Momenta(world, kind, params)
    for turn in range(world.rank + 2):
        optimizer.zero_grad()
        everyones = {
            rank: [
                plain(g).astype(np.float32)
                for g in torch.autograd.grad(loss_of(model, batch(rank, turn)), params)
            ]
            for rank in range(world.size)
            if turn < rank + 2
        }
        loss_of(model, batch(world.rank, turn)).backward()
        optimizer.step()
        check(params, momenta.verdicts_of(everyones))
    hvd.broadcast_parameters(model.state_dict(), root_rank=hvd.join())
    momenta.kept = world.allgather(momenta.kept[world.rank])
    optimizer.zero_grad()
    x = batch(world.rank, 99)
    given = torch.autograd.grad(loss_of(model, x), params)
    loss_of(model, x).backward()
    optimizer.step()
    check(params, momenta.verdicts(list(given)))
    assert same_everywhere(world, *params)
