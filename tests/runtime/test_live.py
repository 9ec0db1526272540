"""The thread runner: what client-go and controller-runtime promise, on real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from twin.backends.base import Conflict, Operation, RpcError
from twin.model.meta import Key
from twin.runtime.backstage import Backstage, LiveMemory, LiveOperation
from twin.runtime.live import LiveRunner, NotLeading, Readers
from twin.runtime.memory import Task
from twin.runtime.reconcile import DONE, Context, Result, Terminal, Watch

KEY = Key("ns", "a")
LATER = Key("ns", "later")
"""Worked on when all that came before it is done."""


def eventually(true: Callable[[], bool], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.002)


class Probe:
    """A reconciler that does what it is told and remembers its passes."""

    name = "probe"
    watches: tuple[Watch, ...] = ()

    def __init__(self, act: Callable[[Context, Key], Result] = lambda ctx, key: DONE) -> None:
        self.passes: list[Key] = []
        self.act = act

    def reconcile(self, ctx: Context, key: Key) -> Result:
        self.passes.append(key)
        return self.act(ctx, key)


class Rig:
    def __init__(self) -> None:
        self.bugs: list[BaseException] = []
        self.runners: list[LiveRunner] = []

    def run(self, probe: Probe, **options: Any) -> LiveRunner:
        runner = LiveRunner(probe, on_bug=self.bugs.append, **options)
        self.runners.append(runner)
        runner.start()
        return runner


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    for runner in rig.runners:
        runner.stop()
        assert runner.drain(time.monotonic() + 5)


def test_a_key_that_changes_during_its_pass_comes_back_once(rig: Rig) -> None:
    entered, go = threading.Event(), threading.Event()

    def act(ctx: Context, key: Key) -> Result:
        entered.set()
        go.wait(5)
        return DONE

    probe = Probe(act)
    runner = rig.run(probe)
    runner.add(KEY)
    assert entered.wait(5)
    for _ in range(3):
        runner.add(KEY)
    go.set()
    eventually(lambda: runner.run == 2)
    runner.add(LATER)
    eventually(lambda: runner.run >= 3)
    assert probe.passes == [KEY, KEY, LATER]


def test_two_workers_never_work_on_one_key_at_once(rig: Rig) -> None:
    at_work: dict[Key, int] = {}
    most = [0]
    lock = threading.Lock()

    def act(ctx: Context, key: Key) -> Result:
        with lock:
            at_work[key] = at_work.get(key, 0) + 1
            most[0] = max(most[0], at_work[key])
        time.sleep(0.001)
        with lock:
            at_work[key] -= 1
        return DONE

    runner = rig.run(Probe(act), workers=4)
    for n in range(200):
        runner.add(Key("", f"k{n % 3}"))
    eventually(lambda: not runner.queue.line and not runner.active)
    assert most[0] == 1


def test_an_error_is_tried_again_and_success_forgets_it(rig: Rig) -> None:
    left = [3]

    def act(ctx: Context, key: Key) -> Result:
        if left[0]:
            left[0] -= 1
            raise Conflict("stale")
        return DONE

    runner = rig.run(Probe(act))
    runner.add(KEY)
    eventually(lambda: runner.run == 4)
    assert (runner.errors, runner.retries, runner.queue.failures(KEY)) == (3, 3, 0)


def test_a_terminal_error_is_not_tried_again(rig: Rig) -> None:
    def act(ctx: Context, key: Key) -> Result:
        raise Terminal("no") if key == KEY else Conflict("stale")

    probe = Probe(act)
    runner = rig.run(probe)
    runner.add(KEY)
    runner.add(LATER)
    eventually(lambda: probe.passes.count(LATER) == 3)
    assert probe.passes.count(KEY) == 1
    assert runner.queue.failures(KEY) == 0


def test_what_no_controller_may_raise_is_reported_and_ends_the_worker(rig: Rig) -> None:
    def act(ctx: Context, key: Key) -> Result:
        raise ZeroDivisionError

    rig.run(Probe(act)).add(KEY)
    eventually(lambda: bool(rig.bugs))
    assert isinstance(rig.bugs[0], ZeroDivisionError)


def test_without_the_lease_no_pass_is_begun(rig: Rig) -> None:
    probe = Probe()
    rig.run(probe, may_work=lambda: False).add(KEY)
    eventually(lambda: bool(rig.bugs))
    assert isinstance(rig.bugs[0], NotLeading)
    assert probe.passes == []


def test_a_stopped_runner_ends_the_pass_under_way_and_begins_no_other(rig: Rig) -> None:
    entered, go = threading.Event(), threading.Event()

    def act(ctx: Context, key: Key) -> Result:
        entered.set()
        go.wait(5)
        return DONE

    probe = Probe(act)
    runner = rig.run(probe)
    runner.add(KEY)
    runner.add(Key("", "b"))
    assert entered.wait(5)
    runner.stop()
    assert not runner.drain(time.monotonic() + 0.01), "the pass is not over"
    go.set()
    assert runner.drain(time.monotonic() + 5)
    assert probe.passes == [KEY]


# --- polls


class Polled(Probe):
    """Reads a token and asks for another look in 5 ms."""

    def __init__(self, readers: Readers) -> None:
        super().__init__()
        self.readers = readers
        self.outside = False

    def reconcile(self, ctx: Context, key: Key) -> Result:
        self.readers.read("token")
        if self.outside:
            self.readers.outside()
        self.passes.append(key)
        return Result(requeue_after_s=0.005)


def test_a_poll_is_not_run_until_something_it_read_changes(rig: Rig) -> None:
    readers = Readers()
    probe = Polled(readers)
    runner = rig.run(probe, readers=readers)
    runner.add(KEY)
    eventually(lambda: runner.skipped >= 5)
    assert len(probe.passes) == 1
    readers.touched("another token")
    before = runner.skipped
    eventually(lambda: runner.skipped >= before + 3)
    assert len(probe.passes) == 1
    readers.touched("token")
    eventually(lambda: len(probe.passes) == 2)


def test_a_pass_that_reached_outside_is_run_at_every_poll(rig: Rig) -> None:
    readers = Readers()
    probe = Polled(readers)
    probe.outside = True
    runner = rig.run(probe, readers=readers)
    runner.add(KEY)
    eventually(lambda: len(probe.passes) >= 4)
    assert runner.skipped == 0


def test_a_change_during_the_pass_is_not_taken_for_unchanged(rig: Rig) -> None:
    readers = Readers()
    probe = Polled(readers)
    first = [True]

    def reconcile(ctx: Context, key: Key) -> Result:
        result = Polled.reconcile(probe, ctx, key)
        if first[0]:
            first[0] = False
            readers.touched("token")
        return result

    probe.reconcile = reconcile  # type: ignore[method-assign]
    runner = rig.run(probe, readers=readers)
    runner.add(KEY)
    eventually(lambda: runner.skipped >= 3)
    assert len(probe.passes) == 2


# --- background tasks


@pytest.fixture
def stage() -> Iterator[Backstage]:
    bugs: list[BaseException] = []
    stage = Backstage(bugs.append)
    yield stage
    stage.stop()
    assert not bugs


def test_a_task_waits_for_operations_and_keeps_its_value(stage: Backstage) -> None:
    bugs: list[BaseException] = []
    memory = LiveMemory(bugs.append)

    def body() -> Any:
        yield stage.sleep(0.001)
        try:
            yield failing
        except RpcError as error:
            return str(error)

    made = LiveOperation("x")
    failing = made.op
    stage.call_in(0.005, lambda: made.end(RpcError("UNAVAILABLE", "gone")))
    task = memory.start("t", body())
    eventually(lambda: task.finished)
    assert (task.value, task.error, memory.tasks, bugs) == ("gone", "", 0, [])


@pytest.mark.parametrize(("end", "goes_on"), [(LiveMemory.forget, True), (LiveMemory.cancel, False)])
def test_a_task_goes_on_when_it_is_forgotten_but_not_when_it_is_cancelled(
        end: Callable[[LiveMemory, str], None], goes_on: bool) -> None:
    memory, told = LiveMemory(lambda bug: None, workers=1), list[Hashable]()
    memory.touched = told.append
    made, task, reached = waits_for_one_operation(memory)
    end(memory, "t")
    made.end(None)
    later = memory.start("later", nothing())
    eventually(lambda: "later" in told)
    assert (bool(reached), task.finished, later.finished, memory.tasks) == (goes_on, goes_on, True, 0)
    assert (memory.task("t"), told) == (None, ["t", "later"])


def test_a_forgotten_task_ends_with_its_process() -> None:
    memory = LiveMemory(lambda bug: None, workers=1)
    made, task, reached = waits_for_one_operation(memory)
    memory.forget("t")
    memory.drop()
    made.end(None)
    assert (reached, task.finished, memory.tasks) == ([], False, 0)


def waits_for_one_operation(memory: LiveMemory) -> tuple[LiveOperation, Task, list[bool]]:
    """A task "t" that waits; the list is not empty once it went on."""
    made, reached = LiveOperation("x"), list[bool]()

    def body() -> Any:
        yield made.op
        reached.append(True)

    task = memory.start("t", body())
    eventually(lambda: bool(made.op.callbacks))
    return made, task, reached


def nothing() -> Any:
    yield from ()


def test_an_operation_that_ends_while_somebody_begins_to_wait_is_never_missed(stage: Backstage) -> None:
    """Hundreds of races between the end of an operation and the first callback."""
    told: list[int] = []
    for _ in range(300):
        made = LiveOperation("x")
        stage.call_in(0.0, lambda made=made: made.end(None))  # type: ignore[misc]
        made.op.callbacks.append(lambda op: told.append(1))
    eventually(lambda: len(told) == 300)


def test_a_backends_operation_is_delivered_to_whoever_shields_it(stage: Backstage) -> None:
    def start() -> Operation:
        inner = Operation("download")
        threading.Thread(target=lambda: stage.deliver(lambda: inner.succeed(7))).start()
        return inner

    told: list[Any] = []
    for _ in range(50):
        stage.shield(start).callbacks.append(lambda op: told.append(op.value))
    eventually(lambda: told == [7] * 50)
