"""Deliberately broken: a skip inside ranks would hide a test."""

from __future__ import annotations

import pytest


def test_skips():
    pytest.skip("the deliberate skip")
