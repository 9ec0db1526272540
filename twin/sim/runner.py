"""Drives one controller's work queue in virtual time: pop, run the pass, hold the worker for what it cost.

A poll that changes nothing costs nothing (HOUSE rule): a pass is a function of what it read, so a pass that wrote
nothing is remembered with its cost and with everything it read. While none of that changes, later passes of the key
are not run; the worker is still charged for them. They are passed over (`twin.sim.line`), in exact integer arithmetic,
only when something that matters to this controller happens. `collapse=False` runs every pass as an event of its own;
both give the same digest (tests/sim/test_runner.py).

Order within one instant: everything that happens in the world comes first, then passes, controller by controller.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from twin.backends.base import ApiError, Crash
from twin.model.meta import Key
from twin.runtime.queue import NS, BackOff
from twin.runtime.reconcile import Context, Reconciler, Result, Terminal
from twin.sim.clock import EPOCH, TwinEnvironment
from twin.sim.line import TRAIN, Line, Part, Passed
from twin.sim.waits import Waits

_NEVER = 1 << 62
_FLOAT_NS = 240
"""A pass so little before a deadline may see it reached: its clock is a double of seconds since 1970."""
PASSES = 10
"""SimPy priority of the first controller's passes; the world's own events run at 1 (SimPy's NORMAL)."""


class Meter:
    """What one controller's current pass costs, reads and does. Every simulated backend charges it.

    `billed=False` is for background tasks: nobody waits for them, so nothing is charged and nothing they read is
    remembered.
    """

    __slots__ = ("billed", "controller", "cost_ns", "effects", "on_effect", "reads")

    def __init__(self, controller: str, *, billed: bool = True) -> None:
        self.controller = controller
        self.billed = billed
        self.cost_ns = 0
        self.effects = 0
        self.reads: list[tuple[dict[Any, dict[Any, None]], Any]] | deque[tuple[dict[Any, dict[Any, None]], Any]] = (
            [] if billed else deque(maxlen=0))
        self.on_effect: Callable[[str, bool], None] | None = None
        """Fault hook: called before (False) and after (True) every effect with what it is."""

    def charge_ns(self, ns: int) -> None:
        if self.billed:
            self.cost_ns += ns

    def read(self, readers: dict[Any, dict[Any, None]], token: Any) -> None:
        self.reads.append((readers, token))

    def before(self, what: str) -> None:
        """An effect is about to happen."""
        self.effects += 1
        if self.on_effect is not None:
            self.on_effect(what, False)

    def after(self, what: str) -> None:
        if self.on_effect is not None:
            self.on_effect(what, True)


def touch(readers: dict[Any, dict[Any, None]], token: Any) -> None:
    """What `token` names is about to read differently: passes that read it are not known unchanged any more."""
    waiting = readers.pop(token, None)
    if waiting:
        for runner, key in waiting:
            runner.stale(key)


@dataclass(slots=True)
class Stats:
    """One controller's figures for the `reconciles` table. Times in ns of virtual time."""

    waits: Waits
    run: int = 0
    skipped: int = 0
    busy_ns: int = 0
    errors: int = 0


class Runner:
    """One controller: reconciler, queue, workers."""

    # `on_pass` hears of passes that waited and did something: key, when it entered the line, start and end, in ns.

    def __init__(self, env: TwinEnvironment, reconciler: Reconciler, meter: Meter, *, index: int, workers: int = 1,
                 collapse: bool = True, pass_ns: int = 0, backoff: BackOff = BackOff(), train: int = TRAIN,
                 on_crash: Callable[[], None] | None = None,
                 on_pass: Callable[[Key, int, int, int], None] | None = None,
                 on_error: Callable[[Key, str], None] | None = None) -> None:
        self.env = env
        self.reconciler = reconciler
        self.meter = meter
        self.queue = Line(backoff, train=train)
        self.stats = Stats(self.queue.waits)
        self.stopped = False
        self.index = index
        self._priority = PASSES + index
        self._collapse = collapse and workers == 1
        self._pass_ns = pass_ns
        self._on_crash = on_crash
        self._on_pass = on_pass
        self._on_error = on_error
        self._free = [0] * workers
        self._busy: dict[Key, int] = {}
        self._redo: dict[Key, int] = {}
        self._stale_due: list[tuple[int, Key]] = []
        self._wake_at = -1
        self._quiet_until = 0
        """Nothing starts before this: a bound that saves looking."""

    # --- what the world calls

    def add(self, key: Key) -> None:
        """A watch event maps to this key."""
        if self.stopped:
            return
        now, queue = self.env._now, self.queue
        if self._quiet_until <= now:
            self._replay(self._before())
        if now >= queue.soonest:
            queue.mature(now)
        if key in queue.entered or (key in queue.where and not queue.lift(key)):
            return
        at = self._busy.get(key, 0)
        if at > now:
            self._redo[key] = at
        else:
            queue.append(key, now)
        soonest = self._free[0]
        if soonest < now:
            soonest = now
        if soonest < self._quiet_until:
            self._quiet_until = soonest
        if soonest == now and self._wake_at != now and self.env.reached > self._priority:
            self._again_now(now)
        elif not now <= self._wake_at <= soonest:
            if at > now:
                self._wake_by(at)
            elif key not in queue.memos:
                self._wake_by(queue.first_run(soonest))

    def add_all(self, keys: Collection[Key]) -> None:
        """As `add` for each in turn, none of them twice."""
        if self.stopped:
            return
        now, queue = self.env._now, self.queue
        self._replay(self._before())
        queue.mature(now)
        busy = {key: end for key, end in self._busy.items() if end > now}
        for key in queue.enter_all(keys, now, busy):
            self._redo[key] = busy[key]
        soonest = max(self._free[0], now)
        if soonest < self._quiet_until:
            self._quiet_until = soonest
        if soonest == now and self._wake_at != now and self.env.reached > self._priority:
            self._again_now(now)
        else:
            self._arm()

    def _again_now(self, now: int) -> None:
        """Its turn in this instant is over, so it gets another one: until then a key is in line once."""
        self._wake_at = now
        self.env.post(0, self._wake, (now,), self._priority)

    def stale(self, key: Key) -> None:
        """Something this key's last pass read has changed."""
        queue = self.queue
        if key not in queue.memos:
            return
        now = self.env._now
        if self._quiet_until <= now:
            self._replay(self._before())
            if key not in queue.memos:
                return
        due = queue.expose(key)
        if due is not None:
            heappush(self._stale_due, (due, key))
        soonest = max(self._free[0], now)
        if now <= self._wake_at <= soonest:
            return
        if key in queue.entered:
            self._wake_by(queue.first_run(soonest))
        self._wake_by(due)
        self._wake_by(self._redo.get(key))

    def wake(self, key: Key) -> None:
        """Something outside the API server changed for this key: look at it afresh."""
        self.stale(key)
        self.add(key)

    def stop(self) -> None:
        """The process ended: nothing of this controller runs any more."""
        self._replay(self._before())
        self.stopped = True
        self.queue.memos.clear()

    def settle(self) -> None:
        """Account for the passes up to now (before reading `stats`)."""
        if not self.stopped:
            self._replay(self._before())

    def _before(self) -> int:
        """Passes that start by this time come before what happens now: those of this very instant, too, once the turn
        of a later controller or of a neighbour has come in it and this one has none left.
        """
        env = self.env
        return env._now if env.reached > self._priority and self._wake_at != env._now else env._now - 1

    # --- the line

    def _at_work(self, key: Key, start: int, end: int) -> None:
        """The key is worked on from start to end: its own timer brings it back at the end if it fires in between.

        One that fires by the start finds the key in line.
        """
        due = self.queue.due.get(key)
        if due is not None and (due <= start or due < end):
            self.queue.drop_timer(key)
            if due > start:
                self._redo[key] = end

    def _replay(self, limit: int) -> None:
        """Pass over all known unchanged that starts at or before `limit`; stop at a pass that must really run."""
        if limit < self._quiet_until:
            return
        queue, free = self.queue, self._free
        line = queue.line
        while True:
            if self._redo:
                self._come_back(limit)
            if not line:
                due = queue.next_due()
                if due is None or due > limit:
                    if not self._redo:
                        self._quiet_until = _NEVER if due is None else due
                    return
                passed = None if self._redo or len(free) > 1 else queue.rotate(free[0], limit, self._busy)
                if passed is None:
                    queue.mature(due)
                else:
                    self._passed_over(passed)
                continue
            key = line[0]
            known = key in queue.memos or key.__class__ is Part
            if known:
                passed = queue.pass_over(free[0], limit)
                if passed is not None:
                    self._passed_over(passed)
                    continue
            start = queue.first_start(free[0])
            if start > limit:
                if not self._redo:
                    self._quiet_until = start
                return
            if not known:
                if start < self.env.now:
                    raise AssertionError(
                        f"{self.reconciler.name} {key}: pass due at {start} ns met at {self.env.now} ns")
                return
            if key.__class__ is Part:
                queue.pull(key.train.keys[key.first])
                continue
            cost, again = queue.memos[key]
            _, since = queue.take()
            queue.waits.add(start - since)
            end = start + cost
            self._passed_over(Passed(1, cost, end, key))
            if key in queue.due:
                self._at_work(key, start, end)
            if again is not None:
                queue.push_after(key, end, again)

    def _passed_over(self, passed: Passed) -> None:
        self._free[0] = passed.free
        self._busy = {passed.last: passed.free}
        self.stats.skipped += passed.passes
        self.stats.busy_ns += passed.spent_ns

    def _come_back(self, now: int) -> None:
        """Keys that changed while they were worked on re-enter when their pass ends."""
        for key, end in sorted(self._redo.items(), key=lambda item: item[1]):
            if end <= now:
                del self._redo[key]
                self.queue.mature(end)
                self.queue.enter(key, end)

    # --- waking

    def _arm(self) -> None:
        """Wake when the next pass that must really run starts, or when it can be known."""
        queue = self.queue
        at = queue.first_run(self._free[0])
        if self._redo:
            first = min(self._redo.values())
            at = first if at is None or first < at else at
        stale = self._stale_due
        while stale:
            due, key = stale[0]
            if queue.due.get(key) == due and key not in queue.memos:
                if at is None or due < at:
                    at = due
                break
            heappop(stale)
        if at is not None:
            self._wake_by(at)

    def _wake_by(self, at: int | None) -> None:
        """Wake at this time, unless it is sooner anyway."""
        now = self.env._now
        if at is None or now <= self._wake_at <= at:
            return
        if at < now:
            at = now
        self._wake_at = at
        self.env.post(at - now, self._wake, (at,), self._priority)

    def _wake(self, at: int) -> None:
        if self.stopped:
            return
        if self._wake_at == at:
            self._wake_at = -1
        queue, free = self.queue, self._free
        line, entered = queue.line, queue.entered
        if self._redo or not line or line[0] in queue.memos or entered.get(line[0], _NEVER) > at or free[0] > at:
            self._replay(at - 1)
            if at >= queue.soonest:
                queue.mature(at)
            self._replay(at)
        elif at >= queue.soonest:
            queue.mature(at)
        if line and free[0] <= at and entered.get(line[0], _NEVER) <= at:
            key, since = queue.take()
            queue.waits.add(at - since)
            self._run(key, since, at)
        self._arm()

    # --- one pass

    def _run(self, key: Key, entered: int, now: int) -> None:
        meter = self.meter
        meter.cost_ns = self._pass_ns
        meter.effects = 0
        meter.reads.clear()
        ctx = Context(EPOCH + now / NS)
        try:
            result = self.reconciler.reconcile(ctx, key)
        except Crash:
            if self._on_crash is not None:
                self._on_crash()
            return
        except Terminal as error:
            result = Result()
            self._error(key, str(error))
        except ApiError as error:
            result = Result(error=str(error))
        except Exception:
            raise RuntimeError(f"{self.reconciler.name} {key} at {now / NS:.3f} s:\n{traceback.format_exc()}") from None
        cost = meter.cost_ns
        end = now + cost
        free, queue = self._free, self.queue
        free[0] = end
        if len(free) > 1:
            heapify(free)
            busy = {k: e for k, e in self._busy.items() if e > now}
            busy[key] = end
            self._busy = busy
        else:
            self._busy = {key: end}
        self._quiet_until = free[0]
        if key in queue.due:
            self._at_work(key, now, end)
        stats = self.stats
        stats.run += 1
        stats.busy_ns += cost
        if result.error:
            stats.errors += 1
            self._error(key, result.error)
            heappush(self._stale_due, (queue.push_failed(key, end), key))
        else:
            if queue.failed:
                queue.forget(key)
            again = None if result.requeue_after_s is None else round(result.requeue_after_s * NS)
            if self._collapse and not meter.effects:
                self._remember(key, cost, again, ctx)
            if again is not None:
                due = queue.push_after(key, end, again)
                if key not in queue.memos:
                    heappush(self._stale_due, (due, key))
            elif key in queue.due and key not in queue.memos:
                heappush(self._stale_due, (queue.due[key], key))
        if meter.effects and now > entered and self._on_pass is not None:
            self._on_pass(key, entered, now, end)

    def _remember(self, key: Key, cost: int, again: int | None, ctx: Context) -> None:
        me = (self, key)
        for readers, token in self.meter.reads:
            waiting = readers.get(token)
            if waiting is None:
                readers[token] = {me: None}
            else:
                waiting[me] = None
        self.queue.memos[key] = (cost, again)
        until = ctx.unchanged_until
        if until is not None:
            at = round((until - EPOCH) * NS) - _FLOAT_NS
            self.env.call_at(max(at - self.env.now, 0), self.stale, key)

    def _error(self, key: Key, message: str) -> None:
        if self._on_error is not None:
            self._on_error(key, message)
