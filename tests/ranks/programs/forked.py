"""Children forked from ranks end as plain Python's do, and are told that they are no ranks.

Arguments: what votes (numpy, torch or tensorflow), and who starts MPI: "us", "mpi4py" (imported
first), or "nobody" (imported, but told to leave MPI alone).
"""

import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np

kind, starter = sys.argv[1:3]
if starter != "us":
    import mpi4py

    mpi4py.rc.initialize = starter == "mpi4py"
    from mpi4py import MPI

    assert MPI.Is_initialized() == (starter == "mpi4py")

if kind == "numpy":
    import hvd_sign as hvd

    rank = None
    one = np.ones(3, np.float32)
    calls = [lambda: hvd.allreduce(one), lambda: hvd.allreduce(one, name="named")]
else:
    if kind == "torch":
        import torch

        import hvd_sign.torch as hvd

        one = torch.ones(3)
    else:
        import tensorflow as tf

        import hvd_sign.tensorflow as hvd

        one = tf.ones(3)
    hvd.init()
    rank = hvd.rank()
    calls = [lambda: hvd.allreduce(one, op=hvd.MajorityVote), lambda: hvd.allreduce(one)]
calls.append(lambda: hvd.allreduce(one, name="later", op=hvd.MajorityVote))


def refused() -> None:
    """Each call is an error that says why, at once; what needs nobody else is not."""
    attempts = [*calls]
    if rank is not None:
        assert hvd.rank() == rank
        attempts += [hvd.init, hvd.join]
    for attempt in attempts:
        try:
            attempt()
        except RuntimeError as error:
            said = f"{type(error).__name__}: {error}"
        else:
            said = "nothing"
        assert said.startswith("VoteError: MPI and hvd_sign's threads do not survive a fork"), said
    hvd.shutdown()


ENDINGS = {
    "falls off the end": (lambda: None, 0),
    "exits": (lambda: sys.exit(3), 3),
    "raises SystemExit": (lambda: (_ for _ in ()).throw(SystemExit(4)), 4),
    "fails": (lambda: 1 / 0, 1),
    "calls": (refused, 0),
}


def wait(child: int, what: str) -> int:
    """The exit status of a child that gets twenty seconds."""
    for _ in range(400):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError(f"the child that {what} hangs")


def vote() -> None:
    for call in calls:
        assert np.asarray(call()).tolist() == [1, 1, 1]


vote()
for what, (_, status) in ENDINGS.items():
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        break  # as a rank would end: by the end of this file, with all exit handlers
    got = wait(child, what)
    assert got == status, f"the child that {what} ended with {got}"
    vote()  # the parent is none the worse
if child == 0:
    ENDINGS[what][0]()
else:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
    if kind == "torch":
        numbers = torch.utils.data.DataLoader(
            range(8), batch_size=4, num_workers=2, multiprocessing_context="fork"
        )
        assert [batch.tolist() for batch in numbers] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    subprocess.run([sys.executable, "-c", "print('subprocess')"], check=True, timeout=60)
    vote()
    print("a rank is done", flush=True)
