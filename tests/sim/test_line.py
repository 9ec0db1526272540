"""Resyncs in a line: what travels in a train, what goes by itself, and how long what is passed over stood in line."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twin.model.meta import Key
from twin.sim.line import Line, Part

KEYS = [Key("ns", name) for name in "abcdefgh"]
COST = 10


def known(keys: list[Key] = KEYS) -> Line:
    """The line of a controller that knows these keys unchanged and polls none of them."""
    line = Line(train=2)
    line.memos = dict.fromkeys(keys, (COST, None))
    return line


def standing(line: Line) -> list[Any]:
    """Who stands in line: keys by their name, parts of trains by the names of all."""
    return ["".join(key.name for key in entry.train.keys[entry.first:entry.end]) if isinstance(entry, Part)
            else entry.name for entry in line.line]


def test_a_key_that_is_known_unchanged_again_joins_the_train_of_the_next_resync() -> None:
    line = known()
    line.enter_all(KEYS, 0, {})
    line.pass_over(0, 1000)
    line.expose(KEYS[3])

    line.enter_all(KEYS, 1000, {})
    assert standing(line) == ["abc", "d", "efgh"]
    assert line.first_run(1000) == 1000 + 3 * COST

    line.pass_over(1000, 2000)
    line.take()
    line.memos[KEYS[3]] = (3 * COST, None)
    line.pass_over(1000 + 6 * COST, 2000)
    line.enter_all(KEYS, 2000, {})
    assert standing(line) == ["abcdefgh"]
    passed = line.pass_over(2000, 3000)
    assert passed is not None
    assert passed.spent_ns == 10 * COST


def test_a_key_that_is_worked_on_at_the_next_resync_is_told_and_not_in_line() -> None:
    line = known()
    line.enter_all(KEYS, 0, {})
    line.pass_over(0, 1000)

    assert line.enter_all(KEYS, 75, {KEYS[7]: 80}) == [KEYS[7]]
    assert standing(line) == ["abcdefg"]


def test_keys_that_are_in_line_already_do_not_enter_again() -> None:
    line = known()
    line.enter(KEYS[4], 0)
    line.enter_all(dict.fromkeys(KEYS[:3]), 0, {})
    line.enter_all(dict.fromkeys(reversed(KEYS)), 0, {})

    assert standing(line) == ["e", "abc", "hgfd"]


def test_a_train_that_another_resync_broke_up_comes_again_without_the_keys_that_left_it() -> None:
    line = known()
    line.enter_all(KEYS, 0, {})
    line.pass_over(0, COST)
    line.enter_all(KEYS[:2], 2 * COST, {})
    line.pass_over(2 * COST, 1000)
    line.enter_all(KEYS, 1000, {})

    line.expose(KEYS[0])

    assert line.first_run(1000) == 1000


def polled(delay: int) -> Line:
    """The line of a controller that polls all keys after this delay; each was passed over once, one after the other."""
    line = Line(train=2)
    line.memos = dict.fromkeys(KEYS, (COST, delay))
    line.enter_all(KEYS, 0, {})
    line.pass_over(0, 79)
    return line


FIRST_ROUND = Counter(range(0, 8 * COST, COST))


def test_polls_of_a_saturated_worker_wait_for_the_round_less_their_delay_and_cost() -> None:
    line, free, passes = polled(30), 80, 0
    assert line.waits.counts() == FIRST_ROUND
    for _ in range(5):
        line.mature(free)
        passed = line.pass_over(free, 1000)
        assert passed is not None
        passes, free = passes + passed.passes, passed.free

    assert passes > 20
    assert line.waits.counts() - FIRST_ROUND == {80 - 30 - COST: passes}


def test_polls_of_a_train_that_cost_differently_wait_differently() -> None:
    line = Line(train=2)
    line.memos = {key: (COST + n % 2, 30) for n, key in enumerate(KEYS)}
    line.enter_all(KEYS, 0, {})
    line.pass_over(0, 1000)
    line.mature(200)
    before = line.waits.counts().copy()
    line.pass_over(200, 1000)

    assert line.waits.counts() - before == {200 - 30 - COST: 4, 200 - 30 - COST - 1: 4}


def test_whole_rounds_of_a_free_worker_wait_for_nothing() -> None:
    line = polled(1000)
    passed = line.rotate(80, 100_000, {})
    assert passed is not None
    assert passed.passes > 90 * len(KEYS)

    assert line.waits.counts() - FIRST_ROUND == {0: passed.passes}


def test_whole_rounds_of_a_saturated_worker_wait_after_the_first_for_the_round_less_delay_and_cost() -> None:
    line = polled(30)
    passed = line.rotate(200, 100_000, {})
    assert passed is not None
    assert passed.passes > 1000 * len(KEYS)

    assert line.waits.counts() - FIRST_ROUND == {200 - COST - 30: 8, 80 - COST - 30: passed.passes - 8}
