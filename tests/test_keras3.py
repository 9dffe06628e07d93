"""What the second environment is: the newest TensorFlow with Keras 3, and no Horovod."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import launch
import pytest

REPO = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    Path(sys.prefix).name != ".venv-keras3", reason="is run by make test-keras3"
)


def test_the_newest_tensorflow_is_found_and_no_horovod():
    code = (
        "import keras, numpy, tensorflow as tf\n"
        "assert tf.keras.__version__ == keras.__version__, tf.keras.__version__\n"
        "print(tf.__version__, keras.__version__, numpy.__version__)"
    )
    quiet = launch.environment({"TF_CPP_MIN_LOG_LEVEL": "2"})
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=quiet, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pinned = (REPO / "constraints-keras3.txt").read_text()
    for name, version in zip(("tensorflow", "keras", "numpy"), done.stdout.split(), strict=True):
        assert f"\n{name}=={version}" in pinned
    assert not launch.has("horovod")
