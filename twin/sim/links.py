"""Links as shared bandwidth: every flow on a link gets an equal share (processor sharing), there are no slots.

A flow crosses a path of links and runs at the least of `capacity / flows` over them and of its own cap. What a flow
leaves unused on a link is not given to the others; this keeps one number per link and errs on the slow side.

Cost. Flows with the same path and cap form a bundle. Whatever limits a bundle, a link's share or its cap, is its
clock: a counter of the bytes that one flow has moved since the clock started. A change of a link's share then costs
nothing per flow or bundle that keeps its clock, and an arrival or departure on a single link is O(log flows).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Final

from twin.backends.base import Operation
from twin.sim.clock import SECOND, Call, TwinEnvironment

_INF: Final = float("inf")


class Clock:
    """Bytes per flow against time, at a rate that everything bound here shares."""

    __slots__ = ("bound", "heap", "moved", "name", "rate", "since", "wake", "wake_at")

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self.rate = rate  # bytes per nanosecond and flow
        self.moved = 0.0  # bytes per flow until `since`
        self.since = 0
        self.bound: dict[Bundle, None] = {}
        self.heap: list[tuple[float, int, Bundle]] = []  # (value of this clock at a bundle's next end, id, bundle)
        self.wake: Call | None = None
        self.wake_at = 0

    def advance(self, now: int) -> float:
        """Bytes per flow until now. An idle clock starts again from 0, which keeps its numbers small and exact."""
        if not self.bound:
            self.moved, self.since = 0.0, now
        elif now != self.since:
            self.moved += self.rate * (now - self.since)
            self.since = now
        return self.moved


class Link(Clock):
    """A link with `capacity` bytes per second (0: nothing moves). `nominal` is its capacity when healthy."""

    __slots__ = ("bundles", "capacity", "flows", "limiters", "nominal", "rises_to")

    def __init__(self, name: str, capacity: float) -> None:
        super().__init__(name, capacity / SECOND)
        self.capacity = self.nominal = capacity
        self.flows = 0
        self.bundles: dict[Bundle, None] = {}
        self.limiters: dict[Clock, int] = {}  # which clocks limit the bundles that cross this link, and how many each
        self.rises_to = _INF  # up to this rate no bundle bound here finds another clock slower


class Bundle:
    """Flows with the same path and cap: they always run at the same rate."""

    __slots__ = ("cap", "clock", "flows", "heap", "links", "offset")

    def __init__(self, links: tuple[Link, ...], cap: Clock | None) -> None:
        self.links = links
        self.cap = cap
        self.clock: Clock = cap or links[0]
        self.offset = 0.0  # bytes per flow of this bundle = clock.moved + offset
        self.flows = 0
        self.heap: list[tuple[float, int, Flow]] = []  # (bytes of this bundle at the flow's end, id, flow)


class Flow:
    __slots__ = ("bundle", "bytes", "end", "op", "started")

    def __init__(self, bundle: Bundle, size: float, op: Operation, started: int) -> None:
        self.bundle = bundle
        self.bytes = size
        self.op: Operation | None = op
        self.started = started
        self.end = 0.0  # bytes of its bundle at its end


Observer = Callable[[str, str, int, int], None]
"""(operation name, limiting link or '', nanoseconds it took, nanoseconds beyond what it would have taken alone)"""


class Links:
    """All links of a world and the flows on them."""

    def __init__(self, env: TwinEnvironment, observer: Observer | None = None) -> None:
        self._env = env
        self.observer = observer
        self.on_change: Callable[[], None] | None = None
        """Told whenever shares of links change."""
        self._caps: dict[float, Clock] = {}
        self._bundles: dict[tuple[tuple[Link, ...], float], Bundle] = {}
        self._flows: dict[Operation, Flow] = {}
        self._ids = count()

    def transfer(self, path: tuple[Link, ...], size: float, *, cap: float = _INF, name: str = "transfer") -> Operation:
        """Move `size` bytes over all links of `path` at once, at most `cap` bytes per second. Succeeds at the end."""
        op = Operation(name)
        if not path and cap == _INF:
            self._env.call_at(0, op.succeed)
            return op
        now = self._env._now
        bundle = self._bundles.get((path, cap)) or self._new_bundle(path, cap)
        flow = self._flows[op] = Flow(bundle, size, op, now)
        for link in bundle.links:
            link.flows += 1
        bundle.flows += 1
        self._reshare(bundle.links, now)
        if bundle.flows == 1:
            self._bind(bundle, now)
        flow.end = end = bundle.clock.advance(now) + bundle.offset + size
        entry = (end, next(self._ids), flow)
        heappush(bundle.heap, entry)
        if bundle.heap[0] is entry:
            self._expect(bundle, now)
        return op

    def moved(self, op: Operation) -> float:
        """Bytes that a transfer has moved so far; 0 if it is over."""
        flow = self._flows.get(op)
        if flow is None:
            return 0.0
        bundle = flow.bundle
        left = flow.end - bundle.clock.advance(self._env.now) - bundle.offset
        return min(flow.bytes, max(0.0, flow.bytes - left))

    def rate(self, op: Operation) -> float:
        """Bytes per nanosecond that a transfer moves now; 0 if it is over."""
        flow = self._flows.get(op)
        return flow.bundle.clock.rate if flow is not None else 0.0

    def abort(self, op: Operation, error: Exception) -> None:
        """End a transfer early with this error. Nothing happens if it is over."""
        flow = self._flows.pop(op, None)
        if flow is None:
            return
        flow.op = None
        self._leave((flow,), self._env.now)
        op.fail(error)

    def set_capacity(self, link: Link, capacity: float) -> None:
        """Change a link's capacity (bytes per second) in the middle of whatever it carries."""
        link.capacity = capacity
        self._reshare((link,), self._env.now)

    def _new_bundle(self, path: tuple[Link, ...], cap: float) -> Bundle:
        clock = None
        if cap != _INF:
            clock = self._caps.get(cap)
            if clock is None:
                clock = self._caps[cap] = Clock("", cap / SECOND)
        bundle = self._bundles[path, cap] = Bundle(path, clock)
        return bundle

    # --- who limits whom

    def _reshare(self, links: tuple[Link, ...], now: int) -> None:
        """The flow counts or capacities of these links changed: new shares, and bundles move where they are limited."""
        move: list[Bundle] = []
        for link in links:
            old = link.rate
            new = link.capacity / SECOND / (link.flows or 1)
            if new == old:
                continue
            link.advance(now)
            link.rate = new
            if new > old:
                if new > link.rises_to:
                    move.extend(link.bound)
            elif link.limiters:
                self._fell(link, move)
            if link.bound:
                self._arm(link, now)
        for bundle in move:
            self._rebind(bundle, now)
        for link in links:
            if link.rate > link.rises_to:
                self._measure(link)
        if self.on_change is not None:
            self.on_change()

    def _fell(self, link: Link, move: list[Bundle]) -> None:
        """A share that fell may now be the least for bundles limited elsewhere."""
        rate = link.rate
        for clock in link.limiters:
            if clock is link:
                continue
            if clock.rate > rate:
                move.extend(b for b in link.bundles if b.clock is not link and b.clock.rate > rate)
                break
        for clock in link.limiters:
            if clock is not link and isinstance(clock, Link) and rate < clock.rises_to:
                clock.rises_to = rate

    @staticmethod
    def _limit(bundle: Bundle) -> Clock:
        """The slowest of a bundle's clocks; its cap wins a tie, then the first link of the path."""
        links = bundle.links
        best: Clock = bundle.cap or links[0]
        for link in links:
            if link.rate < best.rate:
                best = link
        return best

    def _measure(self, link: Link) -> None:
        """How far may this link's share rise before a bundle bound here is limited by something else?"""
        link.rises_to = min((self._others(b, link) for b in link.bound), default=_INF)

    @staticmethod
    def _others(bundle: Bundle, link: Link) -> float:
        least = bundle.cap.rate if bundle.cap else _INF
        for other in bundle.links:
            if other is not link and other.rate < least:
                least = other.rate
        return least

    def _bind(self, bundle: Bundle, now: int) -> None:
        """The first flow of an empty bundle: count its bytes from 0."""
        clock = bundle.clock = self._limit(bundle)
        bundle.heap.clear()
        bundle.offset = -clock.advance(now)
        self._enter(bundle, clock)

    def _rebind(self, bundle: Bundle, now: int) -> None:
        old, new = bundle.clock, self._limit(bundle)
        if new is old or bundle not in old.bound:
            return
        bundle.offset += old.advance(now) - new.advance(now)
        self._exit(bundle, old)
        bundle.clock = new
        self._enter(bundle, new)
        self._expect(bundle, now)

    def _enter(self, bundle: Bundle, clock: Clock) -> None:
        clock.bound[bundle] = None
        for link in bundle.links:
            link.bundles[bundle] = None
            link.limiters[clock] = link.limiters.get(clock, 0) + 1
        if isinstance(clock, Link):
            clock.rises_to = min(clock.rises_to, self._others(bundle, clock))

    def _exit(self, bundle: Bundle, clock: Clock) -> None:
        del clock.bound[bundle]
        if not clock.bound:
            clock.heap.clear()
            if clock.wake is not None:
                clock.wake.cancel()
                clock.wake = None
            if isinstance(clock, Link):
                clock.rises_to = _INF
        for link in bundle.links:
            link.limiters[clock] -= 1
            if not link.limiters[clock]:
                del link.limiters[clock]

    # --- who ends when

    def _expect(self, bundle: Bundle, now: int) -> None:
        """Tell a bundle's clock when the bundle's next flow ends."""
        heap = bundle.heap
        while heap and heap[0][2].op is None:
            heappop(heap)
        if heap:
            clock = bundle.clock
            heappush(clock.heap, (heap[0][0] - bundle.offset, next(self._ids), bundle))
            self._arm(clock, now)

    def _arm(self, clock: Clock, now: int) -> None:
        """See to it that the clock is looked at no later than when its next flow ends. Too early is harmless."""
        heap = clock.heap
        while heap:
            end, _, bundle = heap[0]
            if bundle.clock is clock and bundle.heap and bundle.heap[0][0] - bundle.offset == end:
                break
            heappop(heap)
        if not heap or clock.rate <= 0:
            return
        at = now + max(0, round((heap[0][0] - clock.advance(now)) / clock.rate))
        if clock.wake is not None and clock.wake.pending:
            if clock.wake_at <= at:
                return
            clock.wake.cancel()
        clock.wake_at = at
        clock.wake = self._env.call_at(at - now, self._look, clock)

    def _look(self, clock: Clock) -> None:
        """End every flow of this clock whose bytes are through, to the nearest nanosecond."""
        now = self._env.now
        clock.wake = None
        moved = clock.advance(now)
        through = moved + clock.rate + 4e-16 * moved  # a nanosecond's worth, and what a float cannot tell
        done: list[Flow] = []
        heap = clock.heap
        while heap and heap[0][0] <= through:
            bundle = heappop(heap)[2]
            if bundle.clock is not clock:
                continue
            flows, limit = bundle.heap, through + bundle.offset
            while flows and (flows[0][2].op is None or flows[0][0] <= limit):
                flow = heappop(flows)[2]
                if flow.op is not None:
                    done.append(flow)
            if flows:
                heappush(heap, (flows[0][0] - bundle.offset, next(self._ids), bundle))
        limit_name = clock.name
        self._leave(done, now)
        if clock.bound:
            self._arm(clock, now)
        for flow in done:
            op, flow.op = flow.op, None
            if op is None or self._flows.pop(op, None) is None:
                continue
            if self.observer is not None:
                took = now - flow.started
                self.observer(op.name, limit_name, took, max(0, took - self._alone(flow)))
            op.succeed()

    def _leave(self, flows: list[Flow] | tuple[Flow, ...], now: int) -> None:
        touched: dict[Link, None] = {}
        for flow in flows:
            bundle = flow.bundle
            bundle.flows -= 1
            for link in bundle.links:
                link.flows -= 1
                touched[link] = None
            if not bundle.flows:
                bundle.heap.clear()
                self._exit(bundle, bundle.clock)
                for link in bundle.links:
                    del link.bundles[bundle]
        self._reshare(tuple(touched), now)

    @staticmethod
    def _alone(flow: Flow) -> int:
        """Nanoseconds the flow would take on healthy links without company."""
        bundle = flow.bundle
        rate = bundle.cap.rate if bundle.cap else _INF
        for link in bundle.links:
            if link.nominal / SECOND < rate:
                rate = link.nominal / SECOND
        return round(flow.bytes / rate) if rate > 0 else 0
