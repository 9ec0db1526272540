"""Quantiles of waits are those of the single passes, however they were noted."""

from __future__ import annotations

import random

from twin.sim.waits import Waits, quantiles_s

SHARES = (0.0, 0.5, 0.95)
MS = 1_000_000


def test_quantiles_of_counted_waits_are_those_of_the_passes_one_by_one() -> None:
    rng = random.Random(3)
    for n in (1, 2, 3, 20, 70_000):
        first, second, passes = Waits(), Waits(), []
        for _ in range(n):
            wait, count = rng.choice([0, 1, 7, rng.randrange(10**9)]), rng.choice([0, 1, 5])
            first.add(wait)
            second.add_many(wait + 1, count)
            passes += [wait] + [wait + 1] * count
        second.add_each([4, 4])
        passes = sorted([*passes, 4, 4])

        assert quantiles_s([first, second], SHARES) == [passes[int(len(passes) * share)] / 10**9 for share in SHARES]


def test_without_passes_nothing_waited() -> None:
    assert quantiles_s([], SHARES) == quantiles_s([Waits()], SHARES) == [0.0, 0.0, 0.0]


def test_a_great_many_different_waits_are_cut_to_milliseconds_and_all_passes_kept() -> None:
    waits = Waits(distinct=100)
    waits.add_each(range(0, 50 * MS, MS // 2))
    assert len(waits.counts()) == 100

    waits.add_many(3 * MS + 7, 9)

    assert waits.counts() == {n * MS: 2 + 9 * (n == 3) for n in range(50)}
