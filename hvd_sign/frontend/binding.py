"""How a binding begins: is its framework there, and which runtime serves it?

Asked before anything half-works. Framework and Horovod are only looked for by name.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

from hvd_sign.core.options import choose
from hvd_sign.frontend.backends import HOROVOD, MPI, Backend, HorovodBackend, StandaloneBackend
from hvd_sign.transports.communication import NamedCollectives

logger = logging.getLogger("hvd_sign")

HOROVOD_VERSION = "0.28.1"


class Binding:
    """A framework's side of hvd_sign.

    Args:
        name: under which users import it, such as ``"hvd_sign.torch"``.
        title: the framework's, for messages.
        module: the framework's, which is Horovod's name for it too.
        oldest: version of the framework that is served.
        build: what has Horovod built for the framework.
        limit: what else Horovod asks of the framework, for messages.
        own: the package with Horovod's names on our own MPI runtime.
    """

    def __init__(
        self,
        name: str,
        title: str,
        module: str,
        oldest: tuple[int, int],
        build: str,
        own: str,
        limit: str = "",
    ) -> None:
        self.name, self.title, self.module = name, title, module
        self._build, self._limit, self._own = build, limit, own
        self._require(oldest)

    def _require(self, oldest: tuple[int, int]) -> None:
        """Raises ImportError, with the remedy, unless the framework is there."""
        found = importlib.util.find_spec(self.module)
        # From the repository's root an absent framework may be found as a folder, without origin.
        if found is None or found.origin is None:
            raise ImportError(
                f"{self.name} needs {self.title}, which is not installed: pip install {self.module}"
            )
        if tuple(int(part) for part in self._version.split(".")[:2]) < oldest:
            raise ImportError(
                f"{self.name} needs {self.title} {'.'.join(map(str, oldest))} or newer, "
                f"found {self._version}"
            )

    @property
    def _version(self) -> str:
        return str(import_module(self.module).__version__)

    @cached_property
    def why_not_horovod(self) -> str | None:
        """Why Horovod does not serve the framework, as a sentence with the remedy; None: it can."""
        if os.environ.get("HVD_SIGN_RUNTIME") == MPI:
            return None
        build = f"{self._build} HOROVOD_WITH_MPI=1 pip install --no-build-isolation"
        horovod = f"horovod=={HOROVOD_VERSION}{self._limit}"
        if not horovod_installed():
            return f"Horovod is not installed: {build} {horovod}"
        try:
            module = import_module(f"horovod.{self.module}")
        except (ImportError, AttributeError, OSError) as error:
            return (
                f"Horovod built for {self.title} {self._version} cannot be imported ({error}): "
                f"{build} {horovod}"
            )
        if not hasattr(module, "allreduce"):
            return (
                f"horovod.{self.module} has no native library that loads with {self.title} "
                f"{self._version}; build Horovod again: {build} --no-cache-dir --force-reinstall "
                f"--no-deps {horovod}"
            )
        return None

    @cached_property
    def runtime(self) -> str:
        """``"horovod"`` or ``"mpi"``, as ``HVD_SIGN_RUNTIME`` says.

        Without it, or by ``auto``, Horovod's where it can be used.

        Raises:
            ImportError: Horovod is insisted on, and cannot be used.
            ValueError: the variable holds something else.
        """
        asked = os.environ.get("HVD_SIGN_RUNTIME", "auto")
        choose("HVD_SIGN_RUNTIME", asked, ("auto", HOROVOD, MPI))
        why = self.why_not_horovod
        if asked == HOROVOD and why is not None:
            raise ImportError(f"{self.name}: HVD_SIGN_RUNTIME=horovod, but {why}")
        return MPI if asked == MPI or why is not None else HOROVOD

    @cached_property
    def horovod_api(self) -> Any:
        """The operations without a vote: Horovod's module, or ours with the same names."""
        horovods = f"horovod.{self.module}"
        return import_module(horovods if self.runtime == HOROVOD else self._own)

    def submodule(self, name: str) -> ModuleType:
        """A submodule of Horovod's such as ``"mpi_ops"``, or the one that stands for it in ours."""
        return import_module(f"{self.horovod_api.__name__}.{name}")

    def make_backend(
        self,
        collectives: Callable[[], Callable[[Any], NamedCollectives]],
        gather: Callable[[int], list[int]],
    ) -> Backend:
        """The binding's ranks and votes.

        Args:
            collectives: finds what makes Horovod's operations on a process set.
            gather: every rank's number, by Horovod's allgather.
        """
        if self.runtime == MPI:
            return StandaloneBackend()
        return HorovodBackend(self.horovod_api, collectives(), gather)

    def announce(self, backend: Backend) -> None:
        """Tells, on rank 0, which runtime the ranks are on."""
        if backend.rank() != 0:
            return
        why = self.why_not_horovod
        # A Horovod that is there was meant to be used.
        level = logging.WARNING if why and horovod_installed() else logging.INFO
        because = f": {why}" if why else ""
        logger.log(level, "%s runs on the runtime %r%s", self.name, self.runtime, because)


def horovod_installed() -> bool:
    """Whether there is a Horovod, for whatever framework."""
    try:
        return importlib.util.find_spec("horovod") is not None
    except ImportError:
        return False
