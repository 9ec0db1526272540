"""Which node's maintenance begins next: the maintenance operator's scheduler without its API calls.

At most `max_parallel` nodes are under maintenance (a share is rounded up), and no available node is taken while
`max_unavailable` nodes (rounded down) are unavailable or under maintenance. Requestors with maintenance in progress
come first, then those with the fewest requests waiting (Mellanox/maintenance-operator, internal/scheduler).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from twin.actors.disruption import scaled
from twin.model.meta import Key

IN_PROGRESS_RANK = 1000
FEW_WAITING_RANK = 100


class Waiting(NamedTuple):
    """One request for maintenance. The order of the fields is the order in which equals are served."""

    created: str
    node: str
    requestor: str
    key: Key


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_unavailable` None: no limit."""

    max_parallel: int | str = "60%"
    max_unavailable: int | str | None = None


class Slots:
    """Requests that wait and nodes under maintenance."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._waiting: dict[Key, Waiting] = {}
        self._by_node: dict[str, dict[Key, None]] = {}
        self._heaps: dict[str, list[Waiting]] = {}
        self._count: dict[str, int] = {}
        self._active: dict[Key, tuple[str, str]] = {}
        self._nodes: dict[str, int] = {}
        self._requestors: dict[str, int] = {}

    def wait(self, request: Waiting) -> bool:
        """Line up; False if this request waits or is under way already."""
        if request.key in self._waiting or request.key in self._active:
            return False
        self._waiting[request.key] = request
        self._by_node.setdefault(request.node, {})[request.key] = None
        self._count[request.requestor] = self._count.get(request.requestor, 0) + 1
        heappush(self._heaps.setdefault(request.requestor, []), request)
        return True

    def begin(self, key: Key, node: str, requestor: str) -> None:
        """This node is under maintenance by this request."""
        if key in self._active:
            return
        self._leave_line(key)
        self._active[key] = (node, requestor)
        self._nodes[node] = self._nodes.get(node, 0) + 1
        self._requestors[requestor] = self._requestors.get(requestor, 0) + 1

    def end(self, key: Key) -> bool:
        """The request is gone, wherever it stood. True if a node is free again."""
        self._leave_line(key)
        found = self._active.pop(key, None)
        if found is None:
            return False
        node, requestor = found
        self._requestors[requestor] -= 1
        self._nodes[node] -= 1
        if self._nodes[node] == 0:
            del self._nodes[node]
            for other in self._by_node.get(node, ()):  # those who waited for this node line up again
                request = self._waiting[other]
                heappush(self._heaps[request.requestor], request)
        return True

    @property
    def active(self) -> int:
        return len(self._nodes)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def granted(self, key: Key) -> bool:
        return key in self._active

    def grant(self, total: int, unavailable: Mapping[str, None]) -> list[Key]:
        """Begin as many requests as the limits allow, in order. `unavailable`: nodes cordoned or not ready."""
        if not self._waiting:
            return []
        slots = min(max(0, scaled(self.limits.max_parallel, total) - len(self._nodes)), total)
        room = self._room(total, unavailable)
        begun: list[Key] = []
        while slots > 0:
            request = self._first() if room is None or room > 0 else self._first_among(unavailable)
            if request is None:
                break
            if room is not None and request.node not in unavailable:
                room -= 1
            self.begin(request.key, request.node, request.requestor)
            begun.append(request.key)
            slots -= 1
        return begun

    def _room(self, total: int, unavailable: Mapping[str, None]) -> int | None:
        """How many more nodes may become unavailable; None: any number."""
        if self.limits.max_unavailable is None:
            return None
        gone = len(unavailable) + sum(1 for n in self._nodes if n not in unavailable)
        return max(0, scaled(self.limits.max_unavailable, total, up=False) - gone)

    def _rank(self, requestor: str) -> int:
        others = self._count[requestor] - 1
        busy = IN_PROGRESS_RANK if self._requestors.get(requestor) else 0
        return busy + FEW_WAITING_RANK - min(others, FEW_WAITING_RANK)

    def _first(self) -> Waiting | None:
        best: tuple[int, Waiting] | None = None
        for requestor, heap in self._heaps.items():
            while heap and (self._waiting.get(heap[0].key) != heap[0] or heap[0].node in self._nodes):
                heappop(heap)
            if heap and (best is None or (-self._rank(requestor), heap[0]) < best):
                best = (-self._rank(requestor), heap[0])
        return best[1] if best is not None else None

    def _first_among(self, nodes: Mapping[str, None]) -> Waiting | None:
        """Nodes that are unavailable anyway cost nothing."""
        found = [self._waiting[key] for node in nodes if node not in self._nodes
                 for key in self._by_node.get(node, ())]
        return min(found, key=lambda r: (-self._rank(r.requestor), r), default=None)

    def _leave_line(self, key: Key) -> None:
        request = self._waiting.pop(key, None)
        if request is not None:
            self._count[request.requestor] -= 1
            self._by_node[request.node].pop(key)
