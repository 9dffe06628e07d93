"""The ways of exchanging gradients that the benchmarks compare, described without a framework.

A method belongs to a group, and the group tells who does the work:

- `ours`: votes by hvd_sign;
- `horovod`: Horovod's allreduce;
- `distributed`: allreduce of torch.distributed, of one flat tensor; `ddp` is how it trains;
- `ddp`: PyTorch's DistributedDataParallel, with PyTorch's communication hooks;
- `baselines`: DistributedDataParallel, with small communication hooks of ours;
- `alone`: no exchange at all.

Where our own MPI runtime stands in for Horovod, its plain allreduce is what `fp32` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.methods import payloads
from benchmarks.methods.payloads import Payload
from benchmarks.training.frameworks import FRAMEWORKS, MPI, Framework, framework_of, installed

# The words of a command line for them; `ddp` is a method.
GROUPS = {
    **{group: group for group in ("ours", "horovod", "distributed", "baselines", "alone")},
    "ddp-hooks": "ddp",
}
ALL = "all"
COUNTED = "counted"


class MethodError(BenchError):
    """A method that is unknown, or that cannot run here; the message says what could."""


@dataclass(frozen=True)
class Method:
    """One row of the report.

    Attributes:
        name: as given to --methods.
        label: as shown.
        group: who does the work, one of those above.
        votes: whether the gradient becomes a verdict of -1, 0 or +1, times a scale or not.
        payload: (workers, shapes of the gradients) -> bytes sent per worker and exchange, where the
            library does not count them; None: hvd.vote_stats() counts them.
        tolerance: how far a coordinate may be from the exact mean of values near 1, by rounding;
            None: the method is exact (votes) or loses by design, and is not compared.
        options: of our votes, keywords of hvd.allreduce; of any vote, `ties`; of Horovod,
            `compression` (the name in hvd.Compression) and `op` (the name in hvd); of PowerSGD,
            `rank`.
        environment: variables that its ranks need from their start on.
        framework: of the tensors, where it is another one than that of the methods beside it.
    """

    name: str
    label: str
    group: str
    votes: bool
    payload: Payload | None = None
    tolerance: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    framework: str | None = None

    @property
    def compression(self) -> str:
        """The name in hvd.Compression, of methods that hvd.DistributedOptimizer serves."""
        return "sign" if self.group == "ours" else str(self.options.get("compression", "none"))

    @property
    def recipe(self) -> str:
        """What it is trained by, a key of benchmarks.training.tasks.Recipes."""
        return str(self.options.get("algorithm", "sign")) if self.votes else "mean"

    @property
    def scaled(self) -> bool:
        """Whether a verdict comes times the median of the workers' mean absolute signals."""
        return self.options.get("scale") == "mean_abs"

    @property
    def averages(self) -> bool:
        """Whether it tells a mean by signs and a scale a chunk, with error feedback."""
        return self.options.get("algorithm") == "onebit"

    @property
    def op(self) -> str:
        """The name in hvd of what hvd.allreduce shall do."""
        return "MajorityVote" if self.group == "ours" else str(self.options.get("op", "Average"))

    @property
    def needs_horovod(self) -> bool:
        """Whether it cannot be had where our MPI runtime, which sums in fp32, stands in for it."""
        by_horovod = self.group == "horovod" and self.name != BASELINE
        return by_horovod or "HVD_SIGN_TRANSPORT" in self.environment

    @property
    def payload_source(self) -> str:
        """Where the payload's figure comes from."""
        return COUNTED if self.payload is None else "formula"


def _vote(name: str, label: str, environment: Mapping[str, str], **options: Any) -> Method:
    return Method(name, label, "ours", True, options=options, environment=environment)


def _horovod(name: str, label: str, width: int, tolerance: float | None, **options: Any) -> Method:
    return Method(name, label, "horovod", False, payloads.ring(width), tolerance, options)


def _distributed(name: str, label: str) -> Method:
    return Method(name, label, "distributed", False, payloads.ring(4), 1e-5)


def _ddp(
    name: str, label: str, payload: Payload, tolerance: float | None, **options: Any
) -> Method:
    return Method(name, label, "ddp", False, payload, tolerance, options)


def _baseline(
    name: str, label: str, message: Callable[[int], int], votes: bool = False, **options: Any
) -> Method:
    return Method(name, label, "baselines", votes, payloads.allgather(message), options=options)


METHODS = {
    method.name: method
    for method in (
        _horovod("fp32", "Horovod fp32", 4, 1e-5),
        _horovod("fp16", "Horovod fp16", 2, 1e-2, compression="fp16"),
        _horovod("adasum", "Horovod Adasum", 4, None, op="Adasum"),
        _vote("vote", "majority vote", {}),
        _vote("signum", "Signum by vote", {}, algorithm="signum"),
        _vote("lion", "Lion by vote", {}, algorithm="lion"),
        _vote("ef_sign", "error feedback by vote", {}, algorithm="ef_sign", scale="mean_abs"),
        _vote("onebit", "scaled mean of signs", {}, algorithm="onebit", scale="mean_abs"),
        _vote("vote-allgather", "vote, allgather", {}, exchange="allgather"),
        _vote("vote-hierarchical", "vote, hierarchical", {}, exchange="hierarchical"),
        _vote("vote-zero", "vote, ties zero", {}, ties="zero"),
        _vote("vote-positive", "vote, ties positive", {}, ties="positive"),
        _vote("vote-horovod", "vote over Horovod", {"HVD_SIGN_TRANSPORT": "horovod"}),
        _vote("vote-mpi4py", "vote through mpi4py", {"HVD_SIGN_ENGINE": "python"}),
        replace(_vote("vote-tensorflow", "majority vote, TensorFlow", {}), framework="tensorflow"),
        _distributed("gloo", "Gloo fp32"),
        _distributed("nccl", "NCCL fp32"),
        _ddp("ddp", "DDP fp32", payloads.ring(4), 1e-5),
        _ddp("ddp-fp16", "DDP fp16", payloads.ring(2), 1e-2),
        _ddp("ddp-bf16", "DDP bf16", payloads.ring(2), 1e-1),
        *(
            _ddp(
                f"powersgd-{rank}",
                f"PowerSGD rank {rank}",
                payloads.powersgd(rank),
                None,
                rank=rank,
            )
            for rank in (1, 2, 4)
        ),
        _baseline("qsgd", "QSGD, 8 bits", payloads.qsgd_message),
        _baseline("topk", "top 1 %", payloads.top_message),
        _baseline(
            "sign-bytes", "signs as bytes", payloads.sign_bytes_message, votes=True, ties="zero"
        ),
        _baseline("onebit-average", "1-bit average", payloads.onebit_message),
        Method("local", "no exchange", "alone", False, lambda workers, shapes: 0.0),
    )
}
BASELINE = "fp32"
DEFAULT = ("fp32", "fp16", "vote", "signum")
# Which methods each benchmark can measure.
SERVED: Mapping[str, Callable[[Method], bool]] = {
    "allreduce": lambda method: method.group != "alone",
    "training": lambda method: method.group != "distributed" and method.framework is None,
    "overlap": lambda method: (
        method.framework is None and (method.group == "ours" or method.name in ("fp32", "fp16"))
    ),
}


@dataclass(frozen=True)
class Place:
    """Where methods are to be measured.

    Attributes:
        benchmark: a key of SERVED.
        workers: how many ranks.
        framework: of the tensors.
        runtime: whose ranks, by hvd.runtime().
    """

    benchmark: str
    workers: int
    framework: Framework
    runtime: str


def place(benchmark: str, workers: int, framework: str = "torch") -> Place:
    """The place that a command line names. Raises BenchError where its framework is not there."""
    found = framework_of(framework)
    return Place(benchmark, workers, found, found.runtime())


def chosen(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each once. Raises MethodError."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise MethodError(
            f"unknown method {', '.join(map(repr, unknown)) or repr('')}: expected a list of "
            f"{', '.join(METHODS)}, or of the groups {', '.join(GROUPS)}, {ALL}"
        )
    return [METHODS[name] for name in dict.fromkeys(names)]


def resolve(text: str | None, place: Place) -> list[Method]:
    """The methods that a command line asks for, each once, under their labels there.

    Args:
        text: names of methods and groups, with commas between; `all`: every group. Of a group come
            those methods that can run there, but for those of another framework, which would load
            it, and a second Horovod, beside all others. None: those of DEFAULT that can run there.
        place: where they are to be measured.

    Raises MethodError: unknown, named though it cannot run there, or nothing left.
    """
    if text is None:
        text = ",".join(name for name in DEFAULT if why_not(METHODS[name], place) is None)
    names: list[str] = []
    for word in text.split(","):
        if word == ALL or word in GROUPS:
            names += [
                method.name
                for method in METHODS.values()
                if word == ALL or method.group == GROUPS[word]
                if method.framework is None and why_not(method, place) is None
            ]
        else:
            names.append(word)
    found = chosen(names)
    for method in found:
        reason = why_not(method, place)
        if reason:
            raise MethodError(f"method {method.name!r} {reason}")
    if place.runtime != MPI:
        return found
    return [replace(method, label=method.label.replace("Horovod", "MPI")) for method in found]


def why_not(method: Method, place: Place) -> str | None:
    """Why a method cannot be measured, as the end of a sentence; None if it can."""
    served = SERVED[place.benchmark]
    if not served(method):
        known = [name for name, other in METHODS.items() if served(other)]
        return f"is not for this benchmark: expected a list of {', '.join(known)}"
    framework = place.framework
    if place.benchmark == "training" and method.group not in framework.groups:
        known = [
            name
            for name, other in METHODS.items()
            if served(other) and other.group in framework.groups
        ]
        return f"needs PyTorch: with {framework.text} expected a list of {', '.join(known)}"
    if place.runtime == MPI and method.needs_horovod:
        return (
            f"needs Horovod's library for {framework.text}: these ranks are of hvd_sign's own MPI "
            "runtime, for want of that library or because HVD_SIGN_RUNTIME says so"
        )
    if method.framework is not None and not installed(method.framework):
        return f"needs {FRAMEWORKS[method.framework].text}, which is not installed here"
    if method.name == "adasum" and place.workers & (place.workers - 1):
        return f"needs a power of two of workers, got {place.workers}"
    if method.name == "nccl" and not any(Path("/dev").glob("nvidia[0-9]*")):
        return "needs an NVIDIA GPU in each host; this one has none"
    return None


def by_environment(names: Sequence[str]) -> list[tuple[Mapping[str, str], list[str]]]:
    """Names of methods in the groups that can share ranks, with what those need to start."""
    found: list[tuple[Mapping[str, str], list[str]]] = []
    for method in chosen(names):
        for environment, members in found:
            if environment == method.environment:
                members.append(method.name)
                break
        else:
            found.append((method.environment, [method.name]))
    return found
