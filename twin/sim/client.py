"""How one controller process reaches a simulated API server: informer caches, costs, rate limit.

A process (a controller manager, an actor) has one `Cache` per cluster; each of its controllers has a `SimKube` of its
own that charges that controller's meter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from twin.backends.base import ASKED_FOR_CREDENTIALS, ApiError, Unavailable, View
from twin.model.kinds import KINDS
from twin.model.meta import Key, Object
from twin.runtime.reconcile import Reconciler, Watch
from twin.sim.clock import SECOND
from twin.sim.kube import ApiServer, Resource
from twin.sim.runner import Meter, touch

T = TypeVar("T", bound=Object)
V = TypeVar("V", bound=View)


class Queue(Protocol):
    """What a watch event is put into."""

    def add(self, key: Key) -> None: ...

    def add_all(self, keys: Iterable[Key]) -> None: ...


class TimedOut(Unavailable):
    """504: the write may have landed."""

    code = 504
    reason = "Timeout"
    maybe_landed = True


class Informer:
    """The cached objects of one kind."""

    __slots__ = ("by_label", "objects", "readers", "views", "watchers")

    def __init__(self, objects: dict[Key, Object]) -> None:
        self.objects = objects
        self.readers: dict[Any, dict[Any, None]] = {}
        """Tokens: a key, None (a list of all), or (label, value)."""
        self.by_label: dict[str, dict[str, dict[Key, Object]]] = {}
        self.watchers: list[tuple[Queue, Reconciler, Watch]] = []
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
            found = self._informers[kind] = Informer(dict(self.server.table(kind)))
            self.server.attach(self, kind)
        return found

    def watch(self, runner: Queue, reconciler: Reconciler, watch: Watch) -> None:
        """Wake this controller from now on, and once for every object there is."""
        informer = self.informer(watch.kind)
        informer.watchers.append((runner, reconciler, watch))
        for key, obj in list(informer.objects.items()):
            if watch.when is not None and not watch.when(None, obj):
                continue
            for woken in (key,) if watch.to is None else watch.to(reconciler, obj):
                runner.add(woken)

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

    def receive(self, resource: Resource, key: Key, new: Object | None, last: Object) -> None:
        """A watch event. Versions older than the cached one are late and dropped."""
        informer = self._informers.get(resource)
        if informer is None or not self.connected:
            return
        self._change(resource, informer, key, new, last)

    def resync(self) -> None:
        """The periodic resync: every watched object wakes its controllers again."""
        for informer in list(self._informers.values()):
            for runner, reconciler, watch in informer.watchers:
                runner.add_all(_mapped(informer.objects, reconciler, watch))

    def relist(self) -> None:
        """The watch was lost: list again and deliver the difference, as a reflector does."""
        self.connected = True
        for resource, informer in list(self._informers.items()):
            table = self.server.table(resource)
            for key, old in list(informer.objects.items()):
                if key not in table:
                    self._change(resource, informer, key, None, old)
            for key, obj in list(table.items()):
                if informer.objects.get(key) is not obj:
                    self._change(resource, informer, key, obj, obj)

    def close(self) -> None:
        """The process ended."""
        self.connected = False
        self.server.detach(self)
        self._informers.clear()

    def _change(self, resource: Resource, informer: Informer, key: Key, new: Object | None, last: Object) -> None:
        objects = informer.objects
        old = objects.get(key)
        if old is not None:
            if int(old.metadata.resource_version) >= int(last.metadata.resource_version) and new is not None:
                return
            if new is None and old.metadata.uid != last.metadata.uid:
                return
        elif new is None or (stored := self.server.table(resource).get(key)) is None or (
                stored.metadata.uid != new.metadata.uid):
            return
        readers = informer.readers
        if readers:
            if key in readers:
                touch(readers, key)
            if None in readers:
                touch(readers, None)
        if new is None:
            del objects[key]
        else:
            objects[key] = new
        if informer.by_label:
            self._reindex(informer, key, old, new)
        for view in informer.views:
            for token in view.observe(old, new):
                touch(self.view_readers, token)
        for _ in _TWICE if self.twice else _ONCE:
            for runner, reconciler, watch in informer.watchers:
                when, to = watch.when, watch.to
                if when is not None and not when(old, new):
                    continue
                if to is None:
                    runner.add(key)
                    continue
                by = watch.by
                if new is not None:
                    for woken in to(reconciler, new):
                        runner.add(woken)
                    if by is not None and old is not None and by(old) is by(new):
                        continue
                if old is not None and old is not new:
                    for woken in to(reconciler, old):
                        runner.add(woken)

    def _reindex(self, informer: Informer, key: Key, old: Object | None, new: Object | None) -> None:
        for label, index in informer.by_label.items():
            was = old.metadata.labels.get(label) if old is not None else None
            now = new.metadata.labels.get(label) if new is not None else None
            if was is not None:
                if informer.readers:
                    touch(informer.readers, (label, was))
                if was != now:
                    index[was].pop(key, None)
            if now is not None and new is not None:
                if was != now:
                    touch(informer.readers, (label, now))
                index.setdefault(now, {})[key] = new


_ONCE: Final = (0,)
_TWICE: Final = (0, 0)


def _mapped(objects: Mapping[Key, Object], reconciler: Reconciler, watch: Watch) -> Iterable[Key]:
    """The keys that these objects wake when nothing about them changed, each once."""
    if watch.unchanged is False:
        return ()
    to, when = watch.to, None if watch.unchanged else watch.when
    if to is None:
        return list(objects) if when is None else [key for key, obj in objects.items() if when(obj, obj)]
    if watch.every is not None and when is None:
        return watch.every(objects.values())
    found: dict[Key, None] = {}
    for obj in list(objects.values()):
        if when is None or when(obj, obj):
            for woken in to(reconciler, obj):
                found[woken] = None
            if watch.alike:
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
        self._server = cache.server
        self._meter = meter
        self._costs = costs
        self._limit = limit

    # --- reads

    def get(self, kind: type[T], key: Key) -> T | None:
        cache = self._cache
        informer = cache._informers.get(kind) or cache.informer(kind)
        self._meter.reads.append((informer.readers, key))
        return informer.objects.get(key)  # type: ignore[return-value]

    def list(self, kind: type[T], namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Sequence[T]:
        informer = self._cache.informer(kind)
        if labels:
            label, value = next(iter(labels.items()))
            pool = informer.labelled(label, value)
            self._meter.reads.append((informer.readers, (label, value)))
        else:
            pool = informer.objects
            self._meter.reads.append((informer.readers, None))
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
        self._meter.reads.append((cache.view_readers, token))
        found = cache._views.get(view) or cache.view(view)
        objects = getattr(found, "objects", None)
        if objects is not None:
            # Upstream lists what the view answers from memory: the pass pays for that list.
            self._meter.charge_ns(self._costs.list_object_ns * objects(token))
        return found  # type: ignore[return-value]

    def read_live(self, kind: type[T], key: Key) -> T:
        self._meter.reads.append((self._server.readers, (kind, key)))
        self._request("Get", (kind, key), self._costs.read_ns)
        return self._server.get(kind, key)

    def list_live(self, kind: type[T], namespace: str | None = None,
                  labels: Mapping[str, str] | None = None) -> Sequence[T]:
        self._meter.reads.append((self._server.readers, kind))
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
        at = now + meter.cost_ns
        if self._limit is not None:
            at += self._limit.wait_ns(at)
        at += self._costs.write_ns
        if server.write_ns:
            at += server.busy_ns(at)
        meter.charge_ns(at - now - meter.cost_ns)
        if server.down or server.revoked:
            self._refuse(method, what)
        if server.flaky is not None and server.flaky[0]():
            if server.flaky[1]:
                do(*arguments, meter.controller, now + meter.cost_ns)
            raise TimedOut(f"{method} {server.url}{_path(what, method)}: the server was unable to return a response in "
                           "the time allotted, but may still be processing the request")
        result = do(*arguments, meter.controller, now + meter.cost_ns)
        if meter.on_effect is not None:
            meter.after(verb)
        return result

    def _request(self, method: str, what: Any, cost: int) -> None:
        meter = self._meter
        meter.reads.append((self._server.readers, "up"))
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

