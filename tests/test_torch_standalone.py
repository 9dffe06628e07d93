"""The PyTorch binding on our own MPI runtime, with Horovod set aside, broken or hidden."""

from __future__ import annotations

import json
import re
import sys

import launch
import pytest

from hvd_sign.core.trace import merge

pytestmark = pytest.mark.skipif(not launch.has("torch"), reason="needs PyTorch")

ALONE = {"HVD_SIGN_RUNTIME": "mpi"}
HIDDEN = """
import sys


class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "horovod":
            raise ModuleNotFoundError("No module named 'horovod'", name="horovod")


sys.meta_path.insert(0, Hide())
"""


@pytest.mark.slow
def test_what_holds_with_horovod_holds_without(inner):
    inner(2, "ranks_torch_*.py", limit=900, extra=ALONE)


@pytest.mark.skipif(launch.has("horovod"), reason="runs where Horovod is not")
def test_four_ranks(inner):
    files = ("alone", "collectives", "join", "mixed", "process_sets", "state")
    inner(4, *(f"ranks_torch_{name}.py" for name in files), limit=900, extra=ALONE)


def test_process_sets_of_communicators(program):
    outcome = program("process_sets_of_communicators", launch.mpirun(3), extra=ALONE)
    assert len(re.findall(r"rank \d done", outcome.output)) == 3, outcome.report()


def test_the_timeline_that_horovods_variable_asks_for(tmp_path):
    """On rank 0, in Horovod's format, so that what reads or merges Horovod's reads it."""
    file = tmp_path / "timeline.json"
    code = """
import torch, hvd_sign.torch as hvd
hvd.init()
for turn in range(2):
    hvd.allreduce(torch.ones(3), name="gradient", op=hvd.Sum)
hvd.broadcast(torch.ones(3), 0)
hvd.shutdown()
"""
    outcome = launch.run(
        [*launch.mpirun(2), sys.executable, "-c", code],
        tmp_path / "run",
        limit=90,
        extra={**ALONE, "HOROVOD_TIMELINE": str(file)},
    )
    assert outcome.returncode == 0, outcome.report()
    assert [path.name for path in tmp_path.glob("*.json*")] == ["timeline.json"]
    merged = merge([file])["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in merged if e.get("name") == "thread_name"}
    begun = [(threads[e["tid"]], e["name"]) for e in merged if e["ph"] == "B"]
    twice = ["NEGOTIATE_ALLREDUCE", "ALLREDUCE"] * 2
    wanted = [("allreduce.gradient", name) for name in twice]
    wanted += [("broadcast.noname.0", name) for name in ("NEGOTIATE_BROADCAST", "BROADCAST")]
    assert begun == wanted
    assert json.loads(file.read_text())[0]["args"].keys() == {"start_time_since_epoch_in_micros"}


def test_a_timeline_that_cannot_be_written_ends_no_training(tmp_path):
    code = "import torch, hvd_sign.torch as hvd; hvd.init(); print(hvd.allreduce(torch.ones(1)))"
    for named, words in [
        (str(tmp_path / "no" / "folder"), "no timeline is written"),
        ("/dev/full", "the timeline ends here"),
    ]:
        outcome = launch.run(
            [sys.executable, "-c", code],
            tmp_path / "run",
            limit=60,
            extra={**ALONE, "HOROVOD_TIMELINE": named},
        )
        assert outcome.returncode == 0, outcome.report()
        assert "tensor([1.])" in outcome.output, outcome.report()
        assert outcome.output.count(words) == 1, outcome.report()


def test_a_script_where_horovod_is_not_installed(tmp_path):
    """A user's script but for its import: it trains by mean gradients, and says on what it runs."""
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    script = (launch.RANKS / "programs" / "horovod_script.py").read_text()
    logged = "import logging; logging.basicConfig(level=logging.INFO)\n"
    ours = script.replace("import horovod.torch as hvd", "import hvd_sign.torch as hvd")
    (tmp_path / "train.py").write_text(ours.replace("\nhvd.init()", f"\n{logged}hvd.init()"))
    outcome = launch.run(
        [*launch.mpirun(2), sys.executable, str(tmp_path / "train.py")],
        tmp_path / "run",
        limit=90,
        extra={"PYTHONPATH": str(tmp_path)},
    )
    assert outcome.returncode == 0, outcome.report()
    found = re.findall(r"rank \d+ of 2 accuracy ([\d.]+)", outcome.output)
    assert len(found) == 2, outcome.report()
    assert min(map(float, found)) > 0.5  # a step at lr 0.01 by mean gradients learns slowly
    said = "INFO:hvd_sign:hvd_sign.torch runs on the runtime 'mpi': Horovod is not installed"
    assert outcome.output.count(said) == 1, outcome.report()


@pytest.mark.skipif(not launch.has("horovod"), reason="needs Horovod")
def test_a_horovod_without_a_library_for_this_pytorch(tmp_path):
    """It is warned of, on rank 0, and the job goes on without it."""
    broken = "import sys, types\nsys.modules['horovod.torch'] = types.ModuleType('horovod.torch')\n"
    (tmp_path / "sitecustomize.py").write_text("import horovod\n" + broken)
    code = "import hvd_sign.torch as hvd; hvd.init(); print('runtime ' + hvd.runtime())"
    outcome = launch.run(
        [*launch.mpirun(2), sys.executable, "-c", code],
        tmp_path / "run",
        limit=90,
        extra={"PYTHONPATH": str(tmp_path)},
    )
    assert outcome.returncode == 0, outcome.report()
    assert outcome.output.count("runtime mpi") == 2
    assert outcome.output.count("horovod.torch has no native library") == 1, outcome.report()


def test_an_insisted_on_horovod_that_is_not_there(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    outcome = launch.run(
        [sys.executable, "-c", "import hvd_sign.torch"],
        tmp_path / "run",
        limit=60,
        extra={"PYTHONPATH": str(tmp_path), "HVD_SIGN_RUNTIME": "horovod"},
    )
    assert outcome.returncode
    assert "HVD_SIGN_RUNTIME=horovod, but Horovod is not installed" in outcome.output


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_subnormals_are_numbers_whatever_the_calling_thread_takes_them_for(program, engine):
    outcome = program("subnormals", launch.mpirun(2), extra=ALONE | {"HVD_SIGN_ENGINE": engine})
    assert outcome.output.count("a rank is done") == 2
