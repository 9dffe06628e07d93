"""The steps of the set-up, in order, each skipped while what it was made from is unchanged."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from scripts.setup_env import cuda, horovod, machine
from scripts.setup_env import mpi as mpis
from scripts.setup_env.compiled import Compiled
from scripts.setup_env.errors import SetupError
from scripts.setup_env.kinds import COMMON_PINS, KINDS, TORCH, Kind, constraints
from scripts.setup_env.mpi import Mpi
from scripts.setup_env.progress import Progress, clock
from scripts.setup_env.state import State, digest, lock

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hvd_sign"
SCRIPTS = Path(__file__).parent
MPI4PY_FROM_SOURCE = ("--no-binary=mpi4py", "--force-reinstall", "--no-cache-dir", "mpi4py")
VERSIONS = (
    "import importlib.metadata as m, sys, torch\n"
    "print(m.version('torch'), torch.version.cuda or '', sep='\\n')\n"
    "print(sys.argv[1] and m.version(sys.argv[1]))"
)


class Setup:
    """One run of the set-up.

    Args:
        kind: which environment.
        torch: what pip is to install as PyTorch; ``"torch"``: the pinned one.
        mpi: ``"auto"`` or ``"wheel"``.
        data: whether the benchmarks' data set is wanted, where root can install it.

    Raises:
        SetupError: there is no compiler, or the environment is not ours.
    """

    def __init__(self, kind: Kind, torch: str, mpi: str, data: bool) -> None:
        self.kind = kind
        self.torch = torch
        self.wish = mpi
        self.venv = ROOT / kind.folder
        self.python = str(self.venv / "bin" / "python")
        self.env = environment(os.environ, self.venv)
        self.state = State(self.venv)
        self.compiled = Compiled(PACKAGE, ROOT / "build")
        self.compiler = machine.compiler(os.environ)
        self.tensorflow = kind.tensorflow(sys.version_info[:2], platform.machine())
        self.packages = wanted_packages(data) if machine.root_installs() else ()
        self.mpi = self._chosen_mpi()

    def _chosen_mpi(self) -> Mpi:
        found = mpis.on_path(os.environ, self.venv)
        used = self.state.notes.get("mpi")
        return mpis.choose(self.wish, found, used, machine.root_installs(), self.venv)

    def keys(self) -> dict[str, str]:
        """Returns what each step depends on, as short keys; a step depends on those before."""
        venv = digest("venv", sys.version, sys.base_prefix, self.mpi.identity)
        scripts = [path for path in sorted(SCRIPTS.rglob("*.*")) if "__pycache__" not in path.parts]
        mpi = digest(venv, self.compiler, *self.kind.pin_files(ROOT), *scripts)
        frameworks = digest(mpi, self.torch, self.tensorflow)
        choices = sorted(pair for pair in self.env.items() if horovod.CHOICES.match(pair[0]))
        built = digest(frameworks, choices, cuda.toolkits(self.env))
        bindings = [path.parent.name for path in sorted(ROOT.glob("*/hvd_sign_*/__init__.py"))]
        recipe = [ROOT / "setup.py", PACKAGE / "_version.py"]
        before = built if self.kind.horovod else frameworks
        tools = digest(before, bindings, *recipe, ROOT / "pyproject.toml")
        packages = digest("packages", self.packages)
        keys = {"venv": venv, "mpi": mpi, "frameworks": frameworks}
        if self.kind.horovod:
            keys["horovod"] = built
        return keys | {"tools": tools, "kernels": self._kernels_key(recipe), "packages": packages}

    def _kernels_key(self, recipe: Sequence[Path]) -> str:
        """Returns what the compiled modules depend on, in whichever environment.

        With the MPI of the wheel they run on the one that mpi4py has loaded, which is the wheel in
        their own environment.
        """
        native = sorted((PACKAGE / "native").rglob("*"))
        machines = (sys.version, self.mpi.identity, self.compiler)
        return digest(*machines, ROOT / COMMON_PINS, *recipe, *native)

    def stale(self) -> dict[str, str]:
        """Returns the steps to be done, in order, with their keys."""
        keys = self.keys()
        due = {name: key for name, key in keys.items() if not self.state.fresh(name, key)}
        due.pop("kernels", None)
        if "tools" not in due and not self.compiled.fresh(keys["kernels"]):
            due["kernels"] = keys["kernels"]
        if not self.packages:
            due.pop("packages", None)
        return due

    def run(self) -> None:
        """Does what is to be done.

        Raises:
            SetupError: a step cannot be done; says why, and the remedy.
        """
        due = self.stale()
        if not due:
            return
        absent = self.mpi.kind == "debian"
        progress = Progress(len(due) + absent, ROOT / "build" / "setup.log")
        if absent:
            with progress.step("Debian's Open MPI"):
                self.mpi = mpis.install_debians(progress, os.environ, self.venv)
            due = self.stale()
        for name, key in due.items():
            getattr(self, f"_{name}")(progress)
            self.state.finish(name, key)
        progress.say(f"set-up done in {clock(progress.elapsed())}: {self.venv}")

    def _packages(self, progress: Progress) -> None:
        with progress.step("Packages that the benchmarks use"):
            try:
                machine.apt_install(progress, self.packages)
            except SetupError as error:
                progress.note(f"{error}; going on without")

    def _venv(self, progress: Progress) -> None:
        with progress.step(f"Environment for Python {platform.python_version()} in {self.venv}"):
            machine.require_cpp17(self.compiler)
            machine.complete_python(progress)
            self.state.empty()
            with self.state.changing("venv"):
                make = [sys.executable, "-m", "venv", str(self.venv)]
                progress.run("making the environment", make)

    def _mpi(self, progress: Progress) -> None:
        with progress.step("MPI and mpi4py"):
            if self.mpi.kind == "wheel":
                self._pip(progress, "installing the MPI wheel", mpis.WHEEL)
            library = mpis.library_name(self.mpi, progress, self.venv)
            mpis.require_same_launcher(self.mpi, library)
            self._pip(progress, "installing mpi4py", "mpi4py")
            if mpis.name_by_mpi4py(self.python) != library:
                progress.note(
                    "mpi4py's own choice is another MPI: building it for this one (minutes)"
                )
                mpicc = str(Path(self.mpi.mpicxx).with_name("mpicc"))
                self._pip(
                    progress,
                    "building mpi4py",
                    "--no-deps",
                    *MPI4PY_FROM_SOURCE,
                    env={"MPICC": mpicc},
                )
            bound = mpis.name_by_mpi4py(self.python)
            if bound != library:
                raise SetupError(
                    f"mpi4py uses {bound!r} and {self.mpi.mpirun} belongs to {library!r}: put one "
                    "MPI first on PATH and in LD_LIBRARY_PATH"
                )
            mpis.require_two_ranks(self.mpi, self.python, self.env)
            self.state.note("mpi", self.mpi.kind)
            self.state.note("library", library)
            progress.note(f"{library.partition(',')[0]} ({self.mpi.mpirun})")

    def _frameworks(self, progress: Progress) -> None:
        other = "and TensorFlow" if self.tensorflow else "(TensorFlow 2.15 needs Python <= 3.11)"
        with progress.step(f"PyTorch {other}"):
            tensorflow = [self.tensorflow] if self.tensorflow else []
            needs = [*self.kind.needs, *shlex.split(self.torch), *tensorflow]
            self._pip(progress, "installing the frameworks", *needs)

    def _horovod(self, progress: Progress) -> None:
        torch, torch_cuda, tensorflow = self._versions()
        library = self.state.notes["library"]
        made_from = horovod.inputs(
            torch, torch_cuda, tensorflow, library, self.mpi, self.compiler.version, self.env
        )
        keep = horovod.cache_folder(os.environ) / made_from.key()
        wheel = horovod.kept(keep)
        how = "built earlier" if wheel else "to be built: 4 to 10 minutes, once on this machine"
        with progress.step(f"Horovod {horovod.VERSION} for MPI and Gloo ({how})"):
            if wheel is None:
                wheel = horovod.build(progress, self.python, self.env, self.mpi, made_from, keep)
            options = ("--no-index", "--no-deps", "--force-reinstall")
            self._pip(progress, "installing Horovod", *options, str(wheel))
            check = horovod.BOTH_CONTROLLERS + (horovod.TENSORFLOW_TOO if tensorflow else "")
            progress.run("loading Horovod", [self.python, "-c", check], self.env)
            progress.note(str(wheel.parent))

    def _tools(self, progress: Progress) -> None:
        title = "hvd_sign with its kernels, and the tools for tests and benchmarks"
        with progress.step(title), self.state.changing("tools"):
            self._build(progress, f"{ROOT}[{self.kind.extras}]")

    def _kernels(self, progress: Progress) -> None:
        with progress.step("hvd_sign's kernels"):
            self._build(progress, "--no-deps", str(ROOT))

    def _build(self, progress: Progress, *what: str) -> None:
        key = self.keys()["kernels"]
        fresh = self.compiled.fresh(key)
        if not fresh:
            self.compiled.remove()
        line = self._pip_line("--no-build-isolation", *what[:-1], "-e", what[-1])
        build = {"MPICXX": self.mpi.mpicxx, "HVD_SIGN_COMPILED": str(int(fresh))}
        progress.run("building hvd_sign", line, {**self.env, **build})
        self.compiled.finish(key)

    def _pip_line(self, *arguments: str) -> list[str]:
        pins = self.venv / "constraints.txt"
        pins.write_text(constraints(self.kind.pin_files(ROOT), self.torch))
        fixed = ["--disable-pip-version-check", "--no-input", "install", "--progress-bar=off"]
        return [self.python, "-m", "pip", *fixed, "-c", str(pins), *arguments]

    def _pip(
        self, progress: Progress, what: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        with self.state.changing(what):
            progress.run(what, self._pip_line(*arguments), {**self.env, **(env or {})})

    def _versions(self) -> list[str]:
        asked = [self.python, "-c", VERSIONS, self.tensorflow or ""]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, env=self.env)
        return done.stdout.splitlines()


def environment(env: Mapping[str, str], venv: Path) -> dict[str, str]:
    """Returns the variables for programs of the environment: its programs first, no strangers."""
    ours = {key: env[key] for key in env if key not in ("PYTHONPATH", "PYTHONHOME")}
    path = os.pathsep.join([str(venv / "bin"), env.get("PATH", os.defpath)])
    return {**ours, "PATH": path, "VIRTUAL_ENV": str(venv), "PIP_USER": "0"}


def wanted_packages(data: bool) -> tuple[str, ...]:
    """Returns the Debian packages that the benchmarks use and that are not there yet."""
    packages = []
    if not (shutil.which("ip") and shutil.which("tc")):
        packages.append("iproute2")
    if data and not machine.DATASET.exists():
        packages.append("dataset-fashion-mnist")
    return tuple(packages)


def stop(number: int, frame: FrameType | None) -> None:
    """Turns a signal into an exit that clears up, for compilers left alone would work on."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the set-up and returns its exit status: 1 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="scripts.setup_env", description=__doc__)
    parser.add_argument("--environment", default="main", choices=KINDS, help="which to make")
    parser.add_argument("--torch", default=TORCH, help="what pip installs as PyTorch")
    parser.add_argument("--mpi", default="auto", choices=("auto", "wheel"), help="which MPI")
    parser.add_argument("--data", action="store_true", help="the benchmarks' data set too")
    given = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        with lock(ROOT / ".venv.lock", lambda: print("set-up: waiting for another one here")):
            Setup(KINDS[given.environment], given.torch or TORCH, given.mpi, given.data).run()
    except SetupError as error:
        if error.detail:
            print(error.detail, file=sys.stderr)
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except SystemExit:
        print("\nset-up: stopped; run it again to go on", file=sys.stderr)
        raise
    except OSError as error:
        print(f"set-up: {error}: mend that and run it again", file=sys.stderr)
        return 1
    return 0
