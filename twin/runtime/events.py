"""What becomes of a Kubernetes Event before it is sent: client-go's EventCorrelator with its defaults.

Equal Events are counted. Of one reason about one object nine messages within ten minutes have an Event each; what
comes after them goes into one Event that bears the latest message. One component may send 25 Events about an object at
once and one every 300 s after that; what is not sent is counted all the same. Each memory keeps the 4,096 last used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

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


class Correlator:
    """The memory of one process. Times are seconds from anywhere."""

    def __init__(self) -> None:
        self._similar: OrderedDict[Hashable, tuple[float, dict[str, None]]] = OrderedDict()
        self._sent: OrderedDict[Hashable, Told] = OrderedDict()
        self._next: OrderedDict[Hashable, float] = OrderedDict()

    def correlate(self, component: str, about: Hashable, type_: str, reason: str, message: str,
                  now: float) -> Told | None:
        """What to send of this Event, None for nothing. `about` identifies the object."""
        similar = (component, about, type_, reason)
        combined = self._combined(similar, message, now)
        key = (similar, None if combined else message)
        last = self._sent.get(key)
        told = Told(key, COMBINED + message if combined else message, last.times + 1 if last else 1,
                    last.first_s if last else now, last.name if last else "")
        _keep(self._sent, key, told)
        return told if self._allowed((component, about), now) else None

    def made(self, told: Told, name: str) -> None:
        """The Event has this name now."""
        _keep(self._sent, told.key, told._replace(name=name))

    def _combined(self, similar: Hashable, message: str, now: float) -> bool:
        at, messages = self._similar.get(similar, (now, {}))
        if now - at > SIMILAR_S:
            messages = {}
        messages[message] = None
        combined = len(messages) >= SIMILAR
        if combined:
            messages.popitem()  # client-go forgets any of them; here the first nine keep their own Events
        _keep(self._similar, similar, (now, messages))
        return combined

    def _allowed(self, source: Hashable, now: float) -> bool:
        """A token bucket: the time from which on it would be full, moved by every token taken."""
        at = max(self._next.get(source, float("-inf")), now - BURST * REFILL_S) + REFILL_S
        allowed = at <= now
        _keep(self._next, source, at if allowed else at - REFILL_S)
        return allowed


def _keep(memory: OrderedDict[Any, Any], key: Hashable, value: object) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
