"""The examples of docs/architecture.md: their imports are right, and what they derive from is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def defined(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(block, names)  # annotations and bodies refer to nothing but what is imported there
    return names


@pytest.mark.parametrize("name", ["Momentum", "Esteem", "Server", "Far"])
def test_examples_derive_from_what_they_import(name):
    (block,) = [block for block in BLOCKS if f"class {name}(" in block]
    kind = defined(block)[name]
    # The page leaves out what a device has to do for checkpoints.
    assert set(getattr(kind, "__abstractmethods__", ())) <= {"to_host", "from_host"}


def test_all_five_seams_have_an_example():
    assert len(BLOCKS) == 5


def test_the_algorithm_and_the_rule_do_what_the_page_says():
    momentum = defined(next(b for b in BLOCKS if "class Momentum" in b))["Momentum"](0.5)
    signal, new = momentum.step(np.float32([2, -4]), {"v": np.float32([1, 1])})
    assert signal.tolist() == new["v"].tolist() == [1.5, -1.5]
    assert tuple(momentum.linear()) == (0.5, 0.5, 0.5, 0.5)
    esteem = defined(next(b for b in BLOCKS if "class Esteem" in b))["Esteem"]()
    state = esteem.initial(3)
    assert esteem.weights(state, 3) == [15, 15, 15]
    state = esteem.learn(state, np.uint64([10, 10, 0]), np.uint64([10, 0, 0]))
    assert esteem.weights(state, 3) == [15, -15, 15]
