"""What is submitted, as text: a script of `slurm/` with directives, settings and arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DIRECTIVE = re.compile(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", re.MULTILINE)
FLAG = ""  # the value of a directive that has none


@dataclass(frozen=True)
class Job:
    """A job of Slurm.

    Attributes:
        kind: the script, slurm/<kind>.sbatch.
        nodes, ranks_per_node: where its ranks are.
        directives: of sbatch, over the script's own; the value FLAG for those without one.
        settings: variables of slurm/common.sh and of the script.
        arguments: of the script.
        tasks: of its array; none: it is no array.
    """

    kind: str
    nodes: int
    ranks_per_node: int
    directives: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    tasks: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Unique in a submission."""
        return f"{self.kind}-{self.nodes}-node{'s' if self.nodes > 1 else ''}"


def directives(text: str) -> dict[str, str]:
    """The directives of a script, by their long names."""
    return {name: value or FLAG for name, value in DIRECTIVE.findall(text)}


def render(job: Job, script: str, root: Path) -> str:
    """The text to submit.

    Args:
        job: what is to run.
        script: the text of slurm/<kind>.sbatch, whose directives hold where the job has no others.
        root: the repository, as the nodes see it.
    """
    asked = directives(script)
    asked.update({"nodes": str(job.nodes), "ntasks-per-node": str(job.ranks_per_node)})
    if job.tasks:
        asked["array"] = ",".join(map(str, job.tasks))
    asked.update(job.directives)
    settings = {"HVD_SIGN_ROOT": str(root), **job.settings}
    lines = [
        "#!/bin/bash",
        f"# {job.title}: slurm/{job.kind}.sbatch, by `python -m benchmarks.submit`.",
        *(f"#SBATCH --{name}{'=' + value if value else ''}" for name, value in asked.items()),
        "set -euo pipefail",
        *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
        f"set -- {shlex.join(job.arguments)}".rstrip(),
        f"source {shlex.quote(str(root / 'slurm' / job.kind))}.sbatch",
    ]
    return "\n".join(lines) + "\n"
