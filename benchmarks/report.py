"""Tables, plots and one HTML page from any number of result files.

    python -m benchmarks.report results/* --out report

RESULT is a result.json of `benchmarks.train`, `benchmarks.allreduce` or `benchmarks.overlap`, or
the directory that it lies in; of any machine, network, number of workers and framework. What was
measured alike with two frameworks is shown together. Prints the tables; writes index.html, which
needs no other file and fetches nothing, and the plots as PNG files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.emulation import launch
from benchmarks.errors import BenchError
from benchmarks.reporting import page, plots, results, scaling

PAGE = "index.html"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR")
    return parser.parse_args(argv)


def run(given: argparse.Namespace, console: Console) -> None:
    """Prints the tables and writes the page and the plots; all of it or, on an error, nothing.

    Raises ResultError for a file that is no result of this version, BenchError where it cannot
    write.
    """
    files = (path / results.FILE if path.is_dir() else path for path in given.results)
    loaded = [_load(path) for path in dict.fromkeys(path.resolve() for path in files)]
    shown = page.report(loaded)
    for section in shown.sections:
        for result in section.results:
            console.print(page.TABLES[section.kind](result), "")
    for runs in scaling.scalings(loaded):
        console.print(scaling.table(runs), "")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=given.out) as name:
            folder = Path(name)
            for stem, plot in shown.plots:
                plots.save_png(plot, folder / f"{stem}.png")
            (folder / PAGE).write_text(page.render(shown))
            for path in sorted(folder.iterdir()):
                path.replace(given.out / path.name)
    except OSError as error:
        raise BenchError(f"--out: cannot write to {given.out}: {error}") from error
    console.print(f"{given.out / PAGE}, and {len(shown.plots)} plots beside it")


def _load(path: Path) -> results.Result:
    result = results.load(path)
    if result.get("kind") not in page.TABLES:
        expected = ", ".join(page.TABLES)
        raise results.ResultError(
            f"{path}: expected a result of kind {expected}, got {result.get('kind')!r}"
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("report", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
