"""Watches of a simulated API server: what a client sees of the changes of one kind.

Our own controllers are fed by `twin.sim.client.Cache`, which needs no history. This is for everybody else: scripts,
checks, and the comparison with a real server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from twin.backends.base import Gone
from twin.model.meta import Key, Object, ObjectMeta, replace
from twin.sim.clock import SECOND, Call, TwinEnvironment
from twin.sim.selectors import Test

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"
BOOKMARK: Final = "BOOKMARK"
INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
BOOKMARK_NS: Final = 60 * SECOND
"""How often a watch is told how far it is (kube-apiserver: about once a minute)."""


class WatchEvent(NamedTuple):
    """`object` of a DELETED is its last version, with the resourceVersion of the deletion; of a BOOKMARK just that."""

    type: str
    object: Object

    @property
    def resource_version(self) -> int:
        return int(self.object.metadata.resource_version)


class Change(NamedTuple):
    rv: int
    at_ns: int
    old: Object | None
    new: Object | None


class History:
    """The latest changes of one kind, from the moment somebody first lists or watches it. An observer of the server."""

    def __init__(self, rv: int, *, events: int, age_ns: int) -> None:
        self.oldest = rv
        """Changes after this version are all here."""
        self.changes: deque[Change] = deque()
        self.watches: list[ApiWatch] = []
        self._events = events
        self._age_ns = age_ns

    def observe(self, old: Object | None, new: Object | None, at_ns: int) -> None:
        latest = new if new is not None else old
        assert latest is not None
        change = Change(int(latest.metadata.resource_version), at_ns, old, new)
        self.changes.append(change)
        while len(self.changes) > self._events or self.changes[0].at_ns < at_ns - self._age_ns:
            self.oldest = self.changes.popleft().rv
        for watch in list(self.watches):
            watch.tell(change)

    def since(self, rv: int) -> list[Change]:
        """What changed after this version. Raises: Gone when that is forgotten."""
        if rv < self.oldest:
            raise Gone(f"too old resource version: {rv} ({self.oldest})")
        return [c for c in self.changes if c.rv > rv]


class ApiWatch:
    """One open watch: `take` returns what has arrived. Events arrive in order of resourceVersion, after the lag.

    `coalesce`: what has not been taken yet is merged per object, as an informer's queue does; the last state is never
    lost. `bookmarks`: BOOKMARK events once a minute, so a run that ends when nothing is left to do must `stop` it.
    """

    def __init__(self, env: TwinEnvironment, history: History, kind: Callable[[ObjectMeta], Object], test: Test, *,
                 lag_ns: int, coalesce: bool, bookmarks: bool, rv: int) -> None:
        self._env = env
        self._history = history
        self._bare = kind
        self._test = test
        self._lag_ns = lag_ns
        self._coalesce = coalesce
        self._arrived: list[WatchEvent | None] = []
        self._latest: dict[Key, int] = {}
        self._on_its_way = env.now
        self._seen = rv
        self._timer: Call | None = None
        self.open = True
        history.watches.append(self)
        if bookmarks:
            self._timer = env.call_at(BOOKMARK_NS, self._bookmark)

    def take(self) -> list[WatchEvent]:
        """Everything that has arrived since the last call."""
        found = [e for e in self._arrived if e is not None]
        self._arrived, self._latest = [], {}
        return found

    def stop(self) -> None:
        """Close it: nothing more arrives."""
        self.open = False
        if self in self._history.watches:
            self._history.watches.remove(self)
        if self._timer is not None:
            self._timer.cancel()

    def begin(self, objects: Iterable[Object], changes: Iterable[Change], marked: bool) -> None:
        """What there is already: a list as ADDED events, with a bookmark at its end if asked, or what changed since."""
        for obj in objects:
            self._arrive(WatchEvent(ADDED, obj))
        if marked:
            self._arrive(WatchEvent(BOOKMARK, self._bare(ObjectMeta(
                resource_version=str(self._seen), annotations={INITIAL_EVENTS_END: "true"}))))
        for change in changes:
            self.tell(change)

    def tell(self, change: Change) -> None:
        """Send this change on its way, if it is seen through the selectors."""
        before = change.old is not None and self._test(change.old)
        after = change.new is not None and self._test(change.new)
        event = None
        if after and change.new is not None:
            event = WatchEvent(MODIFIED if before else ADDED, change.new)
        elif before and change.old is not None:
            # Out of sight: the old object, as of this version.
            event = WatchEvent(DELETED, replace(change.old, metadata=replace(
                change.old.metadata, resource_version=str(change.rv))))
        # A later write may be metered earlier: events keep the order of versions all the same.
        self._on_its_way = max(self._on_its_way, self._env.now, change.at_ns + self._lag_ns)
        self._env.call_at(self._on_its_way - self._env.now, self._pass_on, change.rv, event)

    def _pass_on(self, rv: int, event: WatchEvent | None) -> None:
        if self.open:
            self._seen = rv
            if event is not None:
                self._arrive(event)

    def _arrive(self, event: WatchEvent) -> None:
        if self._coalesce and event.type != BOOKMARK:
            key = event.object.key
            at = self._latest.get(key)
            waiting = self._arrived[at] if at is not None else None
            if at is not None and waiting is not None and waiting.type != DELETED:
                self._arrived[at] = None
                if event.type == DELETED and waiting.type == ADDED:
                    del self._latest[key]
                    return
                event = WatchEvent(ADDED if waiting.type == ADDED else event.type, event.object)
            self._latest[key] = len(self._arrived)
        self._arrived.append(event)

    def _bookmark(self) -> None:
        self._arrive(WatchEvent(BOOKMARK, self._bare(ObjectMeta(resource_version=str(self._seen)))))
        self._timer = self._env.call_at(BOOKMARK_NS, self._bookmark)
