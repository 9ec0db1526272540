"""Process memory: background tasks, and what a restart forgets."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from typing import Any

import pytest

from twin.backends.base import Crash, Operation, RpcError
from twin.runtime.memory import Memory


def waiting(*ops: Operation) -> Generator[Operation, Any, list[Any]]:
    values = []
    for op in ops:
        values.append((yield op))
    return values


def test_a_task_runs_to_its_first_wait_and_goes_on_when_the_operation_ends() -> None:
    memory, first, second = Memory(), Operation("one"), Operation("two")
    task = memory.start("t", waiting(first, second), attempt=3)
    assert (task.finished, task.attempt) == (False, 3)
    first.succeed(1)
    assert not task.finished
    second.succeed(2)
    assert (task.finished, task.error, task.value) == (True, "", [1, 2])


def test_operations_that_have_ended_already_are_not_waited_for() -> None:
    memory, done = Memory(), Operation("one")
    done.succeed("now")
    assert memory.start("t", waiting(done, done)).value == ["now", "now"]


def test_a_failed_operation_is_raised_inside_the_task_and_shown_as_its_error() -> None:
    memory, op, caught = Memory(), Operation("one"), []

    def body() -> Generator[Operation, Any, None]:
        try:
            yield op
        except RpcError as error:
            caught.append(error.code)
            raise

    task = memory.start("t", body())
    op.fail(RpcError("UNAVAILABLE", "connection refused"))
    assert caught == ["UNAVAILABLE"]
    assert (task.finished, task.error) == (True, "connection refused")


def test_a_bug_in_a_task_is_not_swallowed() -> None:
    def body() -> Generator[Operation, Any, None]:
        yield from ()
        raise KeyError("oops")

    with pytest.raises(KeyError):
        Memory().start("t", body())


def test_a_forgotten_task_goes_on_to_its_end_of_which_nobody_is_told() -> None:
    memory, first, second, told = Memory(), Operation("one"), Operation("two"), list[Hashable]()
    memory.touched = told.append
    task = memory.start("t", waiting(first, second))
    memory.forget("t")
    first.succeed(1)
    assert not task.finished
    second.succeed(2)
    assert (memory.task("t"), task.value, told) == (None, [1, 2], ["t"])


def test_a_forgotten_task_ends_with_its_process() -> None:
    memory, op = Memory(), Operation("one")
    task = memory.start("t", waiting(op))
    memory.forget("t")
    memory.drop()
    op.succeed(1)
    assert not task.finished


def test_a_cancelled_task_ends_at_once_and_its_token_is_told() -> None:
    memory, op, closed, told = Memory(), Operation("one"), [], list[Hashable]()

    def body() -> Generator[Operation, Any, None]:
        try:
            yield op
        finally:
            closed.append(True)

    memory.touched = told.append
    task = memory.start("t", body())
    memory.cancel("t")
    assert (memory.task("t"), closed, told) == (None, [True], ["t"])
    op.succeed(1)
    assert not task.finished


def test_a_restart_forgets_tasks_and_values_but_the_operations_go_on() -> None:
    memory, op, closed = Memory(), Operation("one"), []

    def body() -> Generator[Operation, Any, None]:
        try:
            yield op
        finally:
            closed.append(True)

    memory.get(list).append("remembered")
    memory.start("t", body())
    memory.drop()
    assert (memory.task("t"), memory.get(list), closed, op.finished) == (None, [], [True], False)
    op.succeed()
    assert memory.task("t") is None


def test_a_task_started_anew_under_its_token_has_nothing_of_the_old_one_which_goes_on() -> None:
    memory, old, new = Memory(), Operation("old"), Operation("new")
    forgotten = memory.start("t", waiting(old))
    memory.forget("t")
    task = memory.start("t", waiting(new), attempt=1)
    old.succeed("stale")
    assert (forgotten.value, memory.task("t"), task.finished) == (["stale"], task, False)
    new.succeed("fresh")
    assert task.value == ["fresh"]


def test_a_crash_in_a_resumed_task_ends_the_process_that_owns_it() -> None:
    memory, op, crashes = Memory(), Operation("one"), []

    def body() -> Generator[Operation, Any, None]:
        yield op
        raise Crash

    memory.crashed = lambda: crashes.append(True)
    memory.start("t", body())
    op.succeed()
    assert crashes == [True]


def test_the_end_of_a_task_tells_whoever_read_it() -> None:
    memory, op, told, read = Memory(), Operation("one"), list[Hashable](), list[Hashable]()
    memory.touched, memory.read = told.append, read.append
    memory.start("t", waiting(op))
    memory.task("t")
    assert (read, told) == (["t"], [])
    op.succeed()
    assert told == ["t"]
