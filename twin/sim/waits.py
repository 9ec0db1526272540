"""How long a controller's passes stood in line: of all of them, also those that were passed over."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

from twin.runtime.queue import NS

_SINGLY: Final = 1 << 16
"""So many waits are held one by one before equal ones are put together."""
DISTINCT: Final = 1 << 16
"""So many different waits of a controller are told apart to the nanosecond. When there are more (a rolling update of
1,000 DPUs has 221,000), those noted until then are cut to whole milliseconds: a run has millions of passes.
"""
_COARSE: Final = NS // 1000


class Waits:
    """Waits in ns, and how many passes had each."""

    __slots__ = ("_bound", "_counts", "_singly", "add")

    def __init__(self, distinct: int = DISTINCT) -> None:
        self._counts: Counter[int] = Counter()
        self._singly = array("q")
        self.add: Callable[[int], None] = self._singly.append
        """One pass had this wait."""
        self._bound = distinct

    def add_many(self, wait: int, passes: int) -> None:
        """So many passes had this wait."""
        counts = self._counts
        counts[wait] += passes
        if len(counts) > self._bound:
            self._cut()

    def add_each(self, waits: Iterable[int]) -> None:
        self._singly.extend(waits)
        if len(self._singly) >= _SINGLY:
            self._gather()

    def counts(self) -> Counter[int]:
        """How many passes had each wait."""
        self._gather()
        return self._counts

    def _gather(self) -> None:
        self._counts.update(self._singly)
        del self._singly[:]
        if len(self._counts) > self._bound:
            self._cut()

    def _cut(self) -> None:
        counts: Counter[int] = Counter()
        for wait, passes in self._counts.items():
            counts[wait - wait % _COARSE] += passes
        self._counts = counts
        self._bound = max(self._bound, 2 * len(counts))


def quantiles_s(all_waits: Iterable[Waits], shares: Sequence[float]) -> list[float]:
    """For each share, how long that share of all passes waited at most, in s; 0 without passes."""
    counts: Counter[int] = Counter()
    for waits in all_waits:
        counts = counts + waits.counts() if counts else waits.counts()
    if not counts:
        return [0.0] * len(shares)
    ascending = sorted(counts)
    upto = list(accumulate(map(counts.__getitem__, ascending)))
    return [ascending[bisect_right(upto, int(upto[-1] * share))] / NS for share in shares]
