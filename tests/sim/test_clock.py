"""Virtual time: calls and SimPy processes share one schedule."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import simpy

from twin.sim.clock import EPOCH, SECOND, SimClock, TwinEnvironment, ns


@pytest.fixture
def env() -> TwinEnvironment:
    return TwinEnvironment()


@pytest.fixture
def log() -> list[Any]:
    return []


def test_calls_and_processes_run_in_order_of_time_then_of_being_scheduled(env: TwinEnvironment, log: list[Any]) -> None:
    def story() -> Generator[Any, Any, None]:
        yield env.timeout(20)
        log.append(("process", env.now))

    env.call_at(20, lambda: log.append(("first", env.now)))
    env.process(story())
    env.call_at(10, lambda: log.append(("early", env.now)))
    env.run()
    assert log == [("early", 10), ("first", 20), ("process", 20)]


def test_late_calls_see_everything_else_of_their_instant(env: TwinEnvironment, log: list[Any]) -> None:
    env.call_late(5, log.append, "late")
    env.call_at(5, env.call_at, 0, log.append, "last of the others")
    env.run()
    assert log == ["last of the others", "late"]


def test_a_cancelled_call_is_not_made_and_does_not_move_the_clock(env: TwinEnvironment, log: list[Any]) -> None:
    call = env.call_at(10, log.append, "no")
    env.call_at(5, call.cancel)
    env.run()
    assert (log, env.now, call.pending, env.executed) == ([], 5, False, 1)


def test_run_until_excludes_its_time_and_shows_it(env: TwinEnvironment, log: list[Any]) -> None:
    env.call_at(10, log.append, "at ten")
    env.run(until=10)
    assert (log, env.now) == ([], 10)
    env.run(until=11)
    assert log == ["at ten"]
    with pytest.raises(ValueError, match="greater than the current"):
        env.run(until=11)


def test_run_until_a_process_returns_its_value(env: TwinEnvironment) -> None:
    def story() -> Generator[Any, Any, str]:
        yield env.timeout(3)
        return "done"

    assert env.run(env.process(story())) == "done"
    assert env.now == 3


def test_a_run_can_be_stopped_and_continued(env: TwinEnvironment, log: list[Any]) -> None:
    env.call_at(1, env.stop, "enough")
    env.call_at(1, log.append, "same instant")
    assert env.run() == "enough"
    assert log == []
    env.run()
    assert log == ["same instant"]


def test_an_error_in_a_process_that_nobody_awaits_is_raised(env: TwinEnvironment) -> None:
    def story() -> Generator[Any, Any, None]:
        yield env.timeout(1)
        raise ValueError("boom")

    env.process(story())
    with pytest.raises(ValueError, match="boom"):
        env.run()


def test_step_without_anything_to_do_is_simpys_error(env: TwinEnvironment) -> None:
    env.call_at(1, print).cancel()
    with pytest.raises(simpy.core.EmptySchedule):
        env.step()
    assert env.peek() == float("inf")


def test_a_tie_seed_shuffles_one_instant_and_nothing_else() -> None:
    def order(seed: int | None) -> list[int]:
        env, log = TwinEnvironment(tie_seed=seed), []
        for i in range(20):
            env.call_at(i // 10, log.append, i)
        env.run()
        return log

    assert order(None) == list(range(20))
    assert order(1) == order(1) != order(None)
    assert sorted(order(1)[:10]) == list(range(10))


def test_the_clock_starts_in_may_2025_and_sleeps_whole_nanoseconds(env: TwinEnvironment) -> None:
    clock = SimClock(env)
    assert clock.now() == EPOCH == 1746057600.0
    nap = clock.sleep(1.5)
    env.run()
    assert nap.finished
    assert (clock.now(), env.now) == (EPOCH + 1.5, 3 * SECOND // 2)
    assert ns(0.1) == 100_000_000
    with pytest.raises(ValueError, match="negative"):
        env.call_at(-1, print)
