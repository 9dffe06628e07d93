"""The networks that the training benchmark trains, for PyTorch: random weights, nothing downloaded.

Every one takes float32 images [B, C, H, W] or int64 tokens [B, L] and answers with logits, one for
each class: [B, classes], or [B, L, vocabulary]. ResNet (He et al. 2015, arXiv 1512.03385), BERT
(Devlin et al. 2018, arXiv 1810.04805) and GPT-2 (Radford et al. 2019) are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.errors import BenchError
from benchmarks.training.tasks import TORCHVISION

Options = Mapping[str, Any]
Input = tuple[int, ...]


class ModelError(BenchError):
    """A model that cannot be built, or does not take the data; the message is one sentence."""


class Logits(nn.Module):
    """A model of transformers as a function from inputs to logits.

    Args:
        model: its answer has `logits`.
        fixed: arguments that every call gives it.
    """

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs, **self.fixed).logits


def small_cnn(shape: Input, classes: int, width: int = 1024) -> nn.Module:
    """Two convolutions and two dense layers: 1,621,706 weights for images [N, 1, 28, 28].

    Three by three convolutions of 16 and 32 channels, each followed by ReLU and 2 x 2 max pooling,
    then dense layers: 1,568 -> `width` -> classes. Most weights are dense, so a step is cheap to
    compute and dear to communicate, as in much larger networks. There is no batch normalisation:
    running statistics are no parameters, would differ between workers, and would blur the
    comparison.
    """
    channels, height, across = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (across // 4), width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


class CharacterLSTM(nn.Module):
    """An LSTM language model: embedding, layers of LSTM (Hochreiter and Schmidhuber 1997), logits.

    Args:
        vocabulary: how many tokens there are.
        embedding: size of a token's vector.
        hidden: size of each layer.
        layers: how many.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.logits = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits(self.lstm(self.embedding(tokens))[0])


def lstm(
    shape: Input,
    classes: int,
    vocab_size: int | None = None,
    embedding: int = 128,
    hidden: int = 512,
    layers: int = 2,
) -> nn.Module:
    """A character model: 3,577,088 weights for bytes."""
    return CharacterLSTM(vocab_size or classes, embedding, hidden, layers)


def resnet(shape: Input, classes: int, **options: Any) -> nn.Module:
    """A ResNet, ResNet-50 unless told otherwise; any option of ResNetConfig."""
    from transformers import ResNetConfig, ResNetForImageClassification

    known = {"num_channels": shape[0], "num_labels": classes}
    return Logits(ResNetForImageClassification(_config(ResNetConfig, {**known, **options})))


def resnet18(shape: Input, classes: int, **options: Any) -> nn.Module:
    """ResNet-18: two basic blocks in each stage."""
    basic = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    return resnet(shape, classes, **{**basic, **options})


def bert(shape: Input, classes: int, **options: Any) -> nn.Module:
    """BERT-base with its head for masked tokens; any option of BertConfig."""
    from transformers import BertConfig, BertForMaskedLM

    return Logits(BertForMaskedLM(_language(BertConfig, shape, classes, options)))


def gpt2(shape: Input, classes: int, **options: Any) -> nn.Module:
    """GPT-2, small unless told otherwise; any option of GPT2Config."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = _language(GPT2Config, shape, classes, options)
    return Logits(GPT2LMHeadModel(config), use_cache=False)


def _language(kind: Any, shape: Input, classes: int, options: Options) -> Any:
    # The tokens that by default mark beginning and end are not in a vocabulary of bytes.
    markers = {"bos_token_id": None, "eos_token_id": None}
    config = _config(kind, {"vocab_size": classes, **markers, **options})
    if shape[0] > config.max_position_embeddings:
        raise ModelError(
            f"--sequence {shape[0]}: expected {config.max_position_embeddings} tokens at most"
        )
    return config


def _config(kind: Any, options: Options) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    names = kind().to_dict().keys() | {"num_labels"}
    for name in options:
        if name not in names:
            raise ModelError(
                f"--model-option {name}: {kind.__name__} has no such option; it has "
                f"{', '.join(sorted(n for n in names if not n.startswith('_')))}"
            )
    try:
        return kind(**options)
    except StrictDataclassError as error:
        raise ModelError(f"--model-option: {kind.__name__}: {error}") from error


def _torchvision(name: str) -> Callable[..., nn.Module]:
    try:
        from torchvision.models import get_model, list_models
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another PyTorch
        raise ModelError(f"--model {TORCHVISION}{name}: torchvision: {error}") from error
    if name not in list_models():
        raise ModelError(f"--model {TORCHVISION}{name}: torchvision has no model {name!r}")
    return lambda shape, classes, **options: get_model(
        name, weights=None, num_classes=classes, **options
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": small_cnn,
    "resnet18": resnet18,
    "resnet50": resnet,
    "bert-base": bert,
    "gpt2": gpt2,
    "lstm": lstm,
}


def build(name: str, shape: Input, classes: int, options: Options) -> nn.Module:
    """A model for inputs of a shape, with PyTorch's present random state.

    Args:
        name: as given to --model.
        shape: of one input, (C, H, W) or (L,).
        classes: of images, or tokens of the vocabulary.
        options: as given to --model-option.

    Raises:
        ModelError: there is no such model or option.
    """
    if name.startswith(TORCHVISION):
        make = _torchvision(name.removeprefix(TORCHVISION))
    else:
        make = MODELS[name]
    try:
        return make(shape, classes, **options)
    except (TypeError, ValueError) as error:
        raise ModelError(f"--model-option: {name} cannot be built so: {error}") from error


def check(name: str, shape: Input, classes: int, options: Options) -> int:
    """Builds a model without memory, shows it one image, and returns its number of weights.

    Raises ModelError, too where the model cannot take such an input.
    """
    with torch.device("meta"):
        model = build(name, shape, classes, options).eval()
        if len(shape) == 3:
            try:
                answers = model(torch.empty(1, *shape)).shape[-1]
            except (RuntimeError, ValueError) as error:
                size = " x ".join(map(str, shape))
                raise ModelError(
                    f"--model {name} does not take images of {size}: {error}"
                ) from error
            if answers < classes:
                raise ModelError(f"--model {name}: {answers} answers for {classes} classes")
    return parameter_count(model)


def parameter_count(model: nn.Module) -> int:
    """The number of trainable coordinates."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_device(device: str) -> None:
    """Raises ModelError where PyTorch cannot compute on a device: 'cpu' or 'cuda'."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: PyTorch finds no GPU here; expected cpu")
