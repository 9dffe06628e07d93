"""What each model is trained with unless the command line says otherwise, without any framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.data import IMAGES, TOKENS

TORCHVISION = "torchvision:"  # before the name of one of its models


@dataclass(frozen=True)
class Rates:
    """Learning rates, which fall linearly to zero over the training.

    Attributes:
        mean: for methods whose gradient is (about) the mean of the workers'.
        vote: for methods whose gradient is a verdict of -1, 0 and +1.
    """

    mean: float
    vote: float


@dataclass(frozen=True)
class Task:
    """What a model takes and how it is trained.

    Attributes:
        kind: of data, IMAGES or TOKENS.
        text: the model in words.
        rates: learning rates by data set; '' for those that are not named.
        optimizer: of mean gradients, 'sgd' (with momentum) or 'adam'; verdicts take SGD always.
        masked: whether it is asked for hidden tokens, not for the next ones.
        batch: samples a worker and step; `batches` by data set.
        epochs: by data set likewise.
        sequence: tokens of a sample.
        test_limit: at most so many samples are tested; None: all.
    """

    kind: str
    text: str
    rates: Mapping[str, Rates]
    optimizer: str = "sgd"
    masked: bool = False
    batch: int = 16
    batches: Mapping[str, int] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    sequence: int = 64
    test_limit: int | None = None

    def rate(self, data: str, votes: bool) -> float:
        """The learning rate on a data set, of verdicts or of mean gradients."""
        rates = self.rates.get(data, self.rates[""])
        return rates.vote if votes else rates.mean


@dataclass(frozen=True)
class Optimizer:
    """What a method's gradients are given to.

    Attributes:
        kind: 'sgd' or 'adam', with PyTorch's defaults for what is not said here.
        learning_rate: at the beginning.
        momentum: of SGD.
        votes: whether it steps on verdicts.
    """

    kind: str
    learning_rate: float
    momentum: float
    votes: bool

    def __str__(self) -> str:
        signal = "the verdict" if self.votes else "the mean gradient"
        rate = f"learning rate {self.learning_rate:g}"
        if self.kind == "adam":
            return f"Adam on {signal}, {rate}"
        return f"SGD on {signal}, {rate}, momentum {self.momentum:g}"


MOMENTUM = 0.9
EPOCHS = {"fashion-mnist": 4, "digits": 20, "folder": 4, "text": 4, "synthetic": 1}
# Found by a short search, accuracy on samples held out of the training set.
# CNN. Fashion-MNIST, 4 epochs. SGD, momentum 0.9: 0.02 89.2 %, 0.05 90.4, 0.1 90.9, 0.2 90.0. Vote,
# momentum 0.9: 5e-5 88.3, 1e-4 89.1, 2e-4 88.5, 5e-4 82.4; without: 2e-4 85.9, 5e-4 88.5,
# 1e-3 89.0, 2e-3 87.2. Digits, 20 epochs, momentum 0.9. SGD: 0.005 88.5, 0.01 92.0, 0.02 93.0,
# 0.05 95.0, 0.1 diverges. Vote: 5e-5 91.0, 1e-4 91.5, 2e-4 90.5.
CNN_RATES = {"": Rates(0.05, 1e-4), "fashion-mnist": Rates(0.1, 1e-4), "digits": Rates(0.05, 1e-4)}
# ResNet-18, 80 steps of 4 x 16 CIFAR-10 images, momentum 0.9. SGD: 0.005 34.5 %, 0.01 35.3,
# 0.02 32.5, 0.05 32.0, 0.1 19.0. Vote: 1e-4 37.8, 3e-4 41.0, 1e-3 34.5.
RESNET_RATES = {"": Rates(0.01, 3e-4)}
# LSTM, 150 steps of 4 x 8 sequences of 32 bytes of English plays, momentum 0.9. SGD: 0.3 27.0 %,
# 1 35.3, 2 38.1 (1 is taken: at 2 the loss of the first twenty steps grows), 4 17.3;
# Adam: 1e-3 26.6, 2e-3 32.0, 3e-3 34.6, 5e-3 26.8. Vote: 3e-4 36.8, 1e-3 42.5, 3e-3 43.0 with a
# higher loss.
LSTM_RATES = {"": Rates(1, 1e-3)}
# A GPT-2 of 2 layers and width 256, 250 steps of 4 x 4 sequences of 64 bytes of the same. Adam:
# 3e-4 27.5 %, 1e-3 25.5; SGD, momentum 0.9: 0.1 15.2. Vote: 3e-5 27.1, 1e-4 28.4. Smaller and
# larger models of the kind, and BERT, were not searched for.
TRANSFORMER_RATES = {"": Rates(3e-4, 1e-4)}
TASKS = {
    "cnn": Task(IMAGES, "a convolutional network", CNN_RATES, batches={"digits": 16}, batch=64),
    "resnet18": Task(IMAGES, "ResNet-18", RESNET_RATES),
    "resnet50": Task(IMAGES, "ResNet-50", RESNET_RATES),
    "bert-base": Task(
        TOKENS, "BERT-base", TRANSFORMER_RATES, "adam", masked=True, batch=8, test_limit=500
    ),
    "gpt2": Task(TOKENS, "GPT-2", TRANSFORMER_RATES, "adam", batch=4, test_limit=500),
    "lstm": Task(TOKENS, "an LSTM", LSTM_RATES, batch=8, sequence=32, test_limit=1000),
}


def task_of(model: str) -> Task:
    """The task of a model, one of torchvision's too."""
    if model.startswith(TORCHVISION):
        return Task(IMAGES, f"torchvision's {model.removeprefix(TORCHVISION)}", RESNET_RATES)
    return TASKS[model]
