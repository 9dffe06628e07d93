"""The set-up at work: what it remembers, how its programs fail and end, and the tests' guard."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.setup_env import compiled, errors, kinds, state, steps
from scripts.setup_env.errors import SetupError
from scripts.setup_env.progress import Progress, clock

REPO = Path(__file__).resolve().parent.parent


def running(pid: str) -> bool:
    """True unless the process is gone, or waits as a zombie for somebody to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def progress(tmp_path) -> Progress:
    return Progress(3, tmp_path / "build" / "setup.log", beat=0.2)


# State: what is done stays done, what was cut off is made again.


def test_steps_are_remembered(tmp_path):
    made = state.State(tmp_path / ".venv")
    made.finish("mpi", "k1")
    made.note("mpi", "wheel")
    again = state.State(tmp_path / ".venv")
    assert again.fresh("mpi", "k1")
    assert not again.fresh("mpi", "k2")
    assert again.notes == {"mpi": "wheel"}


def test_a_step_that_was_cut_off_spoils_the_environment(tmp_path):
    made = state.State(tmp_path / ".venv")
    made.finish("venv", "k")
    with pytest.raises(KeyboardInterrupt), made.changing("frameworks"):
        raise KeyboardInterrupt
    assert not state.State(tmp_path / ".venv").fresh("venv", "k")


def test_a_step_that_failed_in_good_order_does_not(tmp_path):
    made = state.State(tmp_path / ".venv")
    made.finish("venv", "k")
    with pytest.raises(SetupError), made.changing("frameworks"):
        raise SetupError("no network")
    assert state.State(tmp_path / ".venv").fresh("venv", "k")


def test_a_torn_state_file_spoils_the_environment(tmp_path):
    made = state.State(tmp_path / ".venv")
    made.finish("venv", "k")
    made.file.write_text('{"busy": nu')
    assert not state.State(tmp_path / ".venv").fresh("venv", "k")


def test_emptying_keeps_only_the_sign_that_it_is_ours(tmp_path):
    made = state.State(tmp_path / ".venv")
    made.finish("venv", "k")
    (made.venv / "lib").mkdir()
    (made.venv / "lib64").symlink_to("lib")
    made.empty()
    assert [entry.name for entry in made.venv.iterdir()] == [state.FILE]
    assert not state.State(tmp_path / ".venv").fresh("venv", "k")


def test_somebody_elses_environment_is_left_alone(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    with pytest.raises(SetupError, match="did not make: move it away or delete it"):
        state.State(tmp_path / ".venv")


def test_digest_sees_contents_and_order(tmp_path):
    file = tmp_path / "f"
    file.write_text("a")
    first = state.digest(file, "x")
    assert first == state.digest(file, "x")
    file.write_text("b")
    assert len({first, state.digest(file, "x"), state.digest("x", file)}) == 3
    assert state.digest("ab", "c") != state.digest("a", "bc")


def test_one_set_up_at_a_time(tmp_path):
    code = (
        "import sys, time; from scripts.setup_env.state import lock; from pathlib import Path\n"
        "with lock(Path(sys.argv[1]), lambda: None): print('held', flush=True); time.sleep(60)"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(line, cwd=REPO, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waited = []

        def waiting() -> None:
            waited.append(True)
            holder.kill()

        with state.lock(tmp_path / "lock", waiting):
            assert waited == [True]


# Compiled modules: all environments of a Python share them.


@pytest.fixture
def made(tmp_path) -> compiled.Compiled:
    made = compiled.Compiled(tmp_path / "hvd_sign", tmp_path / "build")
    made.package.mkdir()
    for name in ("_engine", "_kernels"):
        (made.package / f"{name}{made.suffix}").write_text("")
    made.finish("k1")
    return made


def test_what_one_environment_compiled_serves_the_other(made):
    again = compiled.Compiled(made.package, made.file.parent)
    assert again.fresh("k1")
    assert not again.fresh("k2")
    (made.package / "_kernels.cpython-36m-x86_64-linux-gnu.so").write_text("")  # another Python's
    assert again.fresh("k1")


def test_compiled_modules_that_were_lost_or_removed_are_made_again(made):
    lost = made.modules()[0]
    lost.unlink()
    assert not made.fresh("k1")
    lost.write_text("")
    assert made.fresh("k1")
    made.remove()
    assert made.modules() == []
    made.finish("k1")  # a build that made nothing is none
    assert not made.fresh("k1")


def test_both_environments_agree_on_what_to_compile_from():
    def keys(kind: str) -> dict[str, str]:
        return steps.Setup(kinds.KINDS[kind], "torch", "auto", False).keys()

    main, keras3 = keys("main"), keys("keras3")
    assert main["kernels"] == keras3["kernels"]
    assert main["frameworks"] != keras3["frameworks"]
    assert main.keys() - keras3.keys() == {"horovod"}


# Programs: their failures become sentences, and they end with the set-up.


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "WARNING: Retrying ... NewConnectionError('<pip._vendor.urllib3...>: Failed to "
            "establish a new connection: [Errno -3] Temporary failure in name resolution')\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            r"^installing X failed because the package index cannot be reached: .*PIP_INDEX_URL",
        ),
        (
            "ERROR: Could not find a version that satisfies\n"
            "ERROR: No matching distribution found for torch==9.9",
            r"^installing X failed because pip's index has no torch==9\.9 for this .*TORCH=",
        ),
        (
            "OSError: [Errno 28] No space left on device",
            r"^installing X failed because the disk is full: free some space",
        ),
        (
            "g++: fatal error: Killed signal terminated program cc1plus",
            r"^installing X failed because memory ran out: .*taskset -c 0 make test",
        ),
        ("error: something else", r"^installing X failed: see the lines above, .* in /x\.log$"),
    ],
)
def test_failures_are_explained(output, sentence):
    assert re.search(sentence, str(errors.explain("installing X", 1, output, "/x.log")))


def test_only_an_unknown_failure_shows_its_output():
    shown = errors.explain("x", 1, "\n".join(f"line {i}" for i in range(50)), "/x.log").detail
    assert shown.splitlines()[-1] == "line 49"
    assert len(shown.splitlines()) == 20
    assert errors.explain("x", 1, "Network is unreachable", "/x.log").detail == ""


def test_a_program_that_was_ended_from_outside(progress):
    with pytest.raises(SetupError, match=r"^working was ended by SIGTERM: run it again$"):
        progress.run("working", ["sh", "-c", "kill $$"])


def test_output_is_kept_and_a_long_program_is_seen_to_live(progress, capsys):
    line = ["sh", "-c", "echo '[ 12%] Building'; echo warning; sleep 0.7; echo end"]
    with progress.step("Work"):
        assert progress.run("working", line, telling=r"^\[") == "[ 12%] Building\nwarning\nend\n"
    said = capsys.readouterr().out
    assert said.startswith("[1/3] Work\n")
    assert "0:00  [ 12%] Building\n" in said
    assert said.endswith("      done in 0:00\n")
    assert "warning\nend\n" in progress.log.read_text()


def test_a_failed_program_is_an_error(progress):
    with pytest.raises(SetupError, match=r"^working failed: see the lines above") as caught:
        progress.run("working", ["sh", "-c", "echo why; exit 2"])
    assert caught.value.detail == "why"


def test_interrupting_ends_the_program(progress, tmp_path):
    code = (
        "import sys; from pathlib import Path; from scripts.setup_env.progress import Progress\n"
        "from scripts.setup_env import steps; import signal\n"
        "signal.signal(signal.SIGTERM, steps.stop)\n"
        "Progress(1, Path(sys.argv[1])).run('x', ['sh', '-c', 'echo $$; sleep 604'])"
    )
    log = tmp_path / "log"
    setup = subprocess.Popen([sys.executable, "-c", code, str(log)], cwd=REPO)
    limit = time.monotonic() + 20
    while not log.exists() or not re.search(r"(?m)^\d+$", log.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    child = log.read_text().split()[-1]
    setup.send_signal(signal.SIGTERM)
    assert setup.wait(timeout=20) == 143
    assert not running(child)


def test_clock():
    assert [clock(t) for t in (0, 9.9, 61, 600)] == ["0:00", "0:09", "1:01", "10:00"]


# The whole program.


def test_a_failure_is_one_sentence_and_no_traceback(tmp_path):
    (tmp_path / "nothing").mkdir()
    env = {**os.environ, "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.setup_env"],
        cwd=REPO,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "set-up: CXX names the C++ compiler 'no-such-compiler', which is not there: mend CXX\n"
    )


# The guard of the test run.


def guard(*arguments: str, timeout: float = 40) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(REPO / "scripts" / "guard.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout)


def test_guard_passes_the_exit_status_on():
    assert guard("30", "sh", "-c", "exit 5").returncode == 5


def test_guard_ends_a_hang_with_all_that_it_started(tmp_path):
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 605' & sleep 605"
    done = guard("1", "sh", "-c", script)
    assert done.returncode == 124
    assert done.stderr.startswith("guard: ended after 1 s: sh -c ")
    assert not running((tmp_path / "pid").read_text().strip())
