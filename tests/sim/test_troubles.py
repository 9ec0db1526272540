"""Overlapping troubles of one kind on one target: which value rules, and who is told."""

from __future__ import annotations

import pytest

from twin.sim.troubles import Troubles


@pytest.mark.parametrize(("ends", "told"), [
    ("ab", ["a", "b", ""]), ("ba", ["a", "b", "a", ""]),
])
def test_the_latest_begun_that_lasts_rules(ends: str, told: list[str]) -> None:
    heard: list[str] = []
    troubles = Troubles()
    heal = {value: troubles.begin("dms", value, "", heard.append) for value in "ab"}

    for value in ends:
        heal[value]()

    assert heard == told


def test_the_same_value_twice_is_told_once_and_lasts_until_the_last_ends() -> None:
    heard: list[bool] = []
    troubles = Troubles()
    first, second = (troubles.begin("api", True, False, heard.append) for _ in range(2))

    second()
    second()
    assert heard == [True]
    first()
    assert heard == [True, False]


def test_targets_and_kinds_are_apart() -> None:
    heard: list[object] = []
    troubles = Troubles()
    troubles.begin(("slow", "a"), 2, 1, heard.append)
    end = troubles.begin(("slow", "b"), 3, 1, heard.append)
    end()
    assert heard == [2, 3, 1]


def test_every_value_is_told_oldest_first_where_none_rules() -> None:
    heard: list[tuple[int, ...]] = []
    troubles = Troubles()
    first = troubles.begin("jobs", 1, None, heard.append, every=True)
    troubles.begin("jobs", 2, None, heard.append, every=True)
    first()
    assert heard == [(1,), (1, 2), (2,)]
