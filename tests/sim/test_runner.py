"""The collapsed runner against the event-by-event one: same effects at the same times, same work charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from twin.model.meta import Key
from twin.runtime.reconcile import Context, Result, Watch
from twin.sim.clock import EPOCH, TwinEnvironment
from twin.sim.line import TRAIN, Part
from twin.sim.runner import Meter, Runner, touch

KEYS = [Key("ns", name) for name in "abcdef"]
MANY = [Key("ns", f"k{n:02}") for n in range(40)]


@dataclass
class Board:
    """A world of numbers: each key's wanted and shown value, and who read what."""

    env: TwinEnvironment
    wanted: dict[Key, int] = field(default_factory=dict)
    shown: dict[Key, int] = field(default_factory=dict)
    readers: dict[Any, dict[Any, None]] = field(default_factory=dict)
    log: list[tuple[int, str, Key, int]] = field(default_factory=list)
    followers: list[Runner] = field(default_factory=list)
    lag: int = 0

    def want(self, key: Key, value: int) -> None:
        touch(self.readers, key)
        self.wanted[key] = value

    def show(self, by: str, key: Key, value: int, at: int) -> None:
        self.log.append((at, by, key, value))
        self.env.call_at(at - self.env.now + self.lag, self._seen, key, value)

    def _seen(self, key: Key, value: int) -> None:
        touch(self.readers, ("shown", key))
        self.shown[key] = value
        for runner in self.followers:
            runner.add(key)


@dataclass
class Copier:
    """Shows what is wanted; polls every `period`. Its passes cost by key."""

    board: Board
    meter: Meter
    name: str
    period: float | None
    cost: dict[Key, int]
    deadline_s: float | None = None
    watches: tuple[Watch, ...] = ()

    def reconcile(self, ctx: Context, key: Key) -> Result:
        board, meter = self.board, self.meter
        meter.charge_ns(self.cost[key])
        meter.read(board.readers, key)
        meter.read(board.readers, ("shown", key))
        wanted = board.wanted.get(key, 0)
        if self.deadline_s is not None and ctx.reached(EPOCH + self.deadline_s):
            wanted += 100
        if wanted == 13:
            return Result(error="unlucky")
        if board.shown.get(key, 0) != wanted:
            meter.before("show")
            board.show(self.name, key, wanted, board.env.now + meter.cost_ns)
        return Result(requeue_after_s=self.period)


def story(collapse: bool, changes: list[tuple[int, int, int]], costs: list[int], lag: int, workers: int,
          deadline: float | None, wakes: Sequence[tuple[int, int, int]] = (), *, keys: Sequence[Key] = KEYS,
          train: int = TRAIN, resyncs: Sequence[tuple[int, int, int]] = ()) -> tuple[Any, ...]:
    """`changes`: (time, key, value); `wakes`: (time, runner, key), a watch event of nothing that the pass reads;
    `resyncs`: (time, runner, step), every so manieth key at once; `train`: polls that are worth a train.
    """
    env = TwinEnvironment()
    board = Board(env, lag=lag)
    runners: list[Runner] = []
    for index, (name, period) in enumerate((("fast", 5.0), ("slow", 7.0), ("still", None))):
        meter = Meter(name)
        cost = {key: costs[(i + index) % len(costs)] for i, key in enumerate(keys)}
        reconciler = Copier(board, meter, name, period, cost, deadline)
        runners.append(Runner(env, reconciler, meter, index=index, collapse=collapse,
                              workers=workers if name == "slow" else 1, train=train))
    board.followers = runners
    for key in keys:
        for runner in runners[:2]:
            runner.add(key)
    for at, key, value in changes:
        env.call_at(at, board.want, keys[key % len(keys)], value)
    for at, which, key in wakes:
        env.call_at(at, runners[which].add, keys[key % len(keys)])
    for at, which, step in resyncs:
        env.call_at(at, runners[which].add_all, keys[::step])
    env.run(until=120_000_000_000)
    for runner in runners:
        runner.settle()
    passes = [(r.stats.run + r.stats.skipped, r.stats.busy_ns, r.stats.errors, r.stats.waits.counts(), *left(r))
              for r in runners]
    return board.log, board.shown, passes, sum(r.stats.skipped for r in runners)


def left(runner: Runner) -> tuple[list[Key], dict[Key, int]]:
    """The line and the timers at the end."""
    queue = runner.queue
    queue.mature(runner.env.now)
    queue.dissolve()
    line: list[Key] = []
    for entry in queue.line:
        line += entry.train.keys[entry.first:entry.end] if isinstance(entry, Part) else [entry]
    return line, dict(queue.due)


SECONDS = 1_000_000_000
TIMES = st.one_of(st.integers(0, 24).map(lambda n: n * 5 * SECONDS), st.integers(0, 110 * SECONDS))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(TIMES, st.integers(0, 5), st.sampled_from([0, 1, 2, 13])), max_size=12),
    costs=st.lists(st.sampled_from([0, 1, 7_000_000, 900 * 10**6, SECONDS, 3 * SECONDS, 5 * SECONDS]), min_size=1,
                   max_size=6),
    lag=st.sampled_from([0, 1, 5_000_000, SECONDS]),
    workers=st.sampled_from([1, 1, 2, 3]),
    deadline=st.sampled_from([None, 40.0, 41.5]),
    wakes=st.lists(st.tuples(TIMES, st.integers(0, 2), st.integers(0, 5)), max_size=6),
)
@example(  # keys stand in line behind a long pass when their own timers fire, and then their passes take no time
    changes=[], costs=[5 * SECONDS, 5 * SECONDS, 0, 0, 0, 0], lag=0, workers=1, deadline=None,
    wakes=[(21 * SECONDS, 0, 2), (21 * SECONDS, 0, 3)])
@pytest.mark.slow
def test_collapsed_polling_has_the_effects_of_event_by_event_polling_at_the_same_times(
        changes: Any, costs: Any, lag: int, workers: int, deadline: float | None, wakes: Any) -> None:
    exact = story(False, changes, costs, lag, workers, deadline, wakes)
    collapsed = story(True, changes, costs, lag, workers, deadline, wakes)

    assert exact[0] == collapsed[0]
    assert exact[1] == collapsed[1]
    if workers == 1:
        assert exact[2] == collapsed[2]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(TIMES, st.integers(0, 39), st.sampled_from([0, 1, 2, 13])), max_size=12),
    costs=st.lists(st.sampled_from([0, 1, 7_000_000, 50_000_000, 130 * 10**6, 300 * 10**6, SECONDS]), min_size=1,
                   max_size=4),
    lag=st.sampled_from([0, 1, 5_000_000, SECONDS]),
    deadline=st.sampled_from([None, 40.0, 41.5]),
    wakes=st.lists(st.tuples(TIMES, st.integers(0, 2), st.integers(0, 39)), max_size=12),
    resyncs=st.lists(st.tuples(TIMES, st.integers(0, 2), st.integers(1, 3)), max_size=5),
    train=st.sampled_from([2, 3, 16]),
)
@pytest.mark.slow
def test_trains_of_polls_go_round_as_single_polls_would(
        changes: Any, costs: Any, lag: int, deadline: float | None, wakes: Any, resyncs: Any, train: int) -> None:
    exact = story(False, changes, costs, lag, 1, deadline, wakes, keys=MANY, resyncs=resyncs)
    collapsed = story(True, changes, costs, lag, 1, deadline, wakes, keys=MANY, train=train, resyncs=resyncs)

    assert exact[0] == collapsed[0]
    assert exact[1] == collapsed[1]
    assert exact[2] == collapsed[2]


def test_polls_that_change_nothing_are_not_run() -> None:
    _, _, passes, skipped = story(True, [], [7_000_000], 0, 1, None)

    assert skipped > 150
    assert passes[0][0] == passes[0][1] // 7_000_000


def test_a_saturated_worker_delays_real_work() -> None:
    log, *_ = story(True, [(20 * SECONDS, 5, 1)], [3 * SECONDS], 0, 1, None)

    fast = [at for at, by, _, _ in log if by == "fast"]
    assert fast
    assert fast[0] > 23 * SECONDS
