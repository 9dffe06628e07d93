"""The learning rate over a training: it rises, then falls to zero, both linearly."""

from __future__ import annotations


def share_of_rate(done: int, steps: int, warmup: float) -> float:
    """Which share of the highest learning rate the next step takes, in (0, 1].

    Args:
        done: steps that have been taken, from 0 to `steps` - 1.
        steps: of the whole training.
        warmup: the share of them in which the rate rises, from 0 to below 1.
    """
    rising = warmup * steps
    if done < rising:
        return min(1.0, (done + 1) / rising)
    return (steps - done) / (steps - rising)


def text(warmup: float) -> str:
    """The schedule in words: a sentence."""
    if not warmup:
        return "Learning rates fall linearly to zero over the training."
    return (
        f"Learning rates rise linearly over the first {100 * warmup:.3g} % of the training, then "
        "fall linearly to zero."
    )
