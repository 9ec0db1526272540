"""How one controller process reaches a simulated API server: informer caches, costs, rate limit.

A process (a controller manager, an actor) has one `Cache` per cluster; each of its controllers has a `SimKube` of its
own that charges that controller's meter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from twin.backends.base import ASKED_FOR_CREDENTIALS, ApiError, Unavailable, View
from twin.model.kinds import KINDS
from twin.model.meta import Key, Object
from twin.runtime.reconcile import Mapper, Predicate, Reconciler, Watch
from twin.sim.clock import SECOND
from twin.sim.kube import ApiServer, Resource
from twin.sim.runner import Meter, touch

T = TypeVar("T", bound=Object)
V = TypeVar("V", bound=View)


class Queue(Protocol):
    """What a watch event is put into."""

    def add(self, key: Key) -> None: ...

    def add_all(self, keys: Collection[Key]) -> None: ...


class TimedOut(Unavailable):
    """504: the write may have landed."""

    code = 504
    reason = "Timeout"
    maybe_landed = True


class Woken:
    """Which keys the objects of a kind map to, kept change by change."""

    __slots__ = ("by_object", "counts")

    def __init__(self) -> None:
        self.by_object: dict[Key, tuple[Key, ...]] = {}
        self.counts: dict[Key, int] = {}
        """How many objects map to each key."""

    def put(self, key: Key, now: tuple[Key, ...] | None) -> tuple[Key, ...]:
        """The object maps to these keys from now on; None: it has gone. Returns what it mapped to until now."""
        was = self.by_object.get(key, ())
        if now is None:
            self.by_object.pop(key, None)
        else:
            self.by_object[key] = now
        if was != now:
            counts = self.counts
            for one in now or ():
                counts[one] = counts.get(one, 0) + 1
            for one in was:
                counts[one] -= 1
                if not counts[one]:
                    del counts[one]
        return was


class Watcher(NamedTuple):
    """Who is woken by changes of a kind, and by which."""

    add: Callable[[Key], None]
    reconciler: Reconciler
    to: Mapper | None
    when: Predicate | None
    woken: Woken | None
    """What each object maps to, of a watch without `when` that says what it maps by."""
    by: Callable[[Object], object]
    add_all: Callable[[Collection[Key]], None]
    watch: Watch


class Informer:
    """The cached objects of one kind, in one process's cache."""

    __slots__ = ("by_label", "cache", "kind", "objects", "readers", "views", "watchers")

    def __init__(self, cache: Cache, kind: Resource) -> None:
        self.cache = cache
        self.kind = kind
        self.objects: dict[Key, Object] = dict(cache.server.table(kind))
        self.readers: dict[Any, dict[Any, None]] = {}
        """Tokens: a key, None (a list of all), or (label, value)."""
        self.by_label: dict[str, dict[str, dict[Key, Object]]] = {}
        self.watchers: list[Watcher] = []
        self.views: list[View] = []

    def labelled(self, label: str, value: str) -> dict[Key, Object]:
        index = self.by_label.get(label)
        if index is None:
            index = self.by_label[label] = {}
            for key, obj in self.objects.items():
                v = obj.metadata.labels.get(label)
                if v is not None:
                    index.setdefault(v, {})[key] = obj
        return index.get(value, {})

    # --- what the API server calls

    def receive(self, key: Key, before: Object | None, new: Object | None, last: Object) -> None:
        """A watch event: the version `before` became `new`, or went, `last` being its last version."""
        if not self.cache.connected:
            return
        old = self.objects.get(key)
        if (old is None or old is not before) and not self.is_news(key, old, new, last):
            return
        self.change(key, old, new)

    def is_news(self, key: Key, old: Object | None, new: Object | None, last: Object) -> bool:
        """Versions older than the cached one are late and dropped, as is what has gone meanwhile."""
        if old is None:
            stored = None if new is None else self.cache.server.table(self.kind).get(key)
            return stored is not None and new is not None and stored.metadata.uid == new.metadata.uid
        if new is None:
            return old.metadata.uid == last.metadata.uid
        return int(old.metadata.resource_version) < int(last.metadata.resource_version)

    def change(self, key: Key, old: Object | None, new: Object | None) -> None:
        """Keep what has arrived, and wake whom it concerns."""
        objects, readers = self.objects, self.readers
        if readers:
            if key in readers:
                touch(readers, key)
            if None in readers:
                touch(readers, None)
        if new is None:
            del objects[key]
        else:
            objects[key] = new
        if self.by_label:
            self._reindex(key, old, new)
        for view in self.views:
            for token in view.observe(old, new):
                touch(self.cache.view_readers, token)
        for add, reconciler, to, when, woken, by, _, _ in self.watchers * 2 if self.cache.twice else self.watchers:
            if when is not None and not when(old, new):
                continue
            if to is None:
                add(key)
            elif woken is not None:
                if old is not None and new is not None and by(old) is by(new):
                    was = now = woken.by_object[key]
                else:
                    now = () if new is None else tuple(to(reconciler, new))
                    was = woken.put(key, None if new is None else now)
                for one in now:
                    add(one)
                if was is not now and was != now:
                    for one in was:
                        add(one)
            else:
                if new is not None:
                    for one in to(reconciler, new):
                        add(one)
                if old is not None and old is not new:
                    for one in to(reconciler, old):
                        add(one)

    def _reindex(self, key: Key, old: Object | None, new: Object | None) -> None:
        readers = self.readers
        for label, index in self.by_label.items():
            was = old.metadata.labels.get(label) if old is not None else None
            now = new.metadata.labels.get(label) if new is not None else None
            if was is not None:
                if readers:
                    touch(readers, (label, was))
                if was != now:
                    index[was].pop(key, None)
            if now is not None and new is not None:
                if was != now:
                    touch(readers, (label, now))
                index.setdefault(now, {})[key] = new


class Cache:
    """A process's informers on one cluster. An informer starts, synced, when its kind is first asked for."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.connected = True
        self.twice = False
        """Every watch event arrives twice (a fault)."""
        self.view_readers: dict[Any, dict[Any, None]] = {}
        self._informers: dict[Resource, Informer] = {}
        self._views: dict[type, View] = {}

    def informer(self, kind: Resource) -> Informer:
        found = self._informers.get(kind)
        if found is None:
            found = self._informers[kind] = Informer(self, kind)
            self.server.attach(found, kind)
        return found

    def watch(self, runner: Queue, reconciler: Reconciler, watch: Watch) -> None:
        """Wake this controller from now on, and once for every object there is."""
        informer = self.informer(watch.kind)
        to, when = watch.to, watch.when
        woken = None
        if watch.by is not None and to is not None and when is None:
            woken = Woken()
            for key, obj in informer.objects.items():
                woken.put(key, tuple(to(reconciler, obj)))
        informer.watchers.append(Watcher(
            runner.add, reconciler, to, when, woken, watch.by or _nothing, runner.add_all, watch))
        for key, obj in list(informer.objects.items()):
            if when is not None and not when(None, obj):
                continue
            for one in (key,) if to is None else to(reconciler, obj):
                runner.add(one)

    def view(self, view: type[V]) -> V:
        found = self._views.get(view)
        if found is None:
            found = self._views[view] = view()
            for kind in found.kinds:
                informer = self.informer(kind)
                informer.views.append(found)
                for obj in informer.objects.values():
                    found.observe(None, obj)
        return cast(V, found)

    def resync(self) -> None:
        """The periodic resync: every watched object wakes its controllers again."""
        for informer in list(self._informers.values()):
            for watcher in informer.watchers:
                watcher.add_all(_mapped(informer.objects, watcher))

    def relist(self) -> None:
        """The watch was lost: list again and deliver the difference, as a reflector does."""
        self.connected = True
        for resource, informer in list(self._informers.items()):
            table = self.server.table(resource)
            for key, old in list(informer.objects.items()):
                if key not in table:
                    informer.change(key, old, None)
            for key, obj in list(table.items()):
                old_obj = informer.objects.get(key)
                if old_obj is not obj and informer.is_news(key, old_obj, obj, obj):
                    informer.change(key, old_obj, obj)

    def close(self) -> None:
        """The process ended."""
        self.connected = False
        for resource, informer in self._informers.items():
            self.server.detach(informer, resource)
        self._informers.clear()


def _nothing(_: Object) -> None:
    """What a watch maps by that does not say so: not asked for."""


def _mapped(objects: Mapping[Key, Object], watcher: Watcher) -> Collection[Key]:
    """The keys that these objects wake when nothing about them changed, each once."""
    to, when, reconciler = watcher.to, watcher.when, watcher.reconciler
    if when is not None and watcher.watch.unchanged is not None:
        if not watcher.watch.unchanged:
            return ()
        when = None
    if to is None:
        return objects if when is None else [key for key, obj in objects.items() if when(obj, obj)]
    if watcher.woken is not None:
        return watcher.woken.counts
    found: dict[Key, None] = {}
    for obj in objects.values():
        if when is None or when(obj, obj):
            for one in to(reconciler, obj):
                found[one] = None
            if watcher.watch.alike:
                break
    return found


class RateLimit:
    """client-go's token bucket, shared by a process's requests: `wait_ns(now)` takes one and says how long to wait."""

    __slots__ = ("_burst_ns", "_interval_ns", "_next")

    def __init__(self, qps: float, burst: int) -> None:
        self._interval_ns = round(SECOND / qps) if qps > 0 else 0
        self._burst_ns = self._interval_ns * burst
        self._next = -(10**30)

    def wait_ns(self, now: int) -> int:
        if not self._interval_ns:
            return 0
        first, oldest = self._next, now - self._burst_ns
        self._next = soonest = (first if first > oldest else oldest) + self._interval_ns
        return soonest - now if soonest > now else 0


@dataclass(frozen=True, slots=True)
class ApiCosts:
    """What requests cost their caller, in ns. `list_object_ns` is the processor time of a cached list per object."""

    read_ns: int = 0
    write_ns: int = 0
    list_object_ns: int = 0
    refused_ns: int = 0


class SimKube:
    """`twin.backends.base.KubeApi` for one controller."""

    def __init__(self, cache: Cache, meter: Meter, costs: ApiCosts = ApiCosts(), limit: RateLimit | None = None,
                 credential: str = "") -> None:
        self._credential = credential
        self._cache = cache
        self._informers = cache._informers
        self._note = meter.reads.append
        self._server = cache.server
        self._meter = meter
        self._costs = costs
        self._limit = limit

    # --- reads

    def get(self, kind: type[T], key: Key) -> T | None:
        informer = self._informers.get(kind)
        if informer is None:
            informer = self._cache.informer(kind)
        self._note((informer.readers, key))
        return informer.objects.get(key)  # type: ignore[return-value]

    def list(self, kind: type[T], namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Sequence[T]:
        informer = self._cache.informer(kind)
        if labels:
            label, value = next(iter(labels.items()))
            pool = informer.labelled(label, value)
            self._note((informer.readers, (label, value)))
        else:
            pool = informer.objects
            self._note((informer.readers, None))
        self._meter.charge_ns(self._costs.list_object_ns * len(pool))
        if namespace is None:
            found = list(pool.values())
        else:
            found = [o for k, o in pool.items() if k[0] == namespace]
        if labels and len(labels) > 1:
            found = [o for o in found if all(o.metadata.labels.get(k) == v for k, v in labels.items())]
        return cast("list[T]", found)

    def view(self, view: type[V], token: Hashable) -> V:
        cache = self._cache
        self._note((cache.view_readers, token))
        found = cache._views.get(view) or cache.view(view)
        objects = getattr(found, "objects", None)
        if objects is not None:
            # Upstream lists what the view answers from memory: the pass pays for that list.
            self._meter.charge_ns(self._costs.list_object_ns * objects(token))
        return found  # type: ignore[return-value]

    def read_live(self, kind: type[T], key: Key) -> T:
        self._note((self._server.readers, (kind, key)))
        self._request("Get", (kind, key), self._costs.read_ns)
        return self._server.get(kind, key)

    def list_live(self, kind: type[T], namespace: str | None = None,
                  labels: Mapping[str, str] | None = None) -> Sequence[T]:
        self._note((self._server.readers, kind))
        self._request("Get", (kind, Key(namespace or "", "")), self._costs.read_ns)
        return [cast(T, o) for k, o in self._server.table(kind).items()
                if (namespace is None or k.namespace == namespace)
                and all(o.metadata.labels.get(a) == b for a, b in (labels or {}).items())]

    def version(self) -> Mapping[str, Any]:
        self._request("Get", "/version", self._costs.read_ns)
        return {"gitVersion": self._server.version}

    # --- writes

    def create(self, obj: T) -> T:
        return self._write("create", "Post", obj, self._server.create, (obj,))  # type: ignore[no-any-return]

    def update(self, obj: T) -> T:
        return self._write("update", "Put", obj, self._server.update, (obj,))  # type: ignore[no-any-return]

    def update_status(self, obj: T) -> T:
        return self._write("status", "Put", obj, self._server.update_status, (obj,))  # type: ignore[no-any-return]

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], *, status: bool = False,
              resource_version: str = "") -> T:
        return cast(T, self._write("patch", "Patch", (kind, key), lambda by, at: self._server.patch(
            kind, key, merge, by, at, status=status, resource_version=resource_version)))

    def apply(self, manifest: Mapping[str, Any], manager: str, *, force: bool = False) -> Object:
        return cast(Object, self._write("apply", "Patch", manifest, lambda by, at: self._server.apply(
            manifest, manager, by, at, force=force)))

    def delete(self, kind: type[T], key: Key, *, propagation: str = "Background", uid: str = "") -> None:
        what = (kind, key)
        if propagation == "Background" and not uid:
            self._write("delete", "Delete", what, self._server.delete, what)
        else:
            self._write("delete", "Delete", what, lambda by, at: self._server.delete(
                kind, key, by, at, propagation=propagation, uid=uid))

    def event(self, about: Object, type_: str, reason: str, message: str) -> None:
        # Recorders send from a background queue: the pass pays nothing. Skipping it would lose the event, though.
        meter, server = self._meter, self._server
        meter.effects += 1
        server.record_event(about, type_, reason, message, meter.controller, server.env._now + meter.cost_ns)

    # --- inside

    def _write(self, verb: str, method: str, what: Any, do: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> Any:
        meter, server = self._meter, self._server
        meter.effects += 1
        if meter.on_effect is not None:
            meter.on_effect(verb, False)
        now = server.env._now
        at_ns = now + meter.cost_ns
        sent_ns = at_ns if self._limit is None else at_ns + self._limit.wait_ns(at_ns)
        done_ns = sent_ns + self._costs.write_ns
        if server.write_ns:
            done_ns += server.busy_ns(done_ns)
        if meter.billed:
            meter.cost_ns = done_ns - now
            at_ns = done_ns
        if server.down or server.revoked:
            self._refuse(method, what)
        if server.flaky is not None and server.flaky[0]():
            if server.flaky[1]:
                do(*arguments, meter.controller, at_ns)
            raise TimedOut(f"{method} {server.url}{_path(what, method)}: the server was unable to return a response in "
                           "the time allotted, but may still be processing the request")
        result = do(*arguments, meter.controller, at_ns)
        if meter.on_effect is not None:
            meter.after(verb)
        return result

    def _request(self, method: str, what: Any, cost: int) -> None:
        meter = self._meter
        self._note((self._server.readers, "up"))
        if self._limit is not None:
            cost += self._limit.wait_ns(self._server.env.now + meter.cost_ns)
        meter.charge_ns(self._server.slowed(cost))
        if self._server.down or self._server.revoked:
            self._refuse(method, what)

    def _refuse(self, method: str, what: Any) -> None:
        """Raise what a server that is down, or does not know our credential any more, makes of this request."""
        if not self._server.down:
            if self._credential in self._server.revoked:
                raise ApiError(ASKED_FOR_CREDENTIALS if what == "/version" else "Unauthorized", code=401,
                               reason="Unauthorized")
            return
        self._meter.charge_ns(self._costs.refused_ns)
        url = self._server.url
        raise Unavailable(f'{method} "{url}{_path(what, method)}": dial tcp {url.removeprefix("https://")}: '
                          "connect: connection refused")


def _path(what: Any, method: str) -> str:
    if isinstance(what, str):
        return what
    if isinstance(what, tuple):
        kind, key = what
    elif isinstance(what, Object):
        kind, key = type(what), what.key
    else:
        meta = what.get("metadata") or {}
        kind, key = KINDS.get(what.get("kind", "")), Key(meta.get("namespace", ""), meta.get("name", ""))
        if kind is None:
            return ""
    root = f"/apis/{kind.GROUP}/{kind.VERSION}" if kind.GROUP else f"/api/{kind.VERSION}"
    space = f"/namespaces/{key.namespace}" if key.namespace else ""
    return f"{root}{space}/{kind.PLURAL}" + (f"/{key.name}" if key.name and method != "Post" else "")

