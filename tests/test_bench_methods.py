"""The registry of methods, what they send by formula, and the shapes that are exchanged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from benchmarks.emulation import launch
from benchmarks.errors import BenchError
from benchmarks.methods import catalogue, payloads
from benchmarks.methods.catalogue import METHODS, MethodError, Place, by_environment, resolve
from benchmarks.ranks import memory
from benchmarks.training import frameworks, shapes
from benchmarks.training.frameworks import FRAMEWORKS, HOROVOD, MPI, framework_of

VOTES = [
    *("vote", "signum", "lion", "ef_sign", "onebit"),
    *("vote-allgather", "vote-hierarchical", "vote-zero", "vote-positive"),
    *("vote-horovod", "vote-mpi4py"),
]


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setattr(catalogue.Path, "glob", lambda self, pattern: iter(()))


def place(benchmark: str, workers: int = 4, framework: str = "torch", runtime: str = HOROVOD):
    return Place(benchmark, workers, FRAMEWORKS[framework], runtime)


def names(text: str | None, workers: int = 4, benchmark: str = "allreduce") -> list[str]:
    return [method.name for method in resolve(text, place(benchmark, workers))]


def test_a_list_comes_in_its_order_each_once() -> None:
    assert names("vote,fp32,vote") == ["vote", "fp32"]
    assert names(None) == ["fp32", "fp16", "vote", "signum"]


def test_a_group_stands_for_what_can_run_here() -> None:
    assert names("ours") == VOTES
    assert names("baselines,fp32") == ["qsgd", "topk", "sign-bytes", "onebit-average", "fp32"]
    assert names("horovod") == ["fp32", "fp16", "adasum"]
    assert names("horovod", workers=3) == ["fp32", "fp16"]
    assert names("distributed,ddp") == ["gloo", "ddp"]
    assert names("ddp-hooks")[:4] == ["ddp", "ddp-fp16", "ddp-bf16", "powersgd-1"]
    assert set(METHODS) - set(names("all")) == {"nccl", "local", "vote-tensorflow"}
    assert set(METHODS) - set(names("all", benchmark="training")) == {
        *("gloo", "nccl", "vote-tensorflow")
    }
    assert names("all", benchmark="overlap") == ["fp32", "fp16", *VOTES]


@pytest.mark.parametrize(
    ("text", "workers", "benchmark", "sentence"),
    [
        ("adasum", 3, "allreduce", "'adasum' needs a power of two of workers, got 3"),
        ("fp32,nccl", 4, "allreduce", "'nccl' needs an NVIDIA GPU in each host"),
        ("local", 4, "allreduce", "'local' is not for this benchmark: expected a list of fp32, "),
        ("gloo", 4, "training", "'gloo' is not for this benchmark"),
        ("vote-tensorflow", 4, "training", "'vote-tensorflow' is not for this benchmark"),
        ("ddp", 4, "overlap", "'ddp' is not for this benchmark: expected a list of fp32, fp16, vo"),
        ("distributed", 4, "training", "unknown method ''"),
        ("fp8", 4, "allreduce", "or of the groups ours, horovod, distributed, baselines"),
    ],
)
def test_what_cannot_run_is_refused(text, workers, benchmark, sentence) -> None:
    with pytest.raises(MethodError) as refused:
        resolve(text, place(benchmark, workers))
    assert sentence in str(refused.value)


def test_tensorflow_trains_by_votes_by_horovod_and_alone() -> None:
    served = resolve("all", place("training", framework="tensorflow"))
    assert [m.name for m in served] == ["fp32", "fp16", "adasum", *VOTES, "local"]
    with pytest.raises(MethodError) as refused:
        resolve("vote,ddp", place("training", framework="tensorflow"))
    assert str(refused.value) == (
        "method 'ddp' needs PyTorch: with TensorFlow expected a list of fp32, fp16, adasum, "
        f"{', '.join(VOTES)}, local"
    )


def test_without_horovod_fp32_goes_over_mpi_and_says_so() -> None:
    here = place("training", framework="tensorflow", runtime=MPI)
    assert [m.label for m in resolve(None, here)] == ["MPI fp32", "majority vote", "Signum by vote"]
    without_horovod = [name for name in VOTES if name != "vote-horovod"]
    assert [m.name for m in resolve("horovod,ours", here)] == ["fp32", *without_horovod]
    for name in ("fp16", "adasum", "vote-horovod"):
        with pytest.raises(MethodError, match=f"'{name}' needs Horovod's library for TensorFlow"):
            resolve(name, here)


def test_a_framework_that_is_not_installed_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(frameworks, "installed", lambda name: name == "torch")
    monkeypatch.setattr(catalogue, "installed", lambda name: name == "torch")
    with pytest.raises(BenchError, match=r"^this needs TensorFlow, which is not installed for "):
        framework_of("tensorflow")
    with pytest.raises(MethodError, match="'vote-tensorflow' needs TensorFlow, which is not inst"):
        names("vote-tensorflow")


def test_a_bare_folder_is_no_framework(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not frameworks.installed("bare")
    assert not frameworks.installed("nowhere_to_be_found")
    assert frameworks.installed("pytest")


def test_methods_of_one_environment_share_ranks() -> None:
    assert by_environment(["vote-mpi4py", "fp32", "vote-horovod", "vote"]) == [
        ({"HVD_SIGN_ENGINE": "python"}, ["vote-mpi4py"]),
        ({}, ["fp32", "vote"]),
        ({"HVD_SIGN_TRANSPORT": "horovod"}, ["vote-horovod"]),
    ]


def test_ranks_see_their_environment_and_their_methods(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "told.py").write_text(
        "import json, os, sys\n"
        "config = json.load(open(sys.argv[1]))\n"
        "engine = os.environ.get('HVD_SIGN_ENGINE')\n"
        "print(json.dumps([engine, config['methods']]), file=open(sys.argv[2], 'a'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("HVD_SIGN_ENGINE", raising=False)
    network = launch.Network("loopback", 1, "none", "a test", list)
    config = {"methods": ["vote", "vote-mpi4py", "fp32"], "seed": 7}
    with launch.measure(network, "told", config, tmp_path) as events:
        assert list(events) == [[None, ["vote", "fp32"]], ["python", ["vote-mpi4py"]]]
    second = json.loads((tmp_path / "config-2.json").read_text())
    assert second == {"methods": ["vote-mpi4py"], "seed": 7}
    assert sys.executable in network.command([sys.executable])


@pytest.mark.parametrize(
    ("name", "workers", "gradients", "sent"),
    [
        ("fp32", 4, [(1000,)], 6000),  # 2 x 3/4 x 4 bytes
        ("fp16", 4, [(500,), (50, 10)], 3000),
        ("ddp-bf16", 2, [(1000,)], 2000),
        # (10 + 20) x 2 of 200 values and a vector; 4 x 4 is too small: 81 values of 4 bytes.
        ("powersgd-2", 2, [(10, 4, 5), (5,), (4, 4)], 81 * 4),
        ("powersgd-1", 2, [(10, 20)], 30 * 4),
        ("qsgd", 3, [(600,), (424,)], 2 * (1024 + 2 * 4)),
        ("qsgd", 2, [(1025,)], 1025 + 3 * 4),
        ("topk", 4, [(1000,)], 3 * 10 * 8),
        ("topk", 2, [(7,)], 8),
        ("sign-bytes", 5, [(100,)], 400),
        ("onebit-average", 3, [(81,)], 2 * (11 + 4)),
        ("local", 4, [(100,)], 0),
    ],
)
def test_payload_by_hand(name, workers, gradients, sent) -> None:
    assert METHODS[name].payload(workers, gradients) == pytest.approx(sent)


def test_votes_are_counted_and_all_others_have_a_formula() -> None:
    for method in METHODS.values():
        assert (method.payload is None) == (method.group == "ours")
        assert method.payload_source == ("counted" if method.group == "ours" else "formula")


def test_resnet50_has_its_known_size() -> None:
    known = list(shapes.resnet50())
    assert len(known) == 161
    assert payloads.coordinates(known) == 25_557_032
    assert known[0] == (64, 3, 7, 7)
    assert known[-2:] == [(1000, 2048), (1000,)]


def test_shapes_of_any_size() -> None:
    assert shapes.of_size(256) == [(1, 3, 7, 7), (109,)]
    assert shapes.of_size(64 * 147) == [(64, 3, 7, 7)]
    assert shapes.of_size(64 * 147 + 3) == [(64, 3, 7, 7), (3,)]
    assert shapes.of_size(1) == [(1,)]
    for count in (100, 9_537, 1 << 20, 25_557_032, 25_600_000, 60_000_001):
        assert payloads.coordinates(shapes.of_size(count)) == count
    assert shapes.of_size(25_557_032 + 9_408)[-1] == (64, 3, 7, 7)


def test_memory_traffic_and_bandwidth() -> None:
    # Read 100, write 100, send 6, receive 6.
    assert memory.traffic(100, 6) == 212
    copier = memory.Copier()
    assert copier.bytes == memory.COPIES * 2 * (64 << 20)  # each reads and writes 64 MiB
    assert copier.seconds() > 0
