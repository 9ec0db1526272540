"""The room on the BFB volume: the moment at which downloads have filled it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twin.sim.clock import Call, TwinEnvironment
from twin.sim.links import Links


class Growing(Protocol):
    """A download that moves bytes."""

    @property
    def missing(self) -> float:
        """Bytes it was to bring when its stream began."""
        ...

    @property
    def stream(self) -> Any: ...


class Space:
    """`used` are the bytes of all files; downloads under way add what their streams have moved.

    Where all that is to come fits, nothing is watched. Else `full` is called when the last byte of room is taken.
    """

    def __init__(self, env: TwinEnvironment, links: Links, size_bytes: int | None, growing: Mapping[Any, None],
                 full: Callable[[], None]) -> None:
        self.used = 0
        self._env = env
        self._links = links
        self._size = math.inf if size_bytes is None else size_bytes
        self._growing = growing
        self._full = full
        self._timer: Call | None = None

    def room(self) -> float:
        return self._size - self.used - sum(self._links.moved(d.stream) for d in self._growing)

    def look(self) -> None:
        """Files or downloads changed."""
        if not self._growing and self._timer is None:
            return
        short = self.used + sum(d.missing for d in self._growing) > self._size
        self._links.on_change = self._soon if short else None
        if short:
            self._soon()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _soon(self) -> None:
        """Shares of links are changing in this instant."""
        self._at(0)

    def _at(self, delay_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._env.call_at(delay_ns, self._arm)

    def _arm(self) -> None:
        self._timer = None
        room, rate = self.room(), sum(self._links.rate(d.stream) for d in self._growing)
        if rate > 0 and room <= rate:
            self._full()
        elif rate > 0:
            self._at(max(1, math.ceil(room / rate) - 1))
