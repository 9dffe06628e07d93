"""Builds hvd_sign: the core, its kernels, and the bindings that live in torch/ and tf/."""

from __future__ import annotations

import re
from pathlib import Path

import nanobind
from setuptools import Extension, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'"(.+)"', (ROOT / "hvd_sign" / "_version.py").read_text()).group(1)
NANOBIND = Path(nanobind.source_dir())

setup(version=VERSION)
