"""A pytest plugin for many ranks: they collect the same tests, and agree on each one's outcome.

A test that fails on one rank fails on all, so that ranks stay in step; a skip counts as a failure,
because a test that ran nowhere proves nothing (deselect with the markers `ranks` and `runtime`
instead). Every rank writes what it begins and how it ended to a log of its own at once, and its
stacks to a trace file when a test takes too long: the launching side (tests/launch.py) reads both.
"""

from __future__ import annotations

import faulthandler
import hashlib
import importlib.util
import json
import os
import time
from pathlib import Path

import pytest
from mpi4py import MPI

LIMIT = 60.0  # seconds a test may take, unless its `limit` marker says otherwise


def runtime() -> str:
    """Which of hvd_sign's runtimes the bindings choose here."""
    alone = importlib.util.find_spec("horovod") is None
    return "mpi" if alone or os.environ.get("HVD_SIGN_RUNTIME") == "mpi" else "horovod"


class Agreement:
    """The plugin. `folder` receives log.<rank> and trace.<rank>."""

    def __init__(self, folder: Path) -> None:
        self.comm = MPI.COMM_WORLD.Dup()
        self.rank = self.comm.Get_rank()
        self.log = (folder / f"log.{self.rank}").open("w", buffering=1)
        self.trace = (folder / f"trace.{self.rank}").open("w", buffering=1)

    def write(self, kind: str, **record: object) -> None:
        self.log.write(json.dumps({"kind": kind, **record}) + "\n")

    def agree(self, value: object) -> list:
        """Every rank's value, in rank order. Waits without burning a core that others need."""
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(0.0005)
        return self.comm.allgather(value)

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "ranks(least, most=None): how many ranks the test needs")
        config.addinivalue_line("markers", "runtime(name): the only runtime that the test is about")
        config.addinivalue_line("markers", "limit(seconds): how long the test may take")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list) -> None:
        kept, left = [], []
        for item in items:
            mark = item.get_closest_marker("ranks")
            least, most = (*mark.args, None)[:2] if mark else (1, None)
            fits = least <= self.comm.size <= (most or self.comm.size)
            mark = item.get_closest_marker("runtime")
            fits = fits and (mark is None or mark.args[0] == runtime())
            (kept if fits else left).append(item)
        config.hook.pytest_deselected(items=left)
        items[:] = kept
        names = [item.nodeid for item in kept]
        digests = self.agree(hashlib.sha256("\n".join(names).encode()).hexdigest())
        if len(set(digests)) != 1:
            raise pytest.UsageError("the ranks collected different tests")
        self.write("collected", tests=names, left=[item.nodeid for item in left])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write("begin", test=nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        mark = item.get_closest_marker("limit")
        faulthandler.dump_traceback_later(mark.args[0] if mark else LIMIT, file=self.trace)
        self.outcome = "passed"
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.write("end", test=item.nodeid, outcome=self.outcome)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> object:
        report = yield
        if report.outcome == "skipped":
            report.outcome = "failed"
            report.longrepr = f"skipped, which hides a test: {report.longrepr}"
        text = report.longreprtext
        if report.outcome == "failed":
            self.write("failure", test=item.nodeid, phase=call.when, text=text)
        outcomes = self.agree((item.nodeid, call.when, report.outcome))
        steps = {(nodeid, when) for nodeid, when, _ in outcomes}
        if len(steps) != 1:
            raise pytest.UsageError(f"the ranks are out of step: {sorted(steps)}")
        failed = [rank for rank, (_, _, outcome) in enumerate(outcomes) if outcome != "passed"]
        if failed:
            report.longrepr = f"failed on ranks {failed} of {self.comm.size}\n{text}"
            report.outcome = self.outcome = "failed"
        return report
