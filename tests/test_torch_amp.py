"""Mixed precision with loss scaling around the vote; one worker, so that no launcher is needed."""

import pytest

torch = pytest.importorskip("torch", minversion="2.3")
pytest.importorskip("horovod.torch")

import hvd_sign.torch as hvd


@pytest.fixture(autouse=True)
def initialized():
    hvd.init()


def setup(**options):
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=0.5),
        compression=hvd.Compression.sign,
        grad_scaler=scaler,
        **options,
    )
    return weight, scaler, optimizer


def step(weight, scaler, optimizer, coefficients):
    optimizer.zero_grad()
    scaler.scale((weight * torch.tensor(coefficients)).sum()).backward()
    optimizer.synchronize()
    carried = weight.grad.clone()
    scaler.unscale_(optimizer)
    verdict = weight.grad.clone()
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()
    return carried, verdict


def test_verdict_carries_the_scale_and_unscales_to_itself():
    weight, scaler, optimizer = setup()
    carried, verdict = step(weight, scaler, optimizer, [3.0, -0.25, 7.0])
    assert carried.tolist() == [1024.0, -1024.0, 1024.0]
    assert verdict.tolist() == [1.0, -1.0, 1.0]
    assert weight.tolist() == [0.5, -0.5, 1.5]


def test_mean_abs_is_that_of_the_unscaled_gradient():
    weight, scaler, optimizer = setup(scale="mean_abs")
    _, verdict = step(weight, scaler, optimizer, [3.0, -1.0, 5.0])
    assert verdict.tolist() == [3.0, -3.0, 3.0]


def test_overflow_is_shown_to_the_scaler_which_skips_and_lowers_its_scale():
    weight, scaler, optimizer = setup()
    before = weight.tolist()
    carried, _ = step(weight, scaler, optimizer, [float("inf"), 1.0, 1.0])
    assert torch.isinf(carried).all()
    assert weight.tolist() == before
    assert scaler.get_scale() == 512.0
    step(weight, scaler, optimizer, [1.0, 1.0, 1.0])
    assert weight.tolist() == [0.5, -1.5, 1.5]


def test_step_before_synchronize_is_refused():
    weight, scaler, optimizer = setup()
    scaler.scale(weight.sum()).backward()
    with pytest.raises(AssertionError, match=r"call optimizer.synchronize\(\) before"):
        optimizer.step()
    optimizer.synchronize()


def test_a_scaler_needs_skip():
    with pytest.raises(ValueError, match="nonfinite: a grad_scaler needs 'skip'"):
        setup(nonfinite="abstain")


def test_a_scaler_without_a_vote_is_refused():
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="grad_scaler: only a vote has such options"):
        hvd.DistributedOptimizer(
            torch.optim.SGD([weight], lr=0.5), grad_scaler=torch.amp.GradScaler("cpu")
        )
