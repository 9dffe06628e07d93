"""The command ``hvd-sign``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hvd_sign._version import __version__
from hvd_sign.core import trace
from hvd_sign.core.launch import check_not_a_copy
from hvd_sign.core.process import load_mpi
from hvd_sign.doctor import command
from hvd_sign.runtime import measuring
from hvd_sign.runtime.lifecycle import runtime, shutdown
from hvd_sign.transports import link


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="hvd-sign", description="Tools of hvd_sign.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench_link = commands.add_parser(
        "bench-link",
        help="measure the link between the ranks, for 'auto' settings",
        description="Measures latency and bandwidth between the ranks and the speed of the "
        "kernels, and writes the file that exchange='auto' and bucket_bytes='auto' read. Start it "
        "as the training: "
        "mpirun -np 8 hvd-sign bench-link",
    )
    bench_link.add_argument("--out", type=Path, default=link.default_file(), metavar="FILE")
    bench_link.add_argument(
        "--seconds", type=float, default=2.0, help="about how long (%(default)s)"
    )
    timeline = commands.add_parser(
        "timeline",
        help="merge timelines, Horovod's too, into one",
        description="Merges what HVD_SIGN_TIMELINE and HOROVOD_TIMELINE left into one Chrome "
        "trace on one clock, with a process for each file. Files of a program that was killed, or "
        "still runs, are read as far as they go. Ranks on several machines agree as well as their "
        "machines' clocks do.",
    )
    timeline.add_argument("out", type=Path, metavar="OUT.json")
    timeline.add_argument("files", type=Path, nargs="+", metavar="FILE")
    doctor = commands.add_parser(
        "doctor",
        help="tell what is wrong with the set-up, and what helps",
        description="Looks at MPI, Horovod, frameworks, GPUs, networks and limits; started as the "
        "training (mpirun -np 8 hvd-sign doctor) also at whether the ranks reach each other, at "
        "their clocks, a vote among them, and their link. The exit status is 1 if a check has "
        "failed.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=command.names(),
        metavar="CHECK",
        help="leave out a check, by its name in the table (link, PyTorch); may be given again; "
        "'MPI start' leaves out all that ranks do together",
    )
    doctor.add_argument(
        "--timeout",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="how long a rank is waited for (%(default)g)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.command == "timeline":
        return _timeline(chosen.out, chosen.files)
    if chosen.command == "doctor":
        if chosen.timeout <= 0:
            parser.error(f"--timeout: expected a number above zero, got {chosen.timeout:g}")
        return command.run(document=chosen.json, skip=chosen.skip, seconds=chosen.timeout)
    if chosen.seconds <= 0:
        parser.error(f"--seconds: expected a number above zero, got {chosen.seconds:g}")
    return _bench_link(chosen.out, chosen.seconds)


def _bench_link(out: Path, seconds: float) -> int:
    world = load_mpi().COMM_WORLD
    if world.Get_size() == 1:
        why = "one rank has no link; start it with mpirun"
        try:
            check_not_a_copy(1, "MPI")
        except RuntimeError as error:
            why = str(error)
        print(f"hvd-sign bench-link: {why}", file=sys.stderr)
        return 2
    transport = runtime().transport(world.Dup())
    model = measuring.measure(transport, seconds=seconds)
    transport.close(release=True)
    if world.Get_rank() == 0:
        link.save(model, out)
        for where, latency, bandwidth in (
            ("", model.latency, model.bandwidth),
            (", inside a node", model.local_latency, model.local_bandwidth),
            (", between nodes' leaders", model.node_latency, model.node_bandwidth),
        ):
            if latency is not None and bandwidth is not None:
                print(f"latency    {1e6 * latency:10.1f} us a message{where}")
                print(f"bandwidth  {bandwidth / 1e6:10.1f} MB/s a rank{where}")
        print(f"pack       {model.pack / 1e9:10.2f} billion coordinates/s")
        print(f"tally      {model.tally / 1e9:10.2f} GB of ballots/s")
        print(f"apply      {model.apply / 1e9:10.2f} billion coordinates/s")
        if model.vote is not None and model.segment is not None:
            print(f"vote       {1e6 * model.vote:10.1f} us for a single small segment")
            print(f"segment    {1e6 * model.segment:10.1f} us for each further one")
        print(f"written to {out}")
    shutdown()
    return 0


def _timeline(out: Path, files: Sequence[Path]) -> int:
    try:
        merged = trace.merge(files)
        out.write_text(json.dumps(merged))
    except (OSError, ValueError) as error:
        print(f"hvd-sign timeline: {error}", file=sys.stderr)
        return 2
    print(f"{len(merged['traceEvents'])} events of {len(files)} files written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
