"""The keywords of votes are documented once; all else that takes them says where."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

import hvd_sign

REPO = Path(__file__).resolve().parent.parent
KEYWORDS = [field.name for field in fields(hvd_sign.VoteOptions)]
ONLY_OPTIMIZERS = {"nonfinite"}
NOT_NUMPYS = {"nonfinite"}
TAKERS = {
    "torch/hvd_sign_torch/voting_optimizer.py": ("DistributedOptimizer", set()),
    "torch/hvd_sign_torch/ops.py": ("allreduce", ONLY_OPTIMIZERS),
    "tf/hvd_sign_tf/optimizer.py": ("DistributedOptimizer", set()),
    "tf/hvd_sign_tf/ops.py": ("allreduce", ONLY_OPTIMIZERS),
    "hvd_sign/frontend/numpy_api.py": ("allreduce", NOT_NUMPYS),
}


def docstring(file: str, name: str) -> str:
    """Of a function, without an import of its framework."""
    tree = ast.parse((REPO / file).read_text())
    (found,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return ast.get_docstring(found) or ""


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_each_keyword_is_documented_with_its_default(keyword):
    text = hvd_sign.VoteOptions.__doc__
    (entry,) = re.findall(rf"(?ms)^        {keyword}: (.*?)(?=^        \w+: |\Z)", text)
    assert "default" in entry


@pytest.mark.parametrize("file", TAKERS)
def test_whatever_takes_them_names_them_and_where_they_are_documented(file):
    name, others = TAKERS[file]
    text = docstring(file, name)
    assert "``hvd_sign.VoteOptions``" in text
    named = {keyword for keyword in KEYWORDS if re.search(rf"``{keyword}``|    {keyword}: ", text)}
    assert named == set(KEYWORDS) - others
    assert '``"sharded"``' not in text  # which would be a second reference


@pytest.mark.parametrize("field", fields(hvd_sign.TrainingOptions), ids=lambda field: field.name)
def test_so_are_those_of_optimizers_alone(field):
    (entry,) = re.findall(
        rf"(?ms)^        {field.name}: (.*?)(?=^        \w+: |\Z)", hvd_sign.TrainingOptions.__doc__
    )
    default = {None: "Default None", 0: "Default 0"}[field.default]
    assert default in " ".join(entry.split())
    for taker in ("torch/hvd_sign_torch/voting_optimizer.py", "tf/hvd_sign_tf/optimizer.py"):
        assert f"``{field.name}``" in docstring(taker, "DistributedOptimizer")
    assert f"`{field.name}`" in (REPO / "README.md").read_text()


def test_the_readme_lists_them():
    rows = re.findall(r"(?m)^\| `(\w+)` \|", (REPO / "README.md").read_text())
    assert set(KEYWORDS) <= set(rows)
