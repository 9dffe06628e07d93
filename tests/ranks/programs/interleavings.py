"""Random votes, Horovod operations and steps from five threads at a time; arguments: seed, rounds.

All ranks draw the same program; each dawdles in its own way, and takes what may come in any order
in an order of its own. Every result is compared with what numpy makes of all ranks' inputs.
"""

import os
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from zlib import crc32

import horovod.torch as plain_hvd
import numpy as np
import torch

import hvd_sign.torch as hvd

SEED, ROUNDS = int(sys.argv[1]), int(sys.argv[2])
OVER_HOROVOD = os.environ.get("HVD_SIGN_TRANSPORT") == "horovod"

hvd.init(process_sets="dynamic")
rank, size = hvd.rank(), hvd.size()
odd = hvd.add_process_set(list(range(1, size, 2)))
torch.set_num_threads(1)
done: Counter[str] = Counter()
verdicts: dict[tuple[int, int], int] = {}


def given(key: list[int], of: int, length: int) -> np.ndarray:
    """What rank `of` brings to the operation `key`: small whole numbers, exact in every type."""
    return np.random.default_rng([SEED, *key, of]).integers(-3, 4, length)


def signs(rows: np.ndarray) -> np.ndarray:
    return np.sign(np.sign(rows).sum(0))


class Part:
    """What one thread does: `rounds` rounds, each begun and ended by the thread itself."""

    def __init__(self, number: int, rounds: int) -> None:
        self.number, self.rounds, self.count = number, rounds, 0
        self.shared = random.Random(100 * SEED + number)
        self.own = random.Random(f"{SEED} {number} {rank}")
        self.pending: list[tuple] = []

    def round(self, turn: int) -> None:
        raise NotImplementedError

    def run(self) -> None:
        try:
            for turn in range(self.rounds):
                self.round(turn)
            self.finish()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # ends the job, and so the ranks that wait for this one
        done[type(self).__name__] += self.count

    def dawdle(self) -> None:
        if self.own.random() < 0.05:
            time.sleep(self.own.choice([0.0005, 0.002, 0.01]))

    def draw(self, members: list[int]) -> tuple[torch.Tensor, np.ndarray]:
        """The next operation's tensor, and every member's."""
        self.count += 1
        key = [self.number, self.count]
        length = self.shared.randint(1, 300) if self.shared.random() < 0.97 else 9000
        dtype = self.shared.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
        rows = np.array([given(key, of, length) for of in members])
        return torch.from_numpy(given(key, rank, length)).to(dtype), rows

    def vote(self, name: str | None, process_set=hvd.global_process_set) -> Callable[[], None]:
        """Draws a vote, of one tensor or of several; what it returns begins it."""
        members = process_set.ranks if process_set is odd else list(range(size))
        options = {
            "op": hvd.MajorityVote,
            "name": name,
            "ties": self.shared.choice(["zero", "positive", "coin"]),
            "exchange": self.shared.choice(["sharded", "allgather"]),
            "seed": self.shared.randint(0, 3),
            "process_set": process_set,
        }
        grouped = self.shared.random() < 0.2
        drawn = [self.draw(members) for _ in range(self.shared.randint(1, 4) if grouped else 1)]
        in_place = self.shared.random() < 0.5
        tensors = [tensor for tensor, _ in drawn]
        kind = ("grouped_" if grouped else "") + "allreduce_async" + ("_" if in_place else "")
        # Now and then one rank makes a mistake, which is an error on all.
        mistaken = self.shared.choice(members) if self.shared.random() < 0.05 else None
        key = self.number, self.count

        def begin() -> None:
            if rank not in members:
                return
            if rank == mistaken:
                tensors[-1] = tensors[-1].long()
            try:
                handle = getattr(hvd, kind)(tensors if grouped else tensors[0], **options)
            except TypeError as error:
                assert rank == mistaken and "got int64" in str(error)  # noqa: PT017, PT018
            else:
                assert rank != mistaken
                self.pending.append(lambda: check(handle) if mistaken is None else fail(handle))

        def fail(handle) -> None:
            try:
                hvd.synchronize(handle)
            except ValueError as error:
                assert f"refused on rank {members.index(mistaken)}: " in str(error)  # noqa: PT017
            else:
                raise AssertionError("a vote without a voter")

        def check(handle) -> None:
            if self.own.random() < 0.3:
                while not hvd.poll(handle):
                    time.sleep(0.001)
            got = hvd.synchronize(handle)
            got = got if grouped else [got]
            verdicts[key] = crc32(b"".join(t.double().numpy().tobytes() for t in got))
            for verdict, (tensor, rows) in zip(got, drawn, strict=True):
                assert not in_place or verdict is tensor
                check_verdict(verdict.double().numpy(), rows, options["ties"])

        return begin

    def horovod(self, name: str | None, module) -> Callable[[], None]:
        """Draws an operation of Horovod's; what it returns begins it."""
        tensor, rows = self.draw(list(range(size)))
        tensor = tensor.float()
        kind = self.shared.choice(["sum", "gather", "broadcast", "group", "exchange"])
        tensors: list | torch.Tensor = tensor
        options: dict = {"name": name}
        if kind == "sum":
            call, want = module.allreduce_async, [rows.sum(0)]
            options["op"] = hvd.Sum
        elif kind == "gather":
            call, want = module.allgather_async, [rows.reshape(-1)]
        elif kind == "broadcast":
            options["root_rank"] = self.shared.randrange(size)
            call, want = module.broadcast_async, [rows[options["root_rank"]]]
        elif kind == "group":
            call, want = module.grouped_allreduce_async, [rows.sum(0), 2 * rows.sum(0)]
            tensors = [tensor, 2 * tensor]
            options["op"] = hvd.Sum
        else:
            call, want = module.alltoall_async, [rows.reshape(-1)]
            tensors = tensor.repeat(size)

        def begin() -> None:
            handle = call(tensors, **options)
            self.pending.append(lambda: check(handle))

        def check(handle) -> None:
            got = module.synchronize(handle)
            got = got if kind == "group" else [got[0] if kind == "exchange" else got]
            for tensor, values in zip(got, want, strict=True):
                np.testing.assert_allclose(tensor.numpy(), values, atol=1e-4)

        return begin

    def finish(self) -> None:
        """Waits for what is under way, in an order of this rank's own."""
        self.own.shuffle(self.pending)
        while self.pending:
            self.pending.pop()()
            self.dawdle()


def check_verdict(got: np.ndarray, rows: np.ndarray, ties: str) -> None:
    decided = signs(rows)
    if ties == "zero":
        np.testing.assert_array_equal(got, decided)
        return
    # Zeros are votes here, but where a rank has nothing else in a block of 64 coordinates.
    assert np.isin(got, [-1, 0, 1]).all()
    sure = (rows != 0).all(0)
    if ties == "positive":
        np.testing.assert_array_equal(got[sure], np.where(decided >= 0, 1, -1)[sure])
    else:
        sure &= decided != 0
        np.testing.assert_array_equal(got[sure], decided[sure])


class InOrder(Part):
    """Horovod operations and votes, with names and without, in the same order on all ranks."""

    def round(self, turn: int) -> None:
        for i in range(self.shared.randint(1, 12)):
            name = self.shared.choice([None, f"in order {turn} {i}"])
            if self.shared.random() < 0.4:
                self.vote(name)()
            else:
                # Plain Horovod cannot tell unnamed operations from votes that it carries itself.
                plain = self.shared.random() < 0.5 and not (OVER_HOROVOD and name is None)
                self.horovod(name, plain_hvd if plain else hvd)()
            self.dawdle()
        if self.shared.random() < 0.7:
            self.finish()


class AnyOrder(Part):
    """Named votes of all ranks and of some, in another order on each rank."""

    def round(self, turn: int) -> None:
        begin = [
            self.operation(f"any order {self.number} {i}")
            for i in range(self.shared.randint(1, 12))
        ]
        self.own.shuffle(begin)
        for operation in begin:
            operation()
            self.dawdle()
        self.finish()

    def operation(self, name: str) -> Callable[[], None]:
        return self.vote(name, odd if self.shared.random() < 0.3 else hvd.global_process_set)


class AnyOrderWithHorovod(AnyOrder):
    """Horovod's named operations too: nobody may have unnamed ones under way then."""

    def operation(self, name: str) -> Callable[[], None]:
        if self.shared.random() < 0.5:
            return super().operation(name)
        return self.horovod(name, self.shared.choice([hvd, plain_hvd]))


class Training(Part):
    """Steps of one of two networks; now and then a rank leaves a parameter out."""

    def __init__(self, number: int, rounds: int) -> None:
        super().__init__(number, rounds)
        self.weights = [np.zeros(n, np.float32) for n in (70, 1, 300, 129)]
        self.parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in self.weights]
        self.optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(self.parameters, lr=0.25),
            op=hvd.MajorityVote,
            ties="zero",
            bucket_bytes=500,
            exchange=self.shared.choice(["sharded", "allgather"]),
        )

    def round(self, turn: int) -> None:
        self.count += 1
        self.optimizer.zero_grad()
        terms = []
        for i, p in enumerate(self.parameters):
            rows = np.array([given([self.number, turn, i], of, p.numel()) for of in range(size)])
            rows *= np.random.default_rng([SEED, self.number, turn, i]).random((size, 1)) < 0.9
            self.weights[i] -= 0.25 * signs(rows).astype(np.float32)
            if rows[rank].any():
                terms.append((p * torch.from_numpy(rows[rank]).float()).sum())
        if terms:
            torch.stack(terms).sum().backward()
        self.dawdle()
        self.optimizer.step()
        for p, want in zip(self.parameters, self.weights, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), want)


trained = [Training(number, ROUNDS) for number in (10, 11)]
first = [InOrder(0, ROUNDS), AnyOrder(1, ROUNDS), AnyOrder(2, ROUNDS)]
second = [AnyOrderWithHorovod(number, ROUNDS // 3) for number in (3, 4, 5)]
training = [threading.Thread(target=part.run) for part in trained]
for thread in training:
    thread.start()
for stage in (first, second):
    threads = [threading.Thread(target=part.run) for part in stage]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hvd.allreduce(torch.ones(1), name="end of a stage")
for thread in training:
    thread.join()
# Where coins decide, they decide alike.
everywhere = hvd.allgather_object(verdicts, name="verdicts")
assert len(verdicts) > ROUNDS
for theirs in everywhere:
    assert all(theirs[key] == verdicts[key] for key in theirs.keys() & verdicts.keys())
print(f"\nrank {rank} done {sum(done.values())} operations {dict(done)}\n", end="", flush=True)
