"""The training benchmark's models: each is built small, takes a step, and counts its weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.1")
pytest.importorskip("transformers")

from benchmarks.data import IMAGES, TOKENS, Split
from benchmarks.ranks.pytorch import models, samples
from benchmarks.ranks.pytorch.models import ModelError
from benchmarks.training import tasks

TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16]}
TINY = {
    "cnn": {"width": 16},
    "resnet18": TINY_RESNET,
    "resnet50": {**TINY_RESNET, "depths": [1, 1, 1, 1]},
    "bert-base": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 8,
    },
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "lstm": {"embedding": 8, "hidden": 16, "layers": 1},
}
PIXELS = {"pixel_scale": ([100.0] * 3, [50.0] * 3), "kind": IMAGES, "masked": False, "seed": 0}
BYTES = {"kind": TOKENS, "masked": False, "seed": 0}


def batch(kind: str, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    if kind == IMAGES:
        split = Split(rng.integers(0, 256, (4, 3, 32, 32), np.uint8), np.array([0, 1, 2, 3]))
        config = PIXELS
    else:
        split = Split(*rng.integers(1, 256, (2, 4, 8), np.uint8))
        config = {**BYTES, "masked": masked}
    drawn = samples.Samples(split, config, torch.device("cpu"))
    return drawn.batch(np.arange(4))


def test_every_task_has_a_model() -> None:
    assert tasks.TASKS.keys() == models.MODELS.keys() == TINY.keys()


@pytest.mark.parametrize("name", TINY)
def test_a_model_answers_and_learns(name: str) -> None:
    task = tasks.task_of(name)
    inputs, labels = batch(task.kind, task.masked)
    classes = 5 if task.kind == IMAGES else 256
    torch.manual_seed(0)
    model = models.build(name, tuple(inputs.shape[1:]), classes, TINY[name])
    assert models.check(name, tuple(inputs.shape[1:]), classes, TINY[name]) == sum(
        p.numel() for p in model.parameters()
    )
    assert model(inputs).shape == (*labels.shape, classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = samples.loss_of(model(inputs), labels)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "weights"),
    [
        # The figures that papers and libraries give: torchvision's ResNets for ImageNet, and
        # GPT-2's 124 million.
        ("resnet18", (3, 224, 224), 1000, {}, 11_689_512),
        ("resnet50", (3, 224, 224), 1000, {}, 25_557_032),
        ("gpt2", (1024,), 256, {"vocab_size": 50257}, 124_439_808),
        # 110 million with its pooler (768 x 769) and a vocabulary of 30522; here a head that shares
        # the embedding's weights.
        ("bert-base", (512,), 256, {"vocab_size": 30522}, 109_514_298),
        ("cnn", (1, 28, 28), 10, {}, 1_621_706),
        # 256 x 128; 4 x 512 x (128 + 512 + 2); 4 x 512 x (512 + 512 + 2); 513 x 256.
        ("lstm", (64,), 256, {}, 32_768 + 1_314_816 + 2_101_248 + 131_328),
    ],
)
def test_full_size_models_have_the_weights_that_they_should(
    name, shape, classes, options, weights
) -> None:
    assert models.check(name, shape, classes, options) == weights


@pytest.mark.parametrize(
    ("name", "shape", "options", "complaint"),
    [
        ("gpt2", (64,), {"n_layr": 3}, "--model-option n_layr: GPT2Config has no such option"),
        ("gpt2", (64,), {"n_head": 5}, "gpt2 cannot be built so"),
        ("gpt2", (1025,), {}, "--sequence 1025: expected 1024 tokens at most"),
        ("resnet18", (3, 32, 32), {"layer_type": "odd"}, "layer_type=odd"),
        ("resnet18", (3, 32, 32), {"num_labels": 3}, "resnet18: 3 answers for 10 classes"),
        ("cnn", (1, 28, 28), {"depth": 3}, "cnn cannot be built so"),
        ("cnn", (1, 3, 3), {}, "--model cnn does not take images of 1 x 3 x 3"),
        (
            "torchvision:no_such_net",
            (3, 32, 32),
            {},
            "--model torchvision:no_such_net: torchvision",
        ),
    ],
)
def test_what_cannot_be_built_is_one_sentence(name, shape, options, complaint) -> None:
    with pytest.raises(ModelError) as error:
        models.check(name, shape, 10, options)
    assert complaint in str(error.value)


def test_a_model_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    assert models.check("torchvision:resnet18", (3, 224, 224), 1000, {}) == 11_689_512
    assert tasks.task_of("torchvision:resnet18").kind == IMAGES


def test_pixels_are_shifted_and_scaled_channel_by_channel() -> None:
    images = np.array([[[[100]], [[50]]], [[[0]], [[255]]]], np.uint8)  # two, of two channels
    config = {**PIXELS, "pixel_scale": ([100.0, 50.0], [50.0, 205.0])}
    drawn = samples.Samples(Split(images, np.array([7, 3])), config, torch.device("cpu"))
    pixels, labels = drawn.batch(np.array([1, 0]))
    assert pixels.flatten().tolist() == [-2.0, 1.0, 0.0, 0.0]
    assert labels.tolist() == [3, 7]


def test_hidden_tokens_are_asked_for_and_no_others() -> None:
    tokens = np.full((50, 40), 65, np.uint8)
    config = {**BYTES, "masked": True}
    drawn = samples.Samples(Split(tokens, tokens), config, torch.device("cpu"))
    inputs, labels = drawn.batch(np.arange(50))
    hidden = inputs == 0
    assert 0.1 < hidden.double().mean() < 0.2  # 15 %, of 2000
    assert (labels[hidden] == 65).all()
    assert (labels[~hidden] == -100).all()
    assert (drawn.batch(np.arange(50))[0] == inputs).all()
    # Of what is asked for, half is right: what is not asked for counts on neither side.
    logits = torch.zeros(50, 40, 256)
    logits[:25, :, 65] = 1
    right, asked = samples.right_of(logits, labels).tolist()
    assert asked == int(hidden.sum())
    assert right == int(hidden[:25].sum())
