"""The shape of the tree: what lies where, and that no folder stands in another package's way."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hvd_sign
from hvd_sign import _version

pytestmark = pytest.mark.quick

REPO = Path(__file__).resolve().parent.parent
CONTAINERS = {"torch": "hvd_sign_torch", "tf": "hvd_sign_tf"}
REQUIRED = {
    *(".ci", "benchmarks", "hvd_sign", "scripts", "slurm", "tests", "tf", "torch"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
    *("constraints.txt", "constraints-keras3.txt", "pyproject.toml", "setup.py"),
}
ALLOWED = REQUIRED | {".clang-format", ".git", ".gitignore", "docs", "results"}
SOURCES = ("*.py", "*.pyi", "*.cpp", "*.h", "*.sh")


def run_here(*argv: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a program from the repository's root, as a user would."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        argv, cwd=REPO, env=env, capture_output=True, text=True, timeout=limit, check=False
    )


def generated(entry: Path) -> bool:
    """True for what .gitignore leaves out: caches, builds, the environment."""
    patterns = (REPO / ".gitignore").read_text().split()
    return any(entry.match(pattern.rstrip("/")) for pattern in patterns)


def sources() -> list[Path]:
    tracked = [folder for folder in REPO.iterdir() if not generated(folder)]
    found = [folder for folder in tracked if folder.suffix == ".py"]
    for folder in tracked:
        if folder.is_dir() and folder.name != ".git":
            found += [path for kind in SOURCES for path in folder.rglob(kind)]
    return [path for path in found if not any(generated(part) for part in (path, *path.parents))]


def test_top_level_is_the_architecture():
    entries = {entry.name for entry in REPO.iterdir() if not generated(entry)}
    assert REQUIRED - entries == set()
    assert entries - ALLOWED == set()


@pytest.mark.parametrize(("container", "package"), CONTAINERS.items())
def test_containers_shadow_no_framework(container, package):
    entries = {entry.name for entry in (REPO / container).iterdir() if not generated(entry)}
    assert "README.md" in entries
    assert [name for name in entries if name.endswith(".py")] == []
    assert entries - {"README.md", package} == set()


def test_tests_have_no_folder_named_like_a_framework():
    names = {entry.name for entry in (REPO / "tests").iterdir()}
    assert names & {"torch", "tf", "tensorflow", "horovod", "hvd_sign"} == set()


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "horovod", "mpi4py"])
def test_frameworks_are_found_from_the_root(framework):
    code = (
        "import importlib.util as u; s = u.find_spec({0!r});"
        "print(s.origin if s and s.origin else 'absent')"
    )
    found = run_here(sys.executable, "-c", code.format(framework)).stdout.strip()
    if found == "absent":
        pytest.skip(f"{framework} is not installed")
    assert Path(found).name == "__init__.py"
    assert not Path(found).is_relative_to(REPO) or Path(found).is_relative_to(sys.prefix)


def test_the_package_is_found_from_the_root_with_its_kernels():
    code = "import hvd_sign, hvd_sign._kernels as k; print(hvd_sign.__version__, k.__version__)"
    done = run_here(sys.executable, "-c", code)
    assert done.stdout.split() == [_version.__version__] * 2, done.stderr


def test_core_imports_no_framework():
    code = (
        "import sys, hvd_sign; print(sorted({'torch', 'tensorflow', 'horovod', 'keras'}"
        " & set(sys.modules)))"
    )
    done = run_here(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_core_sources_name_no_framework():
    imports = re.compile(r"^\s*(import|from) (torch|tensorflow|horovod|keras)\b", re.MULTILINE)
    core = list((REPO / "hvd_sign").rglob("*.py"))
    assert len(core) > 5
    assert [path.name for path in core if imports.search(path.read_text())] == []


def test_facade_is_the_binding():
    pytest.importorskip("torch", minversion="2.1")
    pytest.importorskip("horovod")
    code = "import hvd_sign.torch as a, hvd_sign_torch as b; print(a.allreduce is b.allreduce)"
    done = run_here(sys.executable, "-c", code)
    assert done.stdout.strip() == "True", done.stderr


def test_one_version_everywhere():
    text = (REPO / "hvd_sign" / "_version.py").read_text()
    declared = re.findall(r'(?m)^__version__ = "(.+)"$', text)
    from hvd_sign import _kernels

    installed = importlib.metadata.version("hvd_sign")
    assert {hvd_sign.__version__, _kernels.__version__, installed} == set(declared)


@pytest.mark.parametrize(
    "program", [("-m", "pytest"), ("-c", "import pytest; pytest.console_main()")]
)
def test_pytest_starts_in_both_ways(program):
    done = run_here(sys.executable, *program, "--collect-only", "-q", "tests/test_layout.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_pytest_starts_in_both_ways" in done.stdout


@pytest.mark.parametrize(
    "module", ["allreduce", "check", "cluster", "kernels", "overlap", "report", "submit", "train"]
)
def test_benchmarks_start_as_modules(module):
    done = run_here(sys.executable, "-m", f"benchmarks.{module}", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_files_are_short_enough_to_read():
    files = sources()
    assert len(files) > 30
    lines = {str(path.relative_to(REPO)): path.read_text().count("\n") for path in files}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_files_name_no_folder_of_a_person_and_leave_nothing_for_later():
    foreign = re.compile(r"(?<![\w.}])/(?:home|root|Users|work)/|\bTODO\b|\bFIXME\b")
    own = Path(__file__).resolve()
    found = [path for path in sources() if path != own and foreign.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("fails", "status", "ends"),
    [
        ("none", 0, ["passed", "passed"]),
        ("test", 3, ["FAILED with status 3", "passed"]),
        ("test-keras3", 3, ["passed", "FAILED with status 3"]),
    ],
)
def test_continuous_integration_is_all_runs_of_the_tests(fails, status, ends, tmp_path):
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$PWD $*"; [ "$*" != {fails} ] || exit 3\n')
    make.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [REPO / ".ci" / "run"], cwd="/", env=path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == status
    targets = ["test", "test-keras3"]
    said = [f"make {target}: {end}" for target, end in zip(targets, ends, strict=True)]
    assert done.stdout.splitlines() == [*(f"{REPO} {target}" for target in targets), *said]


def test_every_target_is_explained():
    makefile = (REPO / "Makefile").read_text()
    targets = re.findall(r"(?m)^([a-z][a-z0-9-]+):(?!=)", makefile)
    described = run_here("make", "help").stdout
    for target in (
        "setup",
        "test",
        "test-quick",
        "test-keras3",
        "test-slurm",
        "lint",
        "bench",
        "bench-kernels",
        "clean",
    ):
        assert target in targets
        assert f"make {target} " in described
    assert run_here("make").stdout == described


@pytest.mark.parametrize(
    ("framework", "environment", "option"),
    [
        ("torch", ".venv", ""),
        ("tensorflow", ".venv", "--framework tensorflow"),
        ("keras3", ".venv-keras3", "--framework tensorflow"),
    ],
)
def test_make_bench_trains_by_the_chosen_framework(framework, environment, option):
    shown = run_here("make", "-n", "bench", f"FRAMEWORK={framework}", "ARGS=--help").stdout
    python = re.escape(str(REPO / environment / "bin" / "python"))
    assert re.search(rf"(?m){python} -m benchmarks\.train +{option} *--help$", shown)
    assert ("--environment keras3" in shown) == (environment == ".venv-keras3")


def test_make_bench_refuses_another_framework():
    done = run_here("make", "bench", "FRAMEWORK=jax")
    assert done.returncode == 2
    assert "FRAMEWORK is torch, tensorflow or keras3, not 'jax'" in done.stderr
