"""Background tasks of a DPU: at most eleven attempts, remembered by the process alone (provisioning.md 2.0)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from controllers.provisioning.dpu_pass import Pass
from twin.backends.base import Clock, Operation, RpcError
from twin.model.meta import Key
from twin.runtime.memory import TaskBody

OS_INSTALL: Final = "os-install"
REBOOT: Final = "reboot"
HOST_NETWORK: Final = "host-network"


class TaskFailed(Exception):
    """The last attempt failed; the text is its error."""


def attempt(p: Pass, what: str, body: Callable[[int], TaskBody]) -> bool:
    """Start the DPU's task, look after it, start it again when it failed. True when it succeeded.

    `body` makes the task of an attempt, counted from 0. The end stays in the table until a later phase forgets it: a
    pass on a stale cache then finds it again instead of starting the work anew.
    upstream: tasks-retried-without-pause. No back-off: the attempts are over sooner than a host has rebooted.
    upstream: tasks-lost-on-restart. Keyed by namespace and name in memory: a restarted controller starts over.
    """
    memory = p.b.memory
    token = (what, p.key)
    task = memory.task(token)
    if task is None:
        memory.start(token, _soon(p.b.clock, body(0)))
        return False
    if not task.finished:
        return False
    if not task.error:
        return True
    if task.attempt < p.b.settings.task_retries:
        memory.start(token, _soon(p.b.clock, body(task.attempt + 1)), task.attempt + 1)
        return False
    raise TaskFailed(task.error)


def running(p: Pass, what: str) -> bool:
    task = p.b.memory.task((what, p.key))
    return task is not None and not task.finished


def forget(p: Pass, what: str) -> None:
    """Drop a task that is over or no longer wanted. As with a goroutine, nobody stops one that still runs."""
    token: tuple[str, Key] = (what, p.key)
    if p.b.memory.task(token) is not None:
        p.b.memory.forget(token)


def _soon(clock: Clock, body: TaskBody) -> TaskBody:
    """A goroutine runs after the pass that starts it, never inside it."""
    yield clock.sleep(0.0)
    result = yield from body
    return result


def within(clock: Clock, op: Operation, seconds: float) -> Operation:
    """The operation with a deadline: fails as gRPC does when it has not ended `seconds` from now."""
    if op.finished:
        return op
    both = Operation(op.name)

    def ended(done: Operation) -> None:
        if done.error is not None:
            both.fail(done.error)
        else:
            both.succeed(done.value)

    op.callbacks.append(ended)
    clock.sleep(max(seconds, 0.0)).callbacks.append(lambda _: both.fail(deadline_exceeded()))
    return both


def deadline_exceeded() -> RpcError:
    return RpcError("DEADLINE_EXCEEDED", "rpc error: code = DeadlineExceeded desc = context deadline exceeded")
