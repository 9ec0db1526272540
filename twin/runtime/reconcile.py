"""The one controller contract (docs/why.md, "One controller, two clocks").

A reconciler is synchronous and level-triggered: the key only; read everything, decide, write; correct after any missed
watch event. It never waits and never reads a clock. What drives it is the runner's business: `twin.sim.runner` in
virtual time, `twin.runtime.live` on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

from twin.model.meta import Key, Object, new_key


@dataclass(frozen=True, slots=True)
class Result:
    """When to look at this key again. The default: at the next watch event.

    `error` is what controller-runtime calls returning an error: retry with back-off, whatever `requeue_after_s` says.
    """

    requeue_after_s: float | None = None
    error: str = ""


DONE = Result()


class Terminal(Exception):
    """Never retry this key until a watch event comes."""


Mapper = Callable[[Any, Object], Iterable[Key]]
"""(reconciler, changed object) -> keys to queue. Reads caches only."""

Predicate = Callable[[Object | None, Object | None], bool]
"""(old, new) -> does this change matter. New is None for a deletion, old for an addition."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Which changes wake a controller: a kind, the keys a change maps to (default: the object's own), and a filter."""

    kind: type[Object]
    to: Mapper | None = None
    when: Predicate | None = None
    alike: bool = False
    """`to` gives the same keys whichever object changed: after a resync one question is enough."""
    by: Callable[[Object], object] | None = None
    """The part of an object that `to` looks at, beside its key: while that stays the same, so do the keys."""
    unchanged: bool | None = None
    """What `when` says of any object that has not changed, as in a resync. None: it depends on the object."""


class Context:
    """What a pass is told. Nothing in it acts.

    `now` is seconds since the Unix epoch, the same for the whole pass.
    """

    __slots__ = ("_until", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._until: float | None = None

    def reached(self, at: float) -> bool:
        """Is it `at` (epoch seconds) or later? Use this for every deadline.

        A pass that asked in vain is looked at afresh once that time has come, even if nothing else changed.
        """
        if self.now >= at:
            return True
        if self._until is None or at < self._until:
            self._until = at
        return False

    @property
    def unchanged_until(self) -> float | None:
        """The earliest deadline this pass asked for in vain, or None."""
        return self._until


class Reconciler(Protocol):
    """One controller's logic. `name` heads its metrics; `watches` is data that both runners read."""

    @property
    def name(self) -> str: ...

    @property
    def watches(self) -> tuple[Watch, ...]: ...

    def reconcile(self, ctx: Context, key: Key) -> Result: ...


def labels_changed(old: Object | None, new: Object | None) -> bool:
    """A predicate: the object came, went, or has other labels."""
    if old is None or new is None:
        return True
    was, now = old.metadata.labels, new.metadata.labels
    return was is not now and was != now


owners: Callable[[Object], object] = attrgetter("metadata.owner_references")
"""What `owner_key` looks at (`Watch.by`): an object keeps its namespace."""


def owner_key(kind: type[Object]) -> Mapper:
    """Maps an object to its controlling owner of this kind (controller-runtime's `Owns`)."""

    name, namespaced = kind.KIND, kind.NAMESPACED

    def to(_: Any, obj: Object) -> Iterable[Key]:
        meta = obj.metadata
        for ref in meta.owner_references:
            if ref.controller and ref.kind == name:
                return (new_key(Key, (meta.namespace if namespaced else "", ref.name)),)
        return ()

    return to


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller of upstream's: `manager` is the process it shares its memory and its API client with."""

    name: str
    manager: str
    make: Callable[[Any], Reconciler]
    """`twin.backends.base.Backends` -> the reconciler."""
    workers: int = 1
