"""The work queue of a simulated controller: it knows what the work ahead of a key takes, and moves whole trains of it.

A pass that changes nothing is remembered (`memos`: what it costs, when it comes again). Polls that are known unchanged
and follow one another form a `Train`. It goes round as one piece: from the line to the timers, as far as the worker
gets, and from the timers into the line again, as far as they have fired, so that a saturated worker's ten thousand
polls a round cost a few steps. A key that something happens to is taken out and goes on by itself, in its place.
Everything here has the order and the times that one key after the other would have (tests/sim/test_runner.py).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any, Final, NamedTuple

from twin.model.meta import Key
from twin.runtime.queue import BackOff, WorkQueue, ripe
from twin.sim.rounds import whole_rounds
from twin.sim.waits import Waits

_NEVER: Final = 1 << 62
_NOWHERE: Final = (None, 0)
TRAIN: Final = 16
"""Polls in a row that are worth a train."""


class Train:
    """Keys that are polled in this order with one delay. What it is made of never changes while it has parts."""

    __slots__ = ("again", "costs", "cum", "dearest", "holes", "keys", "parts")

    def __init__(self, keys: list[Key], costs: list[int], again: int | None) -> None:
        self.keys = keys
        self.costs = costs
        self.add_up()
        self.again = again
        self.parts: list[Part] = []
        """Where its keys are now. Those in no part go on by themselves, or have nothing to do."""
        self.holes: list[int] = []
        """The keys that go by themselves, in order."""

    def add_up(self) -> None:
        self.cum = [0, *accumulate(self.costs)]
        """What the polls before each one cost; all of them, at the end."""
        self.dearest = max(self.costs)

    def part_of(self, i: int) -> Part | None:
        """Where poll i is now."""
        return next((p for p in self.parts if p.first <= i < p.end), None)


class Part:
    """The polls `first` to `end - 1` of a train, one behind the other in line or among the timers.

    `moment(i)` is when poll i entered the line, or will. A part in line that was added at one time has slope 0.
    """

    __slots__ = ("base", "end", "first", "in_line", "offset", "seq", "slope", "train")

    def __init__(self, train: Train, first: int, end: int, base: int, slope: int, *, in_line: bool, offset: int = 0,
                 seq: int = 0) -> None:
        self.train = train
        self.first = first
        self.end = end
        self.base = base
        self.slope = slope
        self.in_line = in_line
        self.offset = offset
        """In line: `offset + cum[i]` is the work that was ever put in line before poll i."""
        self.seq = seq
        """Among the timers: poll i's timer was the `seq + i`th."""
        train.parts.append(self)

    def moment(self, i: int) -> int:
        return self.base + self.slope * self.train.cum[i + 1]


class Passed(NamedTuple):
    """Polls that were passed over: how many, what they cost, until when the worker had them, the last one."""

    passes: int
    spent_ns: int
    free: int
    last: Key


class Line(WorkQueue):
    """FIFO of ready keys and timers that feed it. Times are ns."""

    __slots__ = ("_exposed", "_fresh", "_kept", "_riding", "_train", "head_offset", "memos", "offsets", "tail_offset",
                 "waits", "where")

    line: deque[Any]
    """Keys and parts of trains."""
    due: dict[Any, int]
    """Of a part: when its first timer fires."""
    _rounds: dict[Any, deque[Any]]
    _latest: dict[Any, int]

    def __init__(self, backoff: BackOff = BackOff(), *, train: int = TRAIN) -> None:
        super().__init__(backoff)
        self.memos: dict[Key, tuple[int, int | None]] = {}
        """Keys whose next pass is known to change nothing: its cost, and after how long it comes again."""
        self.offsets: dict[Key, tuple[int, int]] = {}
        """Of keys in line that are known unchanged: the known work that was ever put in line before it, and its own."""
        self.head_offset = 0
        self.tail_offset = 0
        self.where: dict[Key, tuple[Train, int]] = {}
        """Keys that travel in a train."""
        self._kept: Train | None = None
        """A train that comes again at the next resync only: `where` holds its keys on when they were passed over."""
        self._fresh: deque[tuple[int, Key]] = deque()
        """Keys in line that were not known unchanged when they entered, with their offsets."""
        self._exposed: list[tuple[int, Key]] = []
        """Keys that something happened to while they stood in line, by offset; some have gone since."""
        self._riding = 0
        """Parts among the timers."""
        self._train = train
        self.waits = Waits()
        """How long the polls stood in line that were passed over; whoever takes a key adds its wait."""

    # --- into the line

    def enter(self, key: Key, at: int) -> None:
        """The key gets in line, unless it stands there."""
        if key in self.entered or (key in self.where and not self.lift(key)):
            return
        self.append(key, at)

    def append(self, key: Key, at: int) -> None:
        """The key, which is in no train, gets in line: note the work ahead of it."""
        self.entered[key] = at
        self.line.append(key)
        if key in self.memos:
            offset, cost = self.tail_offset, self.memos[key][0]
            self.offsets[key] = (offset, cost)
            self.tail_offset = offset + cost
        else:
            self._fresh.append((self.tail_offset, key))

    def enter_all(self, keys: Collection[Key], now: int, busy: Mapping[Key, int]) -> list[Key]:
        """As `enter` for each but those that are being worked on; these are returned, if they are not in line.

        Keys that are known unchanged and wait for nothing may form a train, or go on with the one they were in.
        """
        if not keys:
            return []
        self.dissolve()
        for key in busy:
            if key in self.where:
                self.lift(key)
        kept = self._kept
        if kept is not None:
            if not kept.parts and kept.keys == list(keys):
                self._kept = None
                self._mend(kept, busy)
                return self._board(kept, now, busy)
            self._release()
        entered, where, due, memos = self.entered, self.where, self.due, self.memos
        fresh = [k for k in keys if k not in where and k not in entered]
        held = [k for k in busy if k in fresh]
        if held:
            fresh = [k for k in fresh if k not in held]
        known = [None if k in due else memos.get(k) for k in fresh]
        again = next((memo[1] for memo in known if memo is not None), None)
        costs = [0 if memo is None or memo[1] != again else memo[0] for memo in known]
        if len(fresh) >= self._train and costs.count(0) * self._train < len(fresh):
            self._board(self._made(fresh, costs, again), now, busy)
        else:
            for key in fresh:
                self.append(key, now)
        return held

    def _board(self, train: Train, now: int, busy: Mapping[Key, int]) -> list[Key]:
        """The whole train gets in line; so do the keys that were taken out of it, each by itself in its place.

        Returns those that are being worked on and are not in line.
        """
        held: list[Key] = []
        first, cum = 0, train.cum
        for end in (*train.holes, len(train.keys)):
            if end > first:
                self.line.append(Part(train, first, end, now, 0, in_line=True, offset=self.tail_offset - cum[first]))
                self.tail_offset += cum[end] - cum[first]
            if end < len(train.keys):
                key = train.keys[end]
                if key not in busy:
                    self.enter(key, now)
                elif key not in self.entered:
                    held.append(key)
            first = end + 1
        return held

    def _mend(self, train: Train, busy: Mapping[Key, int]) -> None:
        """Keys that were taken out of a train that stands nowhere join it again: those that are known unchanged and
        wait for nothing."""
        memos, entered, where, due = self.memos, self.entered, self.where, self.due
        holes: list[int] = []
        for i in train.holes:
            key = train.keys[i]
            memo = memos.get(key)
            if (memo is None or memo[1] != train.again or not memo[0] or key in entered or key in where or key in due
                    or key in busy):
                holes.append(i)
            else:
                train.costs[i] = memo[0]
                where[key] = (train, i)
        train.holes = holes
        train.add_up()

    def _release(self) -> None:
        """The keys of the kept train that are in no part of it are not in a train any more."""
        kept, self._kept = self._kept, None
        if kept is not None:
            going = {i for part in kept.parts for i in range(part.first, part.end)}
            self._disband(kept, (i for i in range(len(kept.keys)) if i not in going))

    def _disband(self, train: Train, polls: Iterable[int]) -> None:
        """These keys are not in the train any more."""
        for i in polls:
            key = train.keys[i]
            if self.where.get(key, _NOWHERE)[0] is train:
                del self.where[key]
                train.holes.append(i)
        train.holes.sort()

    def mature(self, now: int) -> list[Key]:
        """Timers that have fired put their keys in line, in order of time. Returns those that came by themselves."""
        found: list[Key] = []
        if now < self.soonest:
            return found
        due, entered = self.due, self.entered
        while (head := self._head()) is not None and head[0][0] <= now:
            first, row = head
            bound = (now, _NEVER)
            if row is None:
                heappop(self._heap)
                fired: Iterable[Any] = (first,)
            else:
                bound = self._bound(row, now)
                fired = ripe(row, bound)
            for at, _, key in fired:
                if due.get(key) != at:
                    continue
                del due[key]
                if row is not None and key.__class__ is Part:
                    self._part_fires(key, row, bound)
                elif key not in entered:
                    self.append(key, at)
                    found.append(key)
        return found

    def _part_fires(self, part: Part, row: deque[Any], bound: tuple[int, int]) -> None:
        """The timers of this part that come before the bound put their polls in line; the rest stays first in its row.
        """
        train, cum = part.train, part.train.cum
        upto = bisect_right(cum, bound[0] - part.base, part.first + 1, part.end + 1) - 1
        if part.moment(upto - 1) == bound[0] and part.seq + upto - 1 > bound[1]:
            upto -= 1
        offset = self.tail_offset - cum[part.first]
        self.tail_offset += cum[upto] - cum[part.first]
        last = self.line[-1] if self.line else None
        if (last.__class__ is Part and last.train is train and last.end == part.first and last.offset == offset
                and last.slope == 1 and last.base == part.base):
            last.end = upto
        else:
            self.line.append(Part(train, part.first, upto, part.base, 1, in_line=True, offset=offset))
        part.first = upto
        if upto == part.end:
            train.parts.remove(part)
            self._riding -= 1
        else:
            self._wait(part, row, first=True)

    # --- out of it

    def take(self) -> tuple[Key, int]:
        """The first in line, which stands there by itself, and when it entered."""
        key: Key = self.line.popleft()
        if self._fresh and self._fresh[0][1] is key:
            self.head_offset = self._fresh.popleft()[0]
        else:
            offset, cost = self.offsets.pop(key)
            self.head_offset = offset + cost  # what stands behind it has that much less ahead
        return key, self.entered.pop(key)

    def expose(self, key: Key) -> int | None:
        """The key's next pass must really run. Returns its pending timer, if any."""
        del self.memos[key]
        if key in self.where:
            self.pull(key)
        if key in self.entered:
            heappush(self._exposed, (self.offsets[key][0], key))
        return self.due.get(key)

    def first_run(self, free: int) -> int | None:
        """When the first pass that must really run begins, if the worker is free from then on; None: none is in line.

        What stands ahead of it is all known work, so the moment is a sum.
        """
        line = self.line
        if not line:
            return None
        head, at = line[0], self.first_start(free)
        if head not in self.memos and head.__class__ is not Part:
            return at
        first = self._fresh[0][0] if self._fresh else None
        exposed = self._exposed
        while exposed:
            offset, key = exposed[0]
            found = self.offsets.get(key)
            if found is not None and found[0] == offset and key not in self.memos:
                if first is None or offset < first:
                    first = offset
                break
            heappop(exposed)
        return None if first is None else at + first - self.head_offset

    def lift(self, key: Key) -> bool:
        """Take a key out of its train: it goes on by itself, in its place. False, and nothing is done, if that is in
        line."""
        train, i = self.where[key]
        part = train.part_of(i)
        if part is None:
            insort(train.holes, i)
            del self.where[key]
            return True
        if part.in_line:
            return False
        row = self._rounds[train.again]
        at = next(n for n, entry in enumerate(row) if entry[2] is part)
        row.rotate(-at)
        row.popleft()
        del self.due[part]
        moment, seq = part.moment(i), part.seq + i
        before, after = self._cut(part, i)
        self._riding += (before is not None) + (after is not None) - 1
        if after is not None:
            self._wait(after, row, first=True)
        self.due[key] = moment
        row.appendleft((moment, seq, key))
        if before is not None:
            self._wait(before, row, first=True)
        row.rotate(at)
        return True

    def pull(self, key: Key) -> None:
        """Take a key out of its train, wherever it is."""
        if self.lift(key):
            return
        train, i = self.where[key]
        part = train.part_of(i)
        assert part is not None
        line = self.line
        at = line.index(part)
        line.rotate(-at)
        line.popleft()
        self.entered[key] = part.moment(i)
        self.offsets[key] = (part.offset + train.cum[i], train.cum[i + 1] - train.cum[i])
        before, after = self._cut(part, i)
        line.extendleft(entry for entry in (after, key, before) if entry is not None)
        line.rotate(at)

    def _cut(self, part: Part, i: int) -> tuple[Part | None, Part | None]:
        """The part before poll i and the part behind it."""
        train, before, after = part.train, None, None
        insort(train.holes, i)
        del self.where[train.keys[i]]
        if i + 1 < part.end:
            after = Part(train, i + 1, part.end, part.base, part.slope, in_line=part.in_line, offset=part.offset,
                         seq=part.seq)
        if i > part.first:
            part.end = i
            before = part
        else:
            train.parts.remove(part)
        return before, after

    def _wait(self, part: Part, row: deque[Any], *, first: bool = False) -> None:
        """The part stands among the timers."""
        at = part.moment(part.first)
        self.due[part] = at
        entry = (at, part.seq + part.first, part)
        if first:
            row.appendleft(entry)
        else:
            row.append(entry)

    def dissolve(self) -> None:
        """All polls among the timers go on by themselves."""
        if not self._riding:
            return
        for row in self._rounds.values():
            singly: list[Any] = []
            for entry in row:
                part = entry[2]
                if part.__class__ is not Part:
                    singly.append(entry)
                    continue
                del self.due[part]
                part.train.parts.remove(part)
                for i in range(part.first, part.end):
                    key, moment = part.train.keys[i], part.moment(i)
                    del self.where[key]
                    self.due[key] = moment
                    singly.append((moment, part.seq + i, key))
            row.clear()
            row.extend(singly)
        self._riding = 0

    def _made(self, keys: list[Key], costs: list[int], again: int | None) -> Train:
        """A train of these keys; one without a cost stays by itself."""
        train = Train(keys, costs, again)
        for i, key in enumerate(keys):
            if costs[i]:
                self.where[key] = (train, i)
            else:
                train.holes.append(i)
        return train

    # --- over what is known

    def first_start(self, free: int) -> int:
        """When the worker, free from then on, begins with the first in line."""
        head = self.line[0]
        entered: int = head.moment(head.first) if head.__class__ is Part else self.entered[head]
        return entered if entered > free else free

    def pass_over(self, free: int, limit: int) -> Passed | None:
        """The polls at the head of the line that start at or before `limit`: known unchanged, no timer pending, to come
        again after a delay. None if there is none.
        """
        line, memos, entered, offsets, due = self.line, self.memos, self.entered, self.offsets, self.due
        run: list[Key] = []
        costs: list[int] = []
        again: int | None = None
        count, began, spent, last = 0, free, 0, None
        waits: list[int] = []
        while line:
            head = line[0]
            if head.__class__ is Part:
                if run and head.end - head.first < self._train and head.train.again == again:
                    done = self._absorb(head, free, limit, run, costs)
                    if not done:
                        break
                else:
                    self._again(run, costs, again, began)
                    run, costs = [], []
                    done = self._ride(head, free, limit)
                    if not done:
                        break
                    began = free + done[1]
                last = done[2]
                count += done[0]
                spent += done[1]
                free += done[1]
                continue
            memo = memos.get(head)
            if memo is None or memo[1] is None or head in due:
                break
            start = entered[head]
            if start < free:
                start = free
            if start > limit:
                break
            if memo[1] != again or start != free:
                self._again(run, costs, again, began)
                run, costs, again, began = [], [], memo[1], start
            line.popleft()
            waits.append(start - entered.pop(head))
            offset, was = offsets.pop(head)
            self.head_offset = offset + was
            run.append(head)
            costs.append(memo[0])
            free = start + memo[0]
            spent += memo[0]
            count += 1
            last = head
        if last is None:
            return None
        self._again(run, costs, again, began)
        if waits:
            self.waits.add_each(waits)
        return Passed(count, spent, free, last)

    def _again(self, keys: list[Key], costs: list[int], again: int | None, began: int) -> None:
        """These polls were passed one behind the other from `began` on: their timers start."""
        if again is None or not keys:
            return
        free, row = began, self.row_of(again)
        if row is None or (row and self._latest[again] > free + costs[0] + again):
            for key, cost in zip(keys, costs, strict=True):
                free += cost
                self.push_after(key, free, again)
            return
        if len(keys) >= self._train and 0 not in costs:
            self._depart(self._made(keys, costs, again), 0, len(keys), began + again, row)
            return
        due, seq, at = self.due, self._seq, 0
        for key, cost in zip(keys, costs, strict=True):
            free += cost
            seq += 1
            due[key] = at = free + again
            row.append((at, seq, key))
        self._seq = seq
        self._latest[again] = at
        if row[0][0] < self.soonest:
            self.soonest = row[0][0]

    def _depart(self, train: Train, first: int, end: int, base: int, row: deque[Any]) -> None:
        """These polls of a train were passed: they stand last among the timers."""
        seq = self._seq + 1 - first
        last = row[-1][2] if row else None
        if (last.__class__ is Part and last.train is train and last.end == first and last.base == base
                and last.seq == seq):
            last.end = end
        else:
            self._riding += 1
            self._wait(Part(train, first, end, base, 1, in_line=False, seq=seq), row)
        self._seq += end - first
        self._latest[train.again] = base + train.cum[end]
        if row[0][0] < self.soonest:
            self.soonest = row[0][0]

    def _starting(self, part: Part, free: int, limit: int) -> int:
        """Up to which poll of a part at the head of the line all start by `limit`, each when the one before it ends."""
        train, cum = part.train, part.train.cum
        latest = part.base if part.slope == 0 else part.base + cum[part.first] + train.dearest
        if latest > free:
            return part.first
        return bisect_right(cum, limit - free + cum[part.first], part.first, part.end)

    def _ride(self, part: Part, free: int, limit: int) -> tuple[int, int, Key] | None:
        """Pass over as much of the part at the head of the line as starts by `limit`: how many, their cost, the last.
        """
        train, cum, first = part.train, part.train.cum, part.first
        upto = self._starting(part, free, limit)
        if upto == first:
            return None
        again = train.again
        if again is not None:
            row = self.row_of(again)
            if row is None or (row and self._latest[again] > free + cum[first + 1] - cum[first] + again):
                return None
            self._depart(train, first, upto, free - cum[first] + again, row)
        elif self._kept is None or self._kept is train:
            self._kept = train
        else:
            self._disband(train, range(first, upto))
        self._shorten(part, free, upto)
        return upto - first, cum[upto] - cum[first], train.keys[upto - 1]

    def _absorb(self, part: Part, free: int, limit: int, run: list[Key],
                costs: list[int]) -> tuple[int, int, Key] | None:
        """As `_ride`, but the polls leave their train and join this run of single ones."""
        train, cum, first = part.train, part.train.cum, part.first
        upto = self._starting(part, free, limit)
        if upto == first:
            return None
        for i in range(first, upto):
            run.append(train.keys[i])
            costs.append(cum[i + 1] - cum[i])
            del self.where[train.keys[i]]
        self._shorten(part, free, upto)
        return upto - first, cum[upto] - cum[first], train.keys[upto - 1]

    def _shorten(self, part: Part, free: int, upto: int) -> None:
        """The polls before this one leave the head of the line, the first at `free`, each when the one before it ends.
        """
        self._note(part, free, upto)
        self.head_offset = part.offset + part.train.cum[upto]
        part.first = upto
        if upto == part.end:
            self.line.popleft()
            part.train.parts.remove(part)

    def _note(self, part: Part, free: int, upto: int) -> None:
        """How long these polls stood in line. Timers fire as far apart as the polls end, and the next starts when one
        ends: of polls that came by timer, those that cost the same waited equally long.
        """
        train, first = part.train, part.first
        wait = free - train.cum[first] - part.base
        if part.slope == 0:
            self.waits.add_each([wait + ahead for ahead in train.cum[first:upto]])
        else:
            for cost, polls in Counter(train.costs[first:upto]).items():
                self.waits.add_many(wait - cost, polls)

    def rotate(self, free: int, limit: int, busy: dict[Key, int]) -> Passed | None:
        """The line is empty and only polls of one period are due: pass over them without putting them in line.

        They come in the order of their timers and each goes to the end of that order again. None if none was passed.
        `busy`: until when the last key is worked on.
        """
        self.dissolve()
        found = self.row()
        if found is None:
            return None
        delay, row, others = found
        jumped = self._jump(delay, row, free, min(limit, others - 1))
        if jumped is not None:
            return jumped
        due, memos, seq = self.due, self.memos, self._seq
        waits: list[int] = []
        key, passed, spent, again = None, 0, 0, 0
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
            if start > at:
                waits.append(start - at)
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
            return None
        self._seq, self._latest[delay] = seq, again
        self.soonest = 0
        self.waits.add_each(waits)
        self.waits.add_many(0, passed - len(waits))
        return Passed(passed, spent, free, key)

    def _jump(self, delay: int, row: deque[Any], free: int, end: int) -> Passed | None:
        """Whole rounds of a row, as many as start until `end`; None if there are fewer than three."""
        if row[-1][0] + 3 * delay > end:
            return None
        timers: list[tuple[int, int]] = []
        for at, _, key in row:
            memo = self.memos.get(key)
            if memo is None or memo[1] != delay or self.due.get(key) != at:
                return None
            timers.append((at, memo[0]))
        rounds, polls = whole_rounds(timers, delay, free, end)
        if rounds < 3:
            return None
        self.waits.add_each([poll.start - at for poll, (at, _) in zip(polls, timers, strict=True)])
        for late, n in Counter(poll.slope - poll.cost for poll in polls).items():
            self.waits.add_many(late - delay, n * (rounds - 1))
        keys, seq = [key for _, _, key in row], self._seq + (rounds - 1) * len(row)
        row.clear()
        for key, poll in zip(keys, polls, strict=True):
            seq += 1
            free = poll.start + (rounds - 1) * poll.slope + poll.cost
            self.due[key] = free + delay
            row.append((free + delay, seq, key))
        self._seq, self.soonest, self._latest[delay] = seq, 0, free + delay
        return Passed(rounds * len(keys), rounds * sum(poll.cost for poll in polls), free, keys[-1])
