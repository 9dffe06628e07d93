"""A rank's batches, for PyTorch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.data import TOKENS, Split
from benchmarks.ranks.program import Config

MASK = 0  # the byte in place of a hidden one: texts do not have it
MASKED_SHARE = 0.15  # of the tokens, as in BERT's training
IGNORED = -100  # the label of what is not asked for


class Samples:
    """A split on this rank, made into batches one by one.

    Pixels are shifted and scaled by the mean and the deviation of the training images, a channel
    each. Of tokens that a model shall find, a share is hidden, chosen by the batch's rows alone, so
    that all methods see the same.

    Args:
        split: the samples.
        config: of the benchmark.
        device: where batches go.
    """

    def __init__(self, split: Split, config: Config, device: torch.device) -> None:
        self._split, self._device = split, device
        self._tokens, self._masked = config["kind"] == TOKENS, config["masked"]
        self._seed = config["seed"]
        if not self._tokens:
            mean, deviation = torch.tensor(config["pixel_scale"])[..., None, None]
            self._mean, self._deviation = mean.to(device), deviation.to(device)

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs, float32 [B, C, H, W] or int64 [B, L], and labels, int64 [B] or [B, L]."""
        inputs, labels = self._split.inputs[rows], self._split.labels[rows].astype(np.int64)
        if not self._tokens:
            pixels = torch.from_numpy(inputs).to(self._device).float()
            pixels = pixels.sub_(self._mean).div_(self._deviation)
            return pixels, torch.from_numpy(labels).to(self._device)
        inputs = inputs.astype(np.int64)
        if self._masked:
            rng = np.random.default_rng([self._seed, *rows])
            hidden = rng.random(inputs.shape) < MASKED_SHARE
            labels = np.where(hidden, inputs, IGNORED)
            inputs[hidden] = MASK
        return torch.from_numpy(inputs).to(self._device), torch.from_numpy(labels).to(self._device)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy, in nats, of what is asked for."""
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED)


def right_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many answers are right, and how many were asked for: float64[2]."""
    asked = labels != IGNORED
    right = (logits.argmax(-1) == labels) & asked
    return torch.stack([right.sum(), asked.sum()]).double()
