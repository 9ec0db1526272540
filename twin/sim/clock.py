"""Virtual time: SimPy's environment on integer nanoseconds, with calls cheaper than processes.

Processes (generators) tell stories; `call_at` serves hot paths. Both share one schedule, ordered by (time, priority,
id) as SimPy does. `tie_seed` replaces the id by a seeded random number, so that nothing may lean on the order of
same-time entries without a test noticing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

import simpy
from simpy.core import EmptySchedule, StopSimulation

from twin.backends.base import Operation

EPOCH: Final = 1_746_057_600.0
"""Seconds since the Unix epoch at which every run starts: 2025-05-01T00:00:00Z, the month of the v25.4 release."""

SECOND: Final = 1_000_000_000
"""Nanoseconds."""

_URGENT: Final = 0
_NORMAL: Final = 1
_LATE: Final = 5
_FOREVER: Final = 1 << 62


def ns(seconds: float) -> int:
    """Seconds to whole nanoseconds, rounded to the nearest."""
    return round(seconds * SECOND)


class Call:
    """A function to be called once at its time, unless cancelled before."""

    __slots__ = ("args", "fn")

    def __init__(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.fn: Callable[..., object] | None = fn
        self.args = args

    @property
    def pending(self) -> bool:
        return self.fn is not None

    def cancel(self) -> None:
        """Never call it. Harmless after the call was made."""
        self.fn = None
        self.args = ()


def _shuffled(seed: int) -> Iterator[int]:
    """Ids in random order that never repeat: a random upper half over a running lower half."""
    rng = random.Random(f"{seed}/ties")
    for n in count():
        yield rng.getrandbits(32) << 40 | n


class TwinEnvironment(simpy.Environment):
    """The one clock of a run. `now` is an int, nanoseconds since the start.

    `executed` counts what ran: calls and SimPy events, cancelled calls excluded.
    """

    _now: int
    _queue: list[Any]

    def __init__(self, *, tie_seed: int | None = None) -> None:
        super().__init__(0)
        self.executed = 0
        self.reached: float = 0
        """The highest priority that has run in this instant: everything of lower priority has had its turn in it."""
        if tie_seed is not None:
            self._eid: Iterator[int] = _shuffled(tie_seed)  # type: ignore[assignment]

    @property
    def now(self) -> int:
        return self._now

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return self._now / SECOND

    def call_at(self, delay_ns: int, fn: Callable[..., object], *args: Any, priority: float = _NORMAL) -> Call:
        """Call `fn(*args)` in `delay_ns` nanoseconds (0: later in this instant). Nothing is cheaper to schedule.

        Within one instant lower priorities come first.
        """
        if delay_ns < 0:
            raise ValueError(f"delay must not be negative (got {delay_ns} ns)")
        call = Call(fn, args)
        heappush(self._queue, (self._now + delay_ns, priority, next(self._eid), call, None))
        return call

    def post(self, delay_ns: int, fn: Callable[..., object], args: tuple[Any, ...] = (),
             priority: int = _NORMAL) -> None:
        """As `call_at`, for a call that is never cancelled and a delay known not to be negative: the hot path."""
        heappush(self._queue, (self._now + delay_ns, priority, next(self._eid), fn, args))

    def call_late(self, delay_ns: int, fn: Callable[..., object], *args: Any, rank: float = 0.0) -> Call:
        """As `call_at`, but after everything else of that instant: for whoever looks at what the instant brought.

        Of those the lower `rank` (0 to 1) comes first, whoever was scheduled first.
        """
        return self.call_at(delay_ns, fn, *args, priority=_LATE + rank)

    def operation(self, name: str, delay_ns: int, value: Any = None) -> Operation:
        """An operation that succeeds with `value` in `delay_ns` nanoseconds."""
        op = Operation(name)
        self.post(delay_ns, op.succeed, (value,))
        return op

    def stop(self, value: Any = None) -> None:
        """End `run` as soon as what runs now returns; `run` returns `value`. The run may be continued."""
        heappush(self._queue, (self._now, _URGENT, next(self._eid), _stop, (value,)))

    def schedule(self, event: simpy.Event, priority: int = _NORMAL, delay: float = 0) -> None:
        """As SimPy's: the event's callbacks run in `delay` nanoseconds."""
        heappush(self._queue, (self._now + delay, priority, next(self._eid), self._process, (event,)))

    def peek(self) -> float:
        """Time of the next entry that will run, or infinity."""
        queue = self._queue
        while queue and queue[0][4] is None and queue[0][3].fn is None:
            heappop(queue)
        return queue[0][0] if queue else float("inf")

    def step(self) -> None:
        """Run the next entry. Raises simpy's EmptySchedule when there is none."""
        if self.peek() == float("inf"):
            raise EmptySchedule
        self._advance(_FOREVER, once=True)

    def run(self, until: Any = None) -> Any:
        """As SimPy's: to the end, to a time in ns (exclusive; the clock then shows it) or to an event and its value."""
        if isinstance(until, simpy.Event):
            return super().run(until)
        if until is not None and until <= self._now:
            raise ValueError(f"until ({until}) must be greater than the current simulation time")
        try:
            self._advance(_FOREVER if until is None else until)
        except StopSimulation as stop:
            return stop.args[0]
        if until is not None:
            self._now, self.reached = until, 0
        return None

    def _advance(self, end: int, once: bool = False) -> None:
        queue, done = self._queue, 0
        try:
            while queue and queue[0][0] < end:
                at, priority, _, fn, args = heappop(queue)
                if args is None:  # a call that may have been cancelled
                    call = fn
                    fn, args = call.fn, call.args
                    if fn is None:
                        continue
                    call.fn = None
                if at != self._now:
                    self._now, self.reached = at, priority
                elif priority > self.reached:
                    self.reached = priority
                done += 1
                fn(*args)
                if once:
                    return
        finally:
            self.executed += done

    def _process(self, event: Any) -> None:
        """One SimPy event: run its callbacks; an unhandled failure is raised, as SimPy promises."""
        callbacks, event.callbacks = event.callbacks, None
        try:
            for callback in callbacks:
                callback(event)
        except StopSimulation:
            event.callbacks = callbacks[callbacks.index(callback) + 1:]
            self.schedule(event, -1)
            raise
        if not event._ok and not hasattr(event, "_defused"):
            raise event._value


def _stop(value: Any) -> None:
    raise StopSimulation(value)


class SimClock:
    """`twin.backends.base.Clock` in virtual time."""

    def __init__(self, env: TwinEnvironment) -> None:
        self._env = env

    def now(self) -> float:
        return EPOCH + self._env._now / SECOND

    def sleep(self, seconds: float) -> Operation:
        return self._env.operation("sleep", ns(seconds))
