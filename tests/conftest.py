"""What the launching tests share: run inner tests or a program under a launcher, and judge it."""

from __future__ import annotations

import ast
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import launch
import pytest


def pytest_configure() -> None:
    """Undo what a background job inherits: programs under test must hear Ctrl-C and hang-ups."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def functions(file: Path) -> set[str]:
    """Names `file.py::function` of a file's test functions, read without running it."""
    tree = ast.parse(file.read_text())
    return {
        f"{file.name}::{node.name}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def judge(outcome: launch.Outcome, files: list[Path], ranks: int) -> None:
    """Fail unless every rank count, exit code and inner test is as it should be."""

    def short(nodeid: str) -> str:
        return re.sub(r"\[.*\]$", "", nodeid).rpartition("/")[2]

    problems = []
    if outcome.killed or outcome.returncode:
        problems.append("the launch failed")
    if sorted(outcome.ranks) != list(range(ranks)):
        problems.append(f"expected logs of {ranks} ranks, got {sorted(outcome.ranks)}")
    collected, left = set(), set()
    for record in outcome.records("collected"):
        collected.update(record["tests"])
        left.update(record["left"])
    missing = sorted(collected - outcome.passed())
    if missing or not collected:
        listed = "".join(f"\n  {name}" for name in missing[:20])
        problems.append(f"{len(missing)} of {len(collected)} inner tests did not pass{listed}")
    written = set().union(*(functions(file) for file in files))
    forgotten = sorted(written - {short(t) for t in collected | left})
    if forgotten and collected:
        problems.append(f"inner tests that were never collected: {forgotten}")
    summary = f"{ranks} ranks: {len(outcome.passed())} inner tests in {outcome.seconds:.1f} s"
    print(summary)
    if problems:
        pytest.fail("\n".join([summary, *problems, outcome.report()]), pytrace=False)


@pytest.fixture
def inner(tmp_path: Path) -> Callable[..., launch.Outcome]:
    """inner(ranks, pattern...): run tests/ranks/<pattern> on that many ranks; all must pass."""

    def run(
        ranks: int,
        *patterns: str,
        launcher: Callable[[int], list[str]] = launch.mpirun,
        limit: float = 240,
        extra: dict[str, str] | None = None,
    ) -> launch.Outcome:
        files = sorted(file for pattern in patterns for file in launch.RANKS.glob(pattern))
        assert files, f"no inner tests match {patterns}"
        program = [sys.executable, str(launch.RANKS / "inner.py"), str(tmp_path)]
        command = [*launcher(ranks), *program, *map(str, files)]
        # From the repo root, so that the inner pytest has the same settings as this one.
        outcome = launch.run(command, tmp_path, limit=limit, extra=extra, cwd=launch.REPO)
        judge(outcome, files, ranks)
        return outcome

    return run


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., launch.Outcome]:
    """program(name, launcher, argument...): run programs/<name>.py; it must exit with 0."""

    def run(
        name: str,
        command: list[str],
        *arguments: str,
        limit: float = 90,
        extra: dict[str, str] | None = None,
    ) -> launch.Outcome:
        script = launch.RANKS / "programs" / f"{name}.py"
        full = [*command, sys.executable, str(script), *arguments]
        outcome = launch.run(full, tmp_path, limit=limit, extra=extra)
        if outcome.killed or outcome.returncode:
            pytest.fail(outcome.report(), pytrace=False)
        return outcome

    return run
