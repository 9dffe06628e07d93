"""Counts of names in bounded memory."""

from __future__ import annotations

from hvd_sign.runtime.counting import Counts


def test_names_that_are_kept_are_counted() -> None:
    counts = Counts(2)
    assert counts["a"] == 0
    counts["a"] = 1
    counts["b"] = 1
    counts["a"] = 2
    assert (counts["a"], counts["b"], counts["c"], len(counts)) == (2, 1, 0, 2)


def test_the_name_that_was_not_used_for_longest_is_forgotten() -> None:
    counts = Counts(2)
    for name, count in (("a", 1), ("b", 1), ("a", 2), ("c", 1)):
        counts[name] = count
    assert len(counts) == 2
    assert (counts["a"], counts["c"]) == (2, 1)
    assert counts["b"] == 1  # what it had, so that it comes to no number twice
    counts["d"] = 2
    assert counts["a"] == counts["new"] == 2


def test_no_name_has_a_number_twice_however_many_there_are() -> None:
    counts = Counts(5)
    had: set[tuple[str, int]] = set()
    for _ in range(20):
        for name in map(str, range(12)):
            number = counts[name]
            assert (name, number) not in had
            had.add((name, number))
            counts[name] = number + 1
    assert len(counts) == 5
