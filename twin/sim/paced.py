"""A simulated world that keeps pace with a clock outside it: hardware stand-ins for a lab.

One thread owns the environment. Other threads hand it calls; it runs them between events, at the virtual time that the
outside clock says it is, `speed` times as fast.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from twin.backends.base import Operation
from twin.sim.clock import SECOND, TwinEnvironment

T = TypeVar("T")
IDLE_S: Final = 0.5
"""How long the thread rests at most when nothing is due."""


class PacedWorld:
    """Runs `env` on a thread of its own until `stop`.

    `clock` counts seconds of the outside world from anywhere (`time.monotonic`). `after` runs in the owning thread each
    time something may have changed.
    """

    def __init__(self, env: TwinEnvironment, clock: Callable[[], float], *, speed: float = 1.0,
                 after: Callable[[], None] = lambda: None) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be positive (got {speed})")
        self.env = env
        self.speed = speed
        self.after = after
        self._clock = clock
        self._start = clock() - env.now / SECOND / speed
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="paced-world", daemon=True)
        self._failure: BaseException | None = None
        self._thread.start()

    def call(self, fn: Callable[[], T]) -> T:
        """Run `fn` in the world's thread and return what it returns, or raise what it raises."""
        done = threading.Event()
        answer: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                answer.append(fn())
            except BaseException as error:  # handed to the caller, whatever it is
                failure.append(error)
            done.set()

        self._inbox.put(run)
        self._await(done)
        if failure:
            raise failure[0]
        return answer[0]

    def wait(self, start: Callable[[], Operation]) -> object:
        """Start an operation in the world and block until it ended; returns its value or raises its error."""
        done = threading.Event()
        ops: list[Operation] = []

        def begin() -> None:
            op = start()
            ops.append(op)
            if op.finished:
                done.set()
            else:
                op.callbacks.append(lambda _: done.set())

        self.call(begin)
        self._await(done)
        if ops[0].error is not None:
            raise ops[0].error
        return ops[0].value

    def stop(self) -> None:
        """End the thread. Whoever waits is told so by a RuntimeError."""
        self._inbox.put(None)
        self._thread.join()

    def _await(self, done: threading.Event) -> None:
        while not done.wait(IDLE_S):
            if not self._thread.is_alive():
                raise RuntimeError("the emulated world has ended") from self._failure

    def _run(self) -> None:
        try:
            while True:
                call = self._next()
                if call is None:
                    return
                call()
                self.after()
        except BaseException as error:
            self._failure = error
            raise

    def _next(self) -> Callable[[], None] | None:
        """The next call, at its time; meanwhile the world goes on."""
        while True:
            self._advance()
            due_s = (self.env.peek() / SECOND - self._now_s()) / self.speed
            try:
                call = self._inbox.get(timeout=min(max(due_s, 0.0), IDLE_S))
            except queue.Empty:
                continue
            self._advance()
            return call

    def _now_s(self) -> float:
        return (self._clock() - self._start) * self.speed

    def _advance(self) -> None:
        now = int(self._now_s() * SECOND)
        if now > self.env.now:
            moved = self.env.peek() < now
            self.env.run(now)
            if moved:
                self.after()
