"""How often whole rounds of polls that change nothing fit into a time, by arithmetic. Times are ns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Poll(NamedTuple):
    """One poll of a round: when it starts in the first round, what it costs, and how far a round moves its start."""

    start: int
    cost: int
    slope: int


def whole_rounds(timers: Sequence[tuple[int, int]], delay: int, free: int, end: int) -> tuple[int, list[Poll]]:
    """How many rounds of these polls start until `end`, and the polls; 0 if that cannot be told without playing them.

    `timers`: when each poll is due and what it costs, in the order in which they fire; each comes again `delay` after
    it ended. The one worker is free from `free` on.

    A poll that starts when it is due moves by delay + cost each round; one that waits for the poll before it moves with
    that one. While it stays the same who waits, all starts are linear in the number of rounds: what holds in the second
    round and in the last holds in between. Where all wait and a round takes longer than any poll's delay, all wait for
    ever and each start moves by the whole round.
    """
    slope, all_wait, longest, linear = -1, True, 0, True
    polls: list[Poll] = []
    for at, cost in timers:
        if at > free:
            all_wait = False
        if not polls or at >= free:
            start, slope = max(at, free), delay + cost
        else:
            start = free
            linear &= delay + cost <= slope
        free = start + cost
        if cost > longest:
            longest = cost
        polls.append(Poll(start, cost, slope))
    last, around = polls[-1].start, free - polls[0].start
    if all_wait and around >= delay + longest:
        return (end - last) // around + 1, [Poll(start, cost, around) for start, cost, _ in polls]
    if not linear:
        return 0, polls
    rounds = (end - last) // slope + 1
    while rounds > 2 and not (_same(polls, 1) and _same(polls, rounds - 1)):
        rounds //= 2
    return rounds, polls


def _same(polls: Sequence[Poll], n: int) -> bool:
    """Does every poll that moves by itself start when it is due in round n, the first one of them after round n - 1?"""
    start, cost, slope = polls[-1]
    free = start + (n - 1) * slope + cost
    for start, cost, slope in polls:
        starts = start + n * slope
        if starts < free:
            return False
        free = starts + cost
    return True
