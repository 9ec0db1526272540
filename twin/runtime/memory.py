"""What a controller process remembers and a restart forgets: background tasks above all (provisioning.md 2.0)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from twin.backends.base import ApiError, Crash, Operation, RpcError

TaskBody = Generator[Operation, Any, Any]
"""A background task: it yields an `Operation` to wait for it and receives its value, or has its error raised inside."""

TASK_ERRORS = (ApiError, RpcError, OSError, ValueError)
"""What a task may fail with. Anything else is a bug and is not swallowed."""

M = TypeVar("M")


@dataclass(slots=True, eq=False)
class Task:
    """One background task: running until `finished`; then `error` is '' or says why. `attempt` counts from 0."""

    attempt: int = 0
    finished: bool = False
    error: str = ""
    value: Any = None


class Memory:
    """Process memory of one controller manager: tasks and plain values, all gone after `drop()`.

    `touched` is called with a token when a task ends, so that a runner knows which passes are stale.
    """

    def __init__(self) -> None:
        self._values: dict[type, Any] = {}
        self._tasks: dict[Hashable, Task] = {}
        self._running: dict[Task, TaskBody] = {}
        self.touched: Callable[[Hashable], None] = lambda token: None
        self.read: Callable[[Hashable], None] = lambda token: None
        self.resuming: Callable[[], None] = lambda: None
        """Called before a task goes on outside any pass."""
        self.crashed: Callable[[], None] | None = None
        """Called when an injected crash hits a background task, outside any pass."""

    def get(self, cls: type[M]) -> M:
        """The process-wide value of this class, made on first use."""
        found: M | None = self._values.get(cls)
        if found is None:
            found = self._values[cls] = cls()
        return found

    def task(self, token: Hashable) -> Task | None:
        self.read(token)
        return self._tasks.get(token)

    def start(self, token: Hashable, body: TaskBody, attempt: int = 0) -> Task:
        """Begin a task; it runs to its first wait before this returns."""
        task = self._tasks[token] = Task(attempt=attempt)
        self._running[task] = body
        self._advance(token, task, body, None, None)
        return task

    def forget(self, token: Hashable) -> None:
        """Drop a task from the table. One that runs goes on, seen by nobody, until it ends or the process does."""
        self._tasks.pop(token, None)
        self.touched(token)

    def cancel(self, token: Hashable) -> None:
        """Drop a task and end it here and now. What it started in the world goes on unless its body takes it back."""
        task = self._tasks.get(token)
        body = self._running.pop(task, None) if task is not None else None
        if body is not None:
            body.close()
        self.forget(token)

    def drop(self) -> None:
        """The process ended: everything is forgotten, all tasks end, operations in the world go on."""
        running = list(self._running.values())
        self._running.clear()
        self._tasks.clear()
        self._values.clear()
        for body in running:
            body.close()

    def _advance(self, token: Hashable, task: Task, body: TaskBody, value: Any, error: Exception | None) -> None:
        while True:
            try:
                op = body.throw(error) if error is not None else body.send(value)
            except StopIteration as stop:
                self._end(token, task, "", stop.value)
                return
            except TASK_ERRORS as failure:
                self._end(token, task, str(failure), None)
                return
            if not op.finished:
                op.callbacks.append(partial(self._resume, token, task, body))
                return
            value, error = op.value, op.error

    def _resume(self, token: Hashable, task: Task, body: TaskBody, op: Operation) -> None:
        if task not in self._running:
            return
        self.resuming()
        try:
            self._advance(token, task, body, op.value, op.error)
        except Crash:
            if self.crashed is None:
                raise
            self.crashed()

    def _end(self, token: Hashable, task: Task, error: str, value: Any) -> None:
        self._running.pop(task, None)
        task.finished, task.error, task.value = True, error, value
        if self._tasks.get(token) is task:
            self.touched(token)
