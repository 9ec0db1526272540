"""Drives one controller's work queue in virtual time: pop, run the pass, hold the worker for what it cost.

A poll that changes nothing costs nothing (HOUSE rule): a pass is a function of what it read, so a pass that wrote
nothing is remembered with its cost and with everything it read. While none of that changes, later passes of the key
are not run; the worker is still charged for them. They are replayed in a tight loop, in exact integer arithmetic, only
when something that matters to this controller happens. `collapse=False` runs every pass as an event of its own; both
give the same digest (tests/sim/test_runner.py).

Order within one instant: everything that happens in the world comes first, then passes, controller by controller.
"""

from __future__ import annotations

import traceback
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

from twin.backends.base import ApiError, Crash
from twin.model.meta import Key
from twin.runtime.queue import NS, BackOff, WorkQueue
from twin.runtime.reconcile import Context, Reconciler, Result, Terminal
from twin.sim.clock import EPOCH, TwinEnvironment

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

    run: int = 0
    skipped: int = 0
    busy_ns: int = 0
    errors: int = 0
    waits_ns: array[int] = field(default_factory=lambda: array("q"))


class Runner:
    """One controller: reconciler, queue, workers."""

    # `on_pass` hears of passes that did something: key, when it entered the line, start and end, in ns.

    def __init__(self, env: TwinEnvironment, reconciler: Reconciler, meter: Meter, *, index: int, workers: int = 1,
                 collapse: bool = True, pass_ns: int = 0, backoff: BackOff = BackOff(),
                 on_crash: Callable[[], None] | None = None,
                 on_pass: Callable[[Key, int, int, int], None] | None = None,
                 on_error: Callable[[Key, str], None] | None = None) -> None:
        self.env = env
        self.reconciler = reconciler
        self.meter = meter
        self.queue = WorkQueue(backoff)
        self.stats = Stats()
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
        self._memo: dict[Key, tuple[int, int | None]] = {}
        self._offsets: dict[Key, tuple[int, int]] = {}
        self._head_offset = 0
        self._tail_offset = 0
        self._ready: list[tuple[int, int, Key]] = []
        self._seq = 0
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
            self._mature(now)
        if key in queue.entered:
            return
        end = self._busy.get(key)
        if end is not None and end > now:
            self._redo[key] = end
        else:
            queue.entered[key] = now
            queue.line.append(key)
            self._placed(key)
        soonest = self._free[0]
        if soonest < now:
            soonest = now
        if soonest < self._quiet_until:
            self._quiet_until = soonest
        if soonest == now and self._wake_at != now and self.env.reached > self._priority:
            # Its turn in this instant is over, so it gets another one: until then the key is in line once.
            self._wake_at = now
            self.env.call_at(0, self._wake, now, priority=self._priority)
        elif not now <= self._wake_at <= soonest:
            self._arm()

    def add_all(self, keys: Iterable[Key]) -> None:
        """As `add` for each in turn, none of them twice."""
        if self.stopped:
            return
        now = self.env._now
        self._replay(self._before())
        if now >= self.queue.soonest:
            self._mature(now)
        busy, entered, line = self._busy, self.queue.entered, self.queue.line
        for key in keys:
            if key in entered:
                continue
            if busy.get(key, 0) > now:
                self._redo[key] = busy[key]
            else:
                entered[key] = now
                line.append(key)
                self._placed(key)
        soonest = max(self._free[0], now)
        if soonest < self._quiet_until:
            self._quiet_until = soonest
        if soonest == now and self._wake_at != now and self.env.reached > self._priority:
            self._wake_at = now
            self.env.call_at(0, self._wake, now, priority=self._priority)
        else:
            self._arm()

    def stale(self, key: Key) -> None:
        """Something this key's last pass read has changed."""
        memo = self._memo
        if key not in memo:
            return
        now = self.env._now
        if self._quiet_until <= now:
            self._replay(self._before())
            if key not in memo:
                return
        del memo[key]
        if key in self.queue.entered:
            self._seq += 1
            heappush(self._ready, (self._offsets[key][0], self._seq, key))
        due = self.queue.due.get(key)
        if due is not None:
            heappush(self._stale_due, (due, key))
        if not now <= self._wake_at <= max(self._free[0], now):
            self._arm()

    def wake(self, key: Key) -> None:
        """Something outside the API server changed for this key: look at it afresh."""
        self.stale(key)
        self.add(key)

    def stop(self) -> None:
        """The process ended: nothing of this controller runs any more."""
        self._replay(self._before())
        self.stopped = True
        self._memo.clear()

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

    def _enter(self, key: Key, at: int) -> None:
        if self.queue.push(key, at):
            self._placed(key)

    def _placed(self, key: Key) -> None:
        """The key has just entered the line: note the work ahead of it."""
        memo = self._memo.get(key)
        at = self._tail_offset
        if memo is None:
            self._offsets[key] = (at, 0)
            self._seq += 1
            heappush(self._ready, (at, self._seq, key))
        else:
            cost = memo[0]
            self._offsets[key] = (at, cost)
            self._tail_offset = at + cost

    def _mature(self, now: int) -> None:
        """Timers that have fired put their keys in line, as `_placed` does."""
        memos, offsets, tail = self._memo, self._offsets, self._tail_offset
        for key in self.queue.mature(now):
            memo = memos.get(key)
            if memo is None:
                self._tail_offset = tail
                self._placed(key)
            else:
                cost = memo[0]
                offsets[key] = (tail, cost)
                tail += cost
        self._tail_offset = tail

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
        queue, free, memos, stats = self.queue, self._free, self._memo, self.stats
        line, entered, offsets, due_of = queue.line, queue.entered, self._offsets, queue.due
        while True:
            if self._redo:
                self._come_back(limit)
            if not line:
                due = queue.next_due()
                if due is None or due > limit:
                    if not self._redo:
                        self._quiet_until = _NEVER if due is None else due
                    return
                if not self._rotate(limit):
                    self._mature(due)
                continue
            if self._pass_over(limit):
                continue
            key = line[0]
            start = entered[key]
            if free[0] > start:
                start = free[0]
            if start > limit:
                if not self._redo:
                    self._quiet_until = start
                return
            memo = memos.get(key)
            if memo is None:
                if start < self.env.now:
                    raise AssertionError(
                        f"{self.reconciler.name} {key}: pass due at {start} ns met at {self.env.now} ns")
                return
            line.popleft()
            del entered[key]
            cost, again = memo
            offset, was = offsets.pop(key)
            self._head_offset = offset + was
            end = start + cost
            free[0] = end
            stats.skipped += 1
            stats.busy_ns += cost
            self._busy = {key: end}
            if key in due_of:
                self._at_work(key, start, end)
            if again is not None:
                queue.push_after(key, end, again)

    def _pass_over(self, limit: int) -> bool:
        """The plain polls at the head of the line that start at or before `limit`: known unchanged, no timer pending,
        to come again after one delay. Says whether there were any. What `_replay` does with one, without its questions.
        """
        queue, memos, offsets = self.queue, self._memo, self._offsets
        line, entered, due = queue.line, queue.entered, queue.due
        first = memos.get(line[0])
        if first is None or first[1] is None:
            return False
        delay = first[1]
        row = queue.row_of(delay)
        if row is None or (row and row[-1][0] > self._free[0] + delay):
            return False
        free, passed, spent, seq = self._free[0], 0, 0, queue._seq
        key, last = line[0], (0, 0)
        while line:
            candidate = line[0]
            memo = memos.get(candidate)
            if memo is None or memo[1] != delay or candidate in due:
                break
            start = entered[candidate]
            if start < free:
                start = free
            if start > limit:
                break
            key = line.popleft()
            del entered[key]
            last = offsets.pop(key)
            cost = memo[0]
            free = start + cost
            spent += cost
            passed += 1
            again = free + delay
            due[key] = again
            row.append((again, seq + passed, key))
        if not passed:
            return False
        queue._seq = seq + passed
        if row[0][0] < queue.soonest:
            queue.soonest = row[0][0]
        self._head_offset = last[0] + last[1]
        self._free[0] = free
        self._busy = {key: free}
        self.stats.skipped += passed
        self.stats.busy_ns += spent
        return True

    def _rotate(self, limit: int) -> bool:
        """The line is empty and only polls of one period are due: pass over them without putting them in line.

        They come in the order of their timers and each goes to the end of that order again. False if none was passed.
        """
        queue, memos, busy = self.queue, self._memo, self._busy
        found = queue.row()
        if found is None or len(self._free) > 1 or self._redo:
            return False
        delay, row, others = found
        if self._jump(delay, row, min(limit, others - 1)):
            return True
        due, free, passed, spent = queue.due, self._free[0], 0, 0
        seq = queue._seq
        key = None
        enough = 2 * len(row)  # then whole rounds may be tried again
        while row and passed < enough:
            at, _, candidate = row[0]
            if due.get(candidate) != at:
                row.popleft()
                continue
            start = at if at > free else free
            memo = memos.get(candidate)
            if (start > limit or at >= others or memo is None or memo[1] != delay
                    or (busy and busy.get(candidate, 0) > at)):
                break
            key = candidate
            cost = memo[0]
            free = start + cost
            spent += cost
            passed += 1
            seq += 1
            row.popleft()
            again = free + delay
            due[key] = again
            row.append((again, seq, key))
            busy = {}
        if key is None:
            return False
        queue._seq = seq
        queue.soonest = 0
        self._free[0] = free
        self._busy = {key: free}
        self.stats.skipped += passed
        self.stats.busy_ns += spent
        return True

    def _jump(self, delay: int, row: deque[tuple[int, int, Key]], end: int) -> bool:
        """Whole rounds of a row by arithmetic, as many as start until `end`; False if there are fewer than three.

        A poll that starts when it is due moves by delay + cost each round; one that waits for the poll before it moves
        with that one. While it stays the same who waits, all starts are linear in the number of rounds: what holds in
        the second round and in the last holds in between. Where all wait and a round takes longer than any poll's
        delay, all wait for ever and each start moves by the whole round.
        """
        queue, memos, due = self.queue, self._memo, self.queue.due
        if row[-1][0] + 3 * delay > end:
            return False
        free, slope, all_wait, longest = self._free[0], -1, True, 0
        polls: list[tuple[int, int, int, Key]] = []  # start in the first round, cost, move per round, key
        linear = True
        for at, _, key in row:
            memo = memos.get(key)
            if memo is None or memo[1] != delay or due.get(key) != at:
                return False
            cost = memo[0]
            if at > free:
                all_wait = False
            if not polls or at >= free:
                start, slope = max(at, free), delay + cost
            else:
                start = free
                linear &= delay + cost <= slope
            free = start + cost
            if cost > longest:
                longest = cost
            polls.append((start, cost, slope, key))
        last, around = polls[-1][0], free - polls[0][0]
        if all_wait and around >= delay + longest:
            rounds = (end - last) // around + 1
            polls = [(start, cost, around, key) for start, cost, _, key in polls]
        elif linear:
            rounds = (end - last) // slope + 1
            while rounds > 2 and not (_same(polls, delay, 1) and _same(polls, delay, rounds - 1)):
                rounds //= 2
        else:
            return False
        if rounds < 3:
            return False
        count, seq = len(polls), queue._seq + (rounds - 1) * len(polls)
        row.clear()
        for i, (start, cost, slope, key) in enumerate(polls, 1):
            free = start + (rounds - 1) * slope + cost
            due[key] = free + delay
            row.append((free + delay, seq + i, key))
        queue._seq, queue.soonest = seq + count, 0
        self._free[0] = free
        self._busy = {polls[-1][3]: free}
        self.stats.skipped += rounds * count
        self.stats.busy_ns += rounds * sum(cost for _, cost, _, _ in polls)
        return True

    def _come_back(self, now: int) -> None:
        """Keys that changed while they were worked on re-enter when their pass ends."""
        for key, end in sorted(self._redo.items(), key=lambda item: item[1]):
            if end <= now:
                del self._redo[key]
                self._mature(end)
                self._enter(key, end)

    # --- waking

    def _arm(self) -> None:
        """Wake when the next pass that must really run starts, or when it can be known."""
        queue, at = self.queue, None
        real, offsets = self._ready, self._offsets
        while real:
            offset, _, key = real[0]
            found = offsets.get(key)
            if found is not None and found[0] == offset:
                at = queue.entered[queue.line[0]]
                if self._free[0] > at:
                    at = self._free[0]
                if len(self._free) == 1:
                    at += offset - self._head_offset  # what stands ahead is all known work, so the start is a sum
                break
            heappop(real)
        if self._redo:
            first = min(self._redo.values())
            at = first if at is None or first < at else at
        stale = self._stale_due
        while stale:
            due, key = stale[0]
            if queue.due.get(key) == due and key not in self._memo:
                if at is None or due < at:
                    at = due
                break
            heappop(stale)
        if at is None:
            return
        now = self.env._now
        if at < now:
            at = now
        if self._wake_at < now or at < self._wake_at:
            self._wake_at = at
            self.env.post(at - now, self._wake, (at,), self._priority)

    def _wake(self, at: int) -> None:
        if self.stopped:
            return
        if self._wake_at == at:
            self._wake_at = -1
        if self._quiet_until < at:
            self._replay(at - 1)
        queue = self.queue
        if at >= queue.soonest:
            self._mature(at)
        if self._quiet_until <= at:
            self._replay(at)
        line = queue.line
        if line and self._free[0] <= at and queue.entered[line[0]] <= at:
            key = line.popleft()
            entered = queue.entered.pop(key)
            offset, cost = self._offsets.pop(key)
            self._head_offset = offset + cost  # what stands behind it has that much less ahead
            self.stats.waits_ns.append(at - entered)
            self._run(key, entered, at)
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
            queue.forget(key)
            again = None if result.requeue_after_s is None else round(result.requeue_after_s * NS)
            if self._collapse and not meter.effects:
                self._remember(key, cost, again, ctx)
            if again is not None:
                due = queue.push_after(key, end, again)
                if key not in self._memo:
                    heappush(self._stale_due, (due, key))
            elif key in queue.due and key not in self._memo:
                heappush(self._stale_due, (queue.due[key], key))
        if self._on_pass is not None and meter.effects:
            self._on_pass(key, entered, now, end)

    def _remember(self, key: Key, cost: int, again: int | None, ctx: Context) -> None:
        me = (self, key)
        for readers, token in self.meter.reads:
            waiting = readers.get(token)
            if waiting is None:
                readers[token] = {me: None}
            else:
                waiting[me] = None
        self._memo[key] = (cost, again)
        until = ctx.unchanged_until
        if until is not None:
            at = round((until - EPOCH) * NS) - _FLOAT_NS
            self.env.call_at(max(at - self.env.now, 0), self.stale, key)

    def _error(self, key: Key, message: str) -> None:
        if self._on_error is not None:
            self._on_error(key, message)


def _same(polls: list[tuple[int, int, int, Key]], delay: int, n: int) -> bool:
    """Does every poll that moves by itself start when it is due in round n, the first one of them after round n - 1?"""
    start, cost, slope, _ = polls[-1]
    free = start + (n - 1) * slope + cost
    for start, cost, slope, _ in polls:
        starts = start + n * slope
        if starts < free:
            return False
        free = starts + cost
    return True
