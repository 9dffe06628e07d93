"""What every algorithm offers: the signal whose sign is voted on, and what is kept for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class Linear(NamedTuple):
    """Coefficients of an algorithm that the kernels compute in the same pass as they pack.

    With one plane m and the gradient g: signal = signal_state m + signal_gradient g, then
    m = next_state m + next_gradient g; each product and sum is rounded, in fp32 (fp64 for fp64),
    and both results are 0 where they are below the normal numbers.
    """

    signal_state: float
    signal_gradient: float
    next_state: float
    next_gradient: float


IDENTITY = Linear(0.0, 1.0, 0.0, 0.0)
"""The signal is the gradient."""

RESIDUAL = "residual"
"""The array that feedback keeps."""

VERDICT_RESIDUAL = "verdict_residual"
"""The array that those keep who tally for an algorithm that averages."""

RESERVED = frozenset({"step", "rule", RESIDUAL, VERDICT_RESIDUAL})
"""What else a checkpoint may have beside the arrays."""

RESIZED = ("median", "mean", "sum")
"""What becomes of ranks' arrays when their number changes, see ``hvd_sign.runtime.resizing``."""


class Algorithm(ABC):
    """Chooses the signal; to be derived from as a frozen dataclass of hyper-parameters.

    Ranks agree on its ``repr()``, in which its fields stand. It keeps nothing itself: what it needs
    from step to step are arrays that the session owns, one for each of ``planes`` and each tensor,
    zeros at first, on the tensor's own device. They are committed when the step counts, and stay as
    they were in each chunk of 4096 coordinates in which the gradient, the signal or what would be
    kept is not finite. A signal and what is kept are 0 where they are below the normal numbers, so
    that what no gradient feeds comes to rest.

    Attributes:
        name: in the registry.
        planes: names of the arrays.
        absent: what a tensor without a gradient does in a step: ``"abstain"``, its arrays staying
            as they are, or ``"zero"``: as if its gradient were zeros.
        feedback: what a ballot does not say of the signal is added to the next step's (error
            feedback, Karimireddy et al. 2019, arXiv 1901.09847): with the residual e, p = signal +
            e is voted on with the scale mean |p| of the tensor on this rank, and e becomes p -
            mean |p| sign(p). Needs ``scale="mean_abs"``, which is then the default.
        averages: the verdict is no majority: of what ballots say, each chunk of 4096 coordinates
            with its own scale, whoever tallies takes the mean, and says it with feedback too.
            Needs ``feedback``, whose scale is then the chunk's, over the coordinates of its blocks
            of 64 that are not all zero.
        resized: by plane, what becomes of the ranks' arrays when their number changes:
            ``"median"`` (for planes that are not named) or ``"mean"`` of them, which every rank
            gets; or ``"sum"``: their sum, in equal parts, as befits what is yet to be sent; so it
            is with a feedback's residual.
    """

    name: ClassVar[str]
    planes: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[str] = "abstain"
    feedback: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    resized: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The signal, and what is kept.

        A pure function of flat arrays of any one library, in fp32, or in fp64 for fp64: numpy's for
        all tensors in host memory, a device's library's for others, so that it is written in
        operators. It sees whole tensors or runs of whole chunks: nothing may depend on which.

        Args:
            gradient: unscaled.
            state: by the names of ``planes``; not to be changed.

        Returns:
            The signal, of the gradient's shape, and the new arrays by name.
        """

    def linear(self) -> Linear | None:
        """The coefficients, if that is all ``step()`` does; with at most one plane."""
        return None

    @property
    def keeps(self) -> tuple[str, ...]:
        """Names of all arrays that are kept: ``planes``, and the residual of a feedback."""
        return (*self.planes, RESIDUAL) if self.feedback else self.planes

    @property
    def is_gradient(self) -> bool:
        """Whether gradients are voted on as they are, and nothing is kept."""
        return self.linear() == IDENTITY and not self.feedback

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({given})"


def coefficient(algorithm: Algorithm, argument: str, value: object) -> None:
    """Raises ValueError unless a hyper-parameter is a number in [0, 1)."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(
            f"{algorithm.name}: {argument}: expected a number in [0, 1), got {value!r}"
        )


def checked(algorithm: Algorithm) -> Algorithm:
    """The algorithm.

    Raises:
        ValueError: what it says of itself cannot be.
    """
    who, planes = f"algorithm: {algorithm!r}", algorithm.planes
    if not isinstance(planes, tuple) or not all(map(_is_identifier, planes)):
        raise ValueError(f"{who}: planes: expected a tuple of identifiers, got {planes!r}")
    if RESERVED.intersection(planes):
        raise ValueError(f"{who}: planes: expected other names than {sorted(RESERVED)}")
    if algorithm.absent not in ("abstain", "zero"):
        raise ValueError(f"{who}: absent: expected 'abstain' or 'zero', got {algorithm.absent!r}")
    if not isinstance(algorithm.feedback, bool):
        raise ValueError(f"{who}: feedback: expected True or False, got {algorithm.feedback!r}")
    if algorithm.averages not in ((False, True) if algorithm.feedback else (False,)):
        raise ValueError(
            f"{who}: averages: expected True only beside feedback, got {algorithm.averages!r}"
        )
    if not set(algorithm.resized.values()) <= set(RESIZED):
        raise ValueError(f"{who}: resized: expected {RESIZED} by plane, got {algorithm.resized!r}")
    linear = algorithm.linear()
    if linear is not None:
        if not isinstance(linear, Linear) or not all(map(_is_finite, linear)):
            raise ValueError(
                f"{who}: linear(): expected a Linear of finite numbers, got {linear!r}"
            )
        if len(planes) > 1:
            raise ValueError(f"{who}: linear(): expected at most one plane, got {planes!r}")
    try:
        hash(algorithm)
    except TypeError as error:
        raise ValueError(f"{who}: expected hyper-parameters that can be hashed: {error}") from None
    return algorithm


def stepped(
    algorithm: Algorithm, gradient: Any, state: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What the algorithm's step makes of flat arrays, without subnormals.

    Raises:
        ValueError: it is not the signal and the new arrays, of the gradient's shape and type.
    """
    made = algorithm.step(gradient, state)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict):
        signal, new = made
        if new.keys() == set(algorithm.planes):
            arrays = [signal, *new.values()]
            wanted = gradient.shape, gradient.dtype
            if all((getattr(a, "shape", 0), getattr(a, "dtype", 0)) == wanted for a in arrays):
                return normal(signal), {name: normal(array) for name, array in new.items()}
    raise ValueError(
        f"algorithm: {algorithm!r}: step(): expected (signal, new arrays by the names of "
        f"{algorithm.planes}), all of shape {tuple(gradient.shape)} and type {gradient.dtype}, got "
        f"{_described(made)}"
    )


def normal(array: Any) -> Any:
    """The array, 0 where it is below the normal numbers of its type."""
    least = 2.0**-1022 if "64" in str(array.dtype) else 2.0**-126
    return array * (abs(array) >= least)


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _described(made: object) -> str:
    """What came, arrays by shape and type."""
    if isinstance(made, (tuple, list)):
        return f"({', '.join(map(_described, made))})"
    if isinstance(made, dict):
        return f"{{{', '.join(f'{key!r}: {_described(value)}' for key, value in made.items())}}}"
    if hasattr(made, "shape") and hasattr(made, "dtype"):
        return f"{made.dtype}{list(made.shape)}"
    return repr(made)
