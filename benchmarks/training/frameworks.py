"""The frameworks that networks are trained with, described without importing one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

from benchmarks.errors import BenchError
from benchmarks.training.tasks import TASKS, TORCHVISION

HOROVOD, MPI = "horovod", "mpi"  # what hvd.runtime() returns


@dataclass(frozen=True)
class Framework:
    """What can be trained with a framework, and by which methods.

    Attributes:
        name: as given to --framework.
        programs: the package of what its ranks run.
        text: as shown.
        models: as given to --model.
        groups: of methods that exchange its gradients in a training.
        amp: kinds of mixed precision.
    """

    name: str
    programs: str
    text: str
    models: tuple[str, ...]
    groups: tuple[str, ...]
    amp: tuple[str, ...]

    @property
    def program(self) -> str:
        """What each rank of a training runs."""
        return f"{self.programs}.train"

    def models_module(self) -> ModuleType:
        """Its models: `check_device(device)` and `check(name, shape, classes, options)`."""
        return importlib.import_module(f"{self.programs}.models")

    def runtime(self) -> str:
        """Whose ranks its binding uses here, HOROVOD or MPI. Raises BenchError if none can."""
        try:
            return str(importlib.import_module(f"hvd_sign.{self.name}").runtime())
        except (ImportError, ValueError) as error:
            raise BenchError(f"{self.text} cannot be used here: {error}") from error

    def check_model(self, model: str) -> None:
        """Raises BenchError if it has no such model."""
        if model in self.models or (TORCHVISION in self.models and model.startswith(TORCHVISION)):
            return
        known = [f"{name}NAME" if name == TORCHVISION else name for name in self.models]
        raise BenchError(
            f"--model: expected {' or '.join([', '.join(known[:-1]), known[-1]])} with "
            f"{self.text}, got {model!r}"
        )


FRAMEWORKS = {
    framework.name: framework
    for framework in (
        Framework(
            "torch",
            "benchmarks.ranks.pytorch",
            "PyTorch",
            (*TASKS, TORCHVISION),
            ("ours", "horovod", "ddp", "baselines", "alone"),
            ("bf16", "fp16"),
        ),
        Framework(
            "tensorflow",
            "benchmarks.ranks.tf",
            "TensorFlow",
            ("cnn", "resnet50"),
            ("ours", "horovod", "alone"),
            ("bf16",),
        ),
    )
}
DEFAULT = "torch"


def framework_of(name: str) -> Framework:
    """The framework of this name. Raises BenchError where it is not installed."""
    framework = FRAMEWORKS[name]
    if not installed(name):
        raise BenchError(
            f"this needs {framework.text}, which is not installed for {sys.executable}: install it "
            "there, or take another Python or --framework"
        )
    return framework


def installed(name: str) -> bool:
    """Whether a framework is here, and not just a folder of its name."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
