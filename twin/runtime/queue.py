"""The work queue of one controller, without a clock: times are integers (nanoseconds) that the caller passes in.

Behaves as client-go's rate-limiting queue does under controller-runtime: a key is held once, a key that changes while
it is worked on comes back when the pass ends, the earliest of several timers for a key stays, and errors back off per
key (5 ms doubling to 1000 s) within a bucket shared by the controller (10 a second, burst 100).
The same object serves the simulated runner and the threaded one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from twin.model.meta import Key

NS = 1_000_000_000
_NEVER = 1 << 62
_ROWS = 4


@dataclass(frozen=True, slots=True)
class BackOff:
    """client-go's default controller rate limiter. Delays in ns."""

    base_ns: int = 5_000_000
    max_ns: int = 1000 * NS
    bucket_qps: int = 10
    bucket_burst: int = 100


class WorkQueue:
    """FIFO of ready keys (`line`) and timers that feed it."""

    __slots__ = ("_backoff", "_bucket_at", "_heap", "_latest", "_rounds", "_seq", "due", "entered", "failed", "line",
                 "soonest")

    def __init__(self, backoff: BackOff = BackOff()) -> None:
        self.line: deque[Key] = deque()
        self.entered: dict[Key, int] = {}
        """Keys in the line, with the time each entered it."""
        self.due: dict[Key, int] = {}
        """Pending timer per key: the earliest asked for."""
        self.soonest = _NEVER
        """No timer fires before this (it may be later)."""
        self._rounds: dict[int, deque[tuple[int, int, Key]]] = {}
        self._latest: dict[int, int] = {}
        """When the last timer of each row fires."""
        self._heap: list[tuple[int, int, Key]] = []
        self._seq = 0
        self.failed: dict[Key, int] = {}
        """Keys whose last passes failed, and how often in a row."""
        self._backoff = backoff
        self._bucket_at = -(10**30)

    def __len__(self) -> int:
        return len(self.line)

    def push(self, key: Key, now: int) -> bool:
        """Put the key at the end of the line; False if it is in line already."""
        if key in self.entered:
            return False
        self.entered[key] = now
        self.line.append(key)
        return True

    def pop(self) -> tuple[Key, int]:
        """The first key in line and the time it entered. Raises IndexError when the line is empty."""
        key = self.line.popleft()
        return key, self.entered.pop(key)

    def push_after(self, key: Key, now: int, delay: int) -> int:
        """Put the key in line at `now + delay`, unless an earlier timer is pending. Returns the timer in force."""
        at = now + delay
        pending = self.due.get(key)
        if pending is not None and pending <= at:
            return pending
        self.due[key] = at
        if at < self.soonest:
            self.soonest = at
        self._seq += 1
        entry = (at, self._seq, key)
        # Equal delays asked for in time order are sorted by themselves: a deque instead of a heap.
        row = self.row_of(delay)
        if row is not None and (not row or self._latest[delay] <= at):
            row.append(entry)
            self._latest[delay] = at
        else:
            heappush(self._heap, entry)
        return at

    def row_of(self, delay: int) -> deque[tuple[int, int, Key]] | None:
        """The timers of this delay in the order of their firing; None: too many delays have a row of their own."""
        row = self._rounds.get(delay)
        if row is None and len(self._rounds) < _ROWS:
            row = self._rounds[delay] = deque()
        return row

    def push_failed(self, key: Key, now: int) -> int:
        """Put the key in line after its back-off. Returns the timer in force."""
        n = self.failed.get(key, 0)
        self.failed[key] = n + 1
        b = self._backoff
        delay = min(b.base_ns << n, b.max_ns) if n < 60 else b.max_ns
        interval = NS // b.bucket_qps
        self._bucket_at = max(self._bucket_at, now - b.bucket_burst * interval) + interval
        return self.push_after(key, now, max(delay, self._bucket_at - now))

    def forget(self, key: Key) -> None:
        """The key's last pass succeeded: its back-off starts anew."""
        self.failed.pop(key, None)

    def failures(self, key: Key) -> int:
        return self.failed.get(key, 0)

    def next_due(self) -> int | None:
        """When the next timer fires, or None."""
        head = self._head()
        return head[0][0] if head is not None else None

    def mature(self, now: int) -> list[Key]:
        """Move every timer due at or before `now` into the line, in order of time; returns the keys that entered it."""
        found: list[Key] = []
        if now < self.soonest:
            return found
        due, entered, line, heap = self.due, self.entered, self.line, self._heap
        while (head := self._head()) is not None and head[0][0] <= now:
            first, mine = head
            if mine is None:
                heappop(heap)
                fired: Iterable[tuple[int, int, Key]] = (first,)
            else:
                fired = ripe(mine, self._bound(mine, now))
            for at, _, key in fired:
                if due.get(key) == at:
                    del due[key]
                    if key not in entered:
                        entered[key] = at
                        line.append(key)
                        found.append(key)
        return found

    def _bound(self, row: deque[Any], now: int) -> tuple[int, int]:
        """Which timers of this row fire before any other and until now: those before this (time, number)."""
        at, seq = now, _NEVER
        for other in self._rounds.values():
            if other and other is not row and other[0][:2] < (at, seq):
                at, seq, _ = other[0]
        if self._heap and self._heap[0][:2] < (at, seq):
            at, seq, _ = self._heap[0]
        return at, seq

    def row(self) -> tuple[int, deque[tuple[int, int, Key]], int] | None:
        """(delay, timers of that delay in order, when the first timer of any other kind fires) if the next timer to
        fire stands in such a row; None if it does not, or there is none. For whoever advances a row by itself."""
        head = self._head()
        if head is None or head[1] is None:
            return None
        _, mine = head
        others = self._heap[0][0] if self._heap else _NEVER
        delay = 0
        for d, row in self._rounds.items():
            if row is mine:
                delay = d
            elif row and row[0][0] < others:
                others = row[0][0]
        return delay, mine, others  # type: ignore[return-value]

    def drop_timer(self, key: Key) -> None:
        """Forget a key's pending timer."""
        self.due.pop(key, None)

    def _head(self) -> tuple[tuple[int, int, Key], deque[tuple[int, int, Key]] | None] | None:
        """The earliest live timer and the row it stands in (None: the heap). Drops superseded ones on the way."""
        due, best, where = self.due, None, None
        for row in self._rounds.values():
            while row and due.get(row[0][2]) != row[0][0]:
                row.popleft()
            if row and (best is None or row[0] < best):
                best, where = row[0], row
        heap = self._heap
        while heap and due.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        if heap and (best is None or heap[0] < best):
            self.soonest = heap[0][0]
            return heap[0], None
        if best is None:
            self.soonest = _NEVER
            return None
        self.soonest = best[0]
        return best, where


def ripe(row: deque[tuple[int, int, Key]], bound: tuple[int, int]) -> Iterator[tuple[int, int, Key]]:
    """Take the timers that fire before this one."""
    while row and row[0] < bound:
        yield row.popleft()
