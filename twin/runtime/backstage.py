"""What ends outside passes when the clock is real: sleeps, calls to devices, background tasks on threads.

Operations of `twin.backends.base` know nothing of threads. Here they are made safe: whoever waits for one that ends at
the same moment is told once, never not at all.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from twin.backends.base import Operation
from twin.runtime.memory import M, Memory, Task, TaskBody

TASKS: Final = 64
"""Background tasks that may be at work at one time; those that wait for an operation do not count."""
OPERATIONS: Final = frozenset({"command", "os_install", "os_activate", "reboot_status", "execute", "download"})
"""Verbs of Dms, HostAgent and BfbVolume that answer with an Operation."""


class _Callbacks(list[Callable[[Operation], None]]):
    """The callbacks of one operation: what is appended after its end is called at once."""

    def __init__(self, lock: threading.RLock, op: Operation) -> None:
        super().__init__()
        self._lock = lock
        self._op = op

    def append(self, callback: Callable[[Operation], None], /) -> None:
        with self._lock:
            if not self._op.finished:
                super().append(callback)
                return
        callback(self._op)


class LiveOperation:
    """Makes one operation that threads may end and wait for."""

    __slots__ = ("_lock", "op")

    def __init__(self, name: str) -> None:
        self._lock = threading.RLock()
        self.op = Operation(name)
        self.op.callbacks = _Callbacks(self._lock, self.op)

    def end(self, error: Exception | None, value: Any = None) -> None:
        """End it; callbacks run here, after waiters can no longer be missed."""
        op = self.op
        with self._lock:
            if op.finished:
                return
            callbacks, op.callbacks = op.callbacks, _Callbacks(self._lock, op)
            op.error, op.value, op.finished = error, value, True
        for call in callbacks:
            call(op)


class Backstage:
    """One thread for timers and for the ends of operations. What it runs must be short: wake somebody, hand work on.

    It is also the process's clock (`twin.backends.base.Clock`).
    """

    def __init__(self, bug: Callable[[BaseException], None]) -> None:
        self._bug = bug
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._ends = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="backstage", daemon=True)
        self._thread.start()

    # --- the clock

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> Operation:
        made = LiveOperation("sleep")
        self.call_in(seconds, lambda: made.end(None))
        return made.op

    def call_in(self, seconds: float, fn: Callable[[], None]) -> None:
        """Call `fn` here, so many seconds from now."""
        with self._changed:
            self._count += 1
            heapq.heappush(self._timers, (time.monotonic() + max(0.0, seconds), self._count, fn))
            self._changed.notify()

    # --- operations of backends that have threads of their own

    def deliver(self, end: Callable[[], None]) -> None:
        """Run the end of a backend's operation; whoever `shield`s it is not overtaken."""
        with self._ends:
            end()

    def shield(self, start: Callable[[], Operation]) -> Operation:
        """Start a backend's operation and return one that may be waited for from any thread."""
        with self._ends:
            inner = start()
            outer = LiveOperation(inner.name)
            if inner.finished:
                outer.end(inner.error, inner.value)
            else:
                inner.callbacks.append(lambda done: self.call_in(0.0, lambda: outer.end(done.error, done.value)))
                outer.op.on_cancel = inner.cancel
        return outer.op

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    def _run(self) -> None:
        while (fn := self._next()) is not None:
            try:
                fn()
            except BaseException as error:
                self._bug(error)

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                wait = self._timers[0][0] - time.monotonic() if self._timers else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._timers)[2]
                self._changed.wait(wait)
        return None


class LiveMemory(Memory):
    """Process memory whose background tasks run on a pool, as upstream's run on goroutines."""

    def __init__(self, bug: Callable[[BaseException], None], workers: int = TASKS) -> None:
        super().__init__()
        self._bug = bug
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="task")

    def get(self, cls: type[M]) -> M:
        with self._lock:
            return super().get(cls)

    def task(self, token: Hashable) -> Task | None:
        with self._lock:
            return super().task(token)

    @property
    def tasks(self) -> int:
        """How many background tasks are not over."""
        with self._lock:
            return len(self._running)

    def start(self, token: Hashable, body: TaskBody, attempt: int = 0) -> Task:
        task = Task(attempt=attempt)
        with self._lock:
            self._tasks[token], self._running[task] = task, body
        self._go_on(token, task, body, None, None)
        return task

    def forget(self, token: Hashable) -> None:
        with self._lock:
            self._tasks.pop(token, None)
        self.touched(token)

    def cancel(self, token: Hashable) -> None:
        with self._lock:
            task = self._tasks.get(token)
            body = self._running.pop(task, None) if task is not None else None
        if body is not None:
            _close(body)
        self.forget(token)

    def drop(self) -> None:
        with self._lock:
            bodies = list(self._running.values())
            self._running.clear()
            self._tasks.clear()
            self._values.clear()
        for body in bodies:
            _close(body)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _go_on(self, token: Hashable, task: Task, body: TaskBody, value: Any, error: Exception | None) -> None:
        try:
            self._pool.submit(self._step, token, task, body, value, error)
        except RuntimeError:  # dropped meanwhile
            return

    def _step(self, token: Hashable, task: Task, body: TaskBody, value: Any, error: Exception | None) -> None:
        with self._lock:
            if task not in self._running:
                return
        try:
            self._advance(token, task, body, value, error)
        except BaseException as failure:
            self._bug(failure)

    def _resume(self, token: Hashable, task: Task, body: TaskBody, op: Operation) -> None:
        self._go_on(token, task, body, op.value, op.error)

    def _end(self, token: Hashable, task: Task, error: str, value: Any) -> None:
        with self._lock:
            self._running.pop(task, None)
            task.error, task.value, task.finished = error, value, True
            current = self._tasks.get(token) is task
        if current:
            self.touched(token)


def _close(body: TaskBody) -> None:
    """End a task's generator; one that is at work this moment is left to its next wait, where nobody resumes it."""
    try:
        body.close()
    except ValueError:
        return
