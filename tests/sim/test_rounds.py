"""Whole rounds of polls by arithmetic are those that playing them one by one gives."""

from __future__ import annotations

import random

from twin.sim.rounds import whole_rounds


def played(timers: list[tuple[int, int]], delay: int, free: int, rounds: int) -> list[int]:
    """When the polls of the last of these rounds start, each played after the other."""
    due = [at for at, _ in timers]
    starts: list[int] = []
    for _ in range(rounds):
        starts = []
        for i, (_, cost) in enumerate(timers):
            starts.append(max(due[i], free))
            free = starts[-1] + cost
            due[i] = free + delay
    return starts


def test_the_last_round_starts_as_it_does_when_every_round_is_played() -> None:
    rng = random.Random(5)
    told = 0
    for _ in range(1000):
        delay, at = rng.choice([5, 50, 500]), 0
        timers = []
        for _ in range(rng.randint(1, 6)):
            at += rng.choice([0, 1, 7, 60])
            timers.append((at, rng.choice([1, 2, 9, 30])))
        free, end = rng.choice([0, 3, 100]), at + rng.choice([0, 200, 5000])
        rounds, polls = whole_rounds(timers, delay, free, end)
        if rounds < 3:
            continue
        told += 1
        starts = played(timers, delay, free, rounds)
        assert [p.start + (rounds - 1) * p.slope for p in polls] == starts
        assert starts[-1] <= end
    assert told > 100


def test_polls_that_all_wait_move_by_the_whole_round() -> None:
    rounds, polls = whole_rounds([(0, 4), (0, 4), (0, 4)], 5, 10, 130)

    assert rounds == 10
    assert {p.slope for p in polls} == {12}
