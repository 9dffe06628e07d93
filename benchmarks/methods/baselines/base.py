"""A compressed allgather as a communication hook of DistributedDataParallel.

The model's buckets are compressed one by one, as backward fills them; every rank gets every rank's
message and combines them alone. The hook of each bucket returns at once, and the messages are
combined on a thread of torch.distributed's, so that backward goes on meanwhile.
"""

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch.futures import Future


class Baseline(ABC):
    """One way of compressing; a file of its own has `encode` and `add`.

    Messages have the same size on all ranks. What `encode` leaves out is added to the next step's
    gradient where `feeds_back` says so (error feedback: Seide et al. 2014).

    Args:
        seed: of what is random in it.
    """

    feeds_back = False

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._residuals: dict[int, tuple[list[int], torch.Tensor]] = {}

    @abstractmethod
    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        """Compresses float32[d] to a message, uint8[bytes]; leaves the signal as it is."""

    @abstractmethod
    def add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        """Adds what a message says to float32[d], in place."""

    def combine(self, total: torch.Tensor, workers: int) -> torch.Tensor:
        """Turns the sum of all messages, float32[d], into the result, in place: their mean."""
        return total.div_(workers)

    def message(self, bucket: dist.GradBucket) -> torch.Tensor:
        """This rank's message for a bucket; keeps the residual."""
        signal = bucket.buffer()
        if not self.feeds_back:
            return self.encode(signal)
        # DDP lays out its buckets anew after the first step: what that left out is dropped.
        layout = [id(parameter) for parameter in bucket.parameters()]
        before, residual = self._residuals.get(bucket.index(), ([], None))
        corrected = signal + residual if before == layout else signal
        message = self.encode(corrected)
        said = torch.zeros_like(signal)
        self.add(message, said)
        self._residuals[bucket.index()] = layout, torch.sub(corrected, said, out=said)
        return message


def exchange(baseline: Baseline, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """The communication hook: a future of the combined gradient, float32[d]."""
    workers, signal = dist.get_world_size(), bucket.buffer()
    message = baseline.message(bucket)
    every = message.new_empty(workers * len(message))
    work = dist.all_gather_into_tensor(every, message, async_op=True)

    def combined(gathered: Future) -> torch.Tensor:
        gathered.wait()
        total = torch.zeros_like(signal)
        for one in every.view(workers, -1):
            baseline.add(one, total)
        return baseline.combine(total, workers)

    return work.get_future().then(combined)
