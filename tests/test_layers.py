"""The core's packages lie in layers: imports go downwards alone, and nowhere in a circle.

Imports for type checking and those within functions count like all others.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

REPO = Path(__file__).resolve().parent.parent
LAYERS = (
    "core",
    "algorithms",
    "devices",
    "votes",
    "transports",
    "engine",
    "exchanges",
    "rounds",
    "runtime",
    "standalone",
    "frontend",
    "doctor",
)
FRAMEWORKS = {"torch", "tensorflow", "keras", "horovod"}
TREES = {"hvd_sign": REPO, "hvd_sign_torch": REPO / "torch", "hvd_sign_tf": REPO / "tf"}
COMPILED = {"hvd_sign._kernels", "hvd_sign._engine"}


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str) -> dict[str, Path]:
    root = TREES[package]
    return {module_of(path, root): path for path in sorted((root / package).rglob("*.py"))}


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules that a file imports; of those that are known, the innermost ones."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known | COMPILED else str(node.module))
    return found


def graph(package: str) -> dict[str, set[str]]:
    files = sources(package)
    return {module: imports(path, set(files)) & set(files) for module, path in files.items()}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Every circle that a walk along the arrows runs into, as the modules on it."""
    found, done = [], set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(arrows.get(module, ())):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(arrows):
        walk(module, [])
    return found


def layer(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else None


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("package", TREES)
def test_no_imports_in_a_circle(package):
    assert circles(graph(package)) == []


def test_layers_are_those_that_there_are():
    folders = {path.parent.name for path in (REPO / "hvd_sign").glob("*/__init__.py")}
    assert folders - {"tensorflow", "torch", "keras"} == set(LAYERS)


def test_imports_go_down():
    for module, targets in graph("hvd_sign").items():
        for target in targets:
            above, below = layer(module), layer(target)
            if above is None:
                continue
            assert below is not None or target == "hvd_sign.errors" or target == "hvd_sign._version"
            assert below is None or below <= above, f"{module} imports {target}, which is above it"


def test_the_core_imports_no_framework():
    files = sources("hvd_sign")
    for module, path in files.items():
        if layer(module) is None:
            continue
        found = {name.partition(".")[0] for name in imports(path, set(files))}
        assert not found & FRAMEWORKS, f"{module} imports {found & FRAMEWORKS}"
