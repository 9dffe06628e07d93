"""Buckets: which tensors share them, and in which order backward completes them."""

from __future__ import annotations

import pytest

from hvd_sign.core.buckets import TensorSpec, plan_buckets

pytestmark = pytest.mark.quick


def specs(*dense: int, count: int = 6, size: int = 100) -> list[TensorSpec]:
    return [TensorSpec(f"t{i}", (size,), "float32", i, i not in dense) for i in range(count)]


def ordinals(buckets: list) -> list[list[int]]:
    assert [bucket.index for bucket in buckets] == list(range(len(buckets)))
    return [[spec.ordinal for spec in bucket.specs] for bucket in buckets]


def test_from_the_last_tensor_on():
    assert ordinals(plan_buckets(specs(), 800)) == [[5, 4], [3, 2], [1, 0]]


def test_dense_tensors_share_buckets_of_their_own():
    """One is launched once backward has come to the first of its tensors."""
    assert ordinals(plan_buckets(specs(1, 3, 5), 10**6)) == [[5, 3, 1], [4, 2, 0]]
    assert ordinals(plan_buckets(specs(0, 3, 5), 800)) == [[5, 3], [4, 2], [1], [0]]
    assert ordinals(plan_buckets(specs(0, 1), 10**6)) == [[5, 4, 3, 2], [1, 0]]


def test_whatever_group_they_are_in():
    groups = [[0, 1, 2], [3, 5]]
    assert ordinals(plan_buckets(specs(), 800, groups)) == [[5, 3], [4], [2, 1, 0]]
    assert ordinals(plan_buckets(specs(1, 5), 10**6, groups)) == [[4], [3], [5, 1], [2, 0]]


def test_all_of_them():
    assert ordinals(plan_buckets(specs(*range(6)), 1200)) == [[5, 4, 3], [2, 1, 0]]
