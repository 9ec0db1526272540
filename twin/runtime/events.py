"""What becomes of a Kubernetes Event before it is sent: client-go's EventCorrelator with its defaults.

Equal Events are counted. Of one reason about one object nine messages within ten minutes have an Event each; what
comes after them goes into one Event that bears the latest message. One component may send 25 Events about an object at
once and one every 300 s after that; what is not sent is counted all the same. Each memory keeps the 4,096 last used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, NamedTuple, TypeVar

COMBINED: Final = "(combined from similar events): "
SIMILAR: Final = 10
SIMILAR_S: Final = 600.0
BURST: Final = 25
REFILL_S: Final = 300.0
REMEMBERED: Final = 4096


class Told(NamedTuple):
    """An Event to send. `name` is that of the one which stands for it already, '' at first; `first_s` is its begin."""

    key: Hashable
    message: str
    times: int
    first_s: float
    name: str


class _Similar:
    """What was said of one object for one reason: since when, and which messages have an Event of their own."""

    __slots__ = ("at", "messages")

    def __init__(self) -> None:
        self.at = float("-inf")
        self.messages: dict[str, None] = {}


class _Sent:
    """How often an Event was said, since when, and the name of the one that stands for it."""

    __slots__ = ("first_s", "name", "times")

    def __init__(self) -> None:
        self.times = 0
        self.first_s = 0.0
        self.name = ""


class _Bucket:
    """A token bucket: the time from which on it would be full, moved by every token taken."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = float("-inf")


V = TypeVar("V")


class _Memory(Generic[V]):
    """The last used values by key."""

    def __init__(self, new: Callable[[], V]) -> None:
        self._new = new
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._last: Hashable = None
        self._value: V | None = None
        """That of the key used last: it need not be looked up, nor moved to the end."""

    def use(self, key: Hashable) -> V:
        """The value of this key, a new one if it is not remembered."""
        if self._value is not None and key == self._last:
            return self._value
        value = self._kept.get(key)
        if value is None:
            value = self._kept[key] = self._new()
            if len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        self._last, self._value = key, value
        return value


class Correlator:
    """The memory of one process. Times are seconds from anywhere."""

    def __init__(self) -> None:
        self._similar = _Memory(_Similar)
        self._sent = _Memory(_Sent)
        self._buckets = _Memory(_Bucket)

    def correlate(self, component: str, about: Hashable, type_: str, reason: str, message: str,
                  now: float) -> Told | None:
        """What to send of this Event, None for nothing. `about` identifies the object."""
        similar = (component, about, type_, reason)
        combined = self._combined(similar, message, now)
        key = (similar, None if combined else message)
        sent = self._sent.use(key)
        if not sent.times:
            sent.first_s = now
        sent.times += 1
        if not self._allowed((component, about), now):
            return None
        return Told(key, COMBINED + message if combined else message, sent.times, sent.first_s, sent.name)

    def made(self, told: Told, name: str) -> None:
        """The Event has this name now."""
        sent = self._sent.use(told.key)
        sent.times, sent.first_s, sent.name = told.times, told.first_s, name

    def _combined(self, similar: Hashable, message: str, now: float) -> bool:
        known = self._similar.use(similar)
        messages = known.messages
        if now - known.at > SIMILAR_S:
            messages = known.messages = {}
        known.at = now
        if message in messages:
            return False
        if len(messages) >= SIMILAR - 1:
            return True  # client-go forgets any of the ten; here the first nine keep their own Events
        messages[message] = None
        return False

    def _allowed(self, source: Hashable, now: float) -> bool:
        """One component may send 25 Events about an object at once and one every 300 s after that."""
        bucket = self._buckets.use(source)
        oldest = now - BURST * REFILL_S
        at = (bucket.at if bucket.at > oldest else oldest) + REFILL_S
        if at > now:
            return False
        bucket.at = at
        return True
