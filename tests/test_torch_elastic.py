"""Elastic jobs of optimizers that vote: workers that die, come and go under horovodrun."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)


def trained(
    folder: Path, hosts: str, first: int, *arguments: str, least: int = 2
) -> tuple[list, list[int]]:
    """Trains; each surviving worker's report, and the numbers of workers, step by step.

    The program has checked itself, bit for bit, against numpy.
    """
    script = folder / "hosts.sh"
    script.write_text(f"#!/bin/sh\ncd {folder}\n{hosts}\n")
    script.chmod(0o755)
    launcher = launch.find("horovodrun")
    assert launcher is not None
    program = str(launch.RANKS / "programs" / "elastic_votes.py")
    command = [launcher, "-np", str(first), "--min-np", str(least), "--max-np", "3"]
    command += ["--host-discovery-script", str(script), "--network-interface", "lo"]
    command += [sys.executable, program, str(folder), *arguments]
    # Of three workers, one may wait for one that waits for the dead one: as long as Gloo waits.
    gloo = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "10"}
    outcome = launch.run(command, folder / "run", limit=100, extra=gloo)
    assert outcome.returncode == 0, outcome.report()
    found = re.findall(
        r"worker (\S+) done: (\d+) (\[[\d, ]*\]) worlds (\[[\d, ]*\])", outcome.output
    )
    assert len({(digest, sizes) for _, digest, sizes, _ in found}) == 1, outcome.report()
    return found, [int(size) for size in re.findall(r"\d", found[0][2])]


def test_a_worker_dies(tmp_path):
    """Three train; one is killed amid its eighth step; two go on from the sixth."""
    found, sizes = trained(tmp_path, "echo localhost:2\necho 127.0.0.1:1", 3, "20", "dies")
    assert sorted(worker for worker, *_ in found) == ["localhost/0", "localhost/1"]
    assert sizes == [3] * 6 + [2] * 14
    assert [worlds for *_, worlds in found] == ["[3, 2]"] * 2


def test_one_of_two_dies(tmp_path):
    """The other goes on alone, and votes with itself."""
    hosts = "echo localhost:1\necho 127.0.0.1:1"
    found, sizes = trained(tmp_path, hosts, 2, "20", "dies", least=1)
    assert [worker for worker, *_ in found] == ["localhost/0"]
    assert sizes == [2] * 6 + [1] * 14


def test_a_worker_comes_and_goes(tmp_path):
    """It begins from the others' median, takes part, and is let go again, without a failure."""
    hosts = "echo localhost:2\n[ -e reached.3 ] && [ ! -e reached.24 ] && echo 127.0.0.1:1\ntrue"
    found, sizes = trained(tmp_path, hosts, 2, "60")
    changes = [size for before, size in zip([0, *sizes], sizes, strict=False) if size != before]
    assert changes == [2, 3, 2]
    assert sorted(worker for worker, *_ in found) == ["localhost/0", "localhost/1"]
    assert [worlds for *_, worlds in found] == ["[2, 3, 2]"] * 2
