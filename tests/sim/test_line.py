"""Resyncs in a line: what travels in a train, and what goes by itself."""

from __future__ import annotations

from twin.model.meta import Key
from twin.sim.line import Line

KEYS = [Key("ns", name) for name in "abcdefgh"]
COST = 10


def known(keys: list[Key] = KEYS) -> Line:
    """The line of a controller that knows these keys unchanged and polls none of them."""
    line = Line(train=2)
    line.memos = dict.fromkeys(keys, (COST, None))
    return line


def test_a_train_that_another_resync_broke_up_comes_again_without_the_keys_that_left_it() -> None:
    line = known()
    line.enter_all(KEYS, 0, {})
    line.pass_over(0, COST)
    line.enter_all(KEYS[:2], 2 * COST, {})
    line.pass_over(2 * COST, 1000)
    line.enter_all(KEYS, 1000, {})

    line.expose(KEYS[0])

    assert line.first_run(1000) == 1000
