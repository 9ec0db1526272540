"""The simulated API server: the truth about one cluster's objects.

Keeps what a real one keeps: a global resourceVersion, generation, the status subresource, optimistic locking,
finalizers and deletion timestamps, owner garbage collection, no-op writes that change nothing. Objects are frozen, so a
version once read never changes. Who asks pays elsewhere (`twin.sim.client`); `at_ns` is the metered moment of a write:
watchers see it `lag` after that.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from twin.backends.base import AlreadyExists, ApiError, Conflict, NotFound
from twin.model.core import ConfigMap, Event, Lease, Namespace, Node, ObjectReference, Pod, Secret, Service
from twin.model.kinds import from_manifest, kind_of, to_manifest
from twin.model.merge import merge_json, merged
from twin.model.meta import Key, Object, ObjectMeta, Unstructured, format_time, replace
from twin.model.typed import as_sent, with_defaults
from twin.sim.admission import admit, admit_object, admit_typed
from twin.sim.clock import EPOCH, SECOND, TwinEnvironment
from twin.sim.node_ports import with_node_ports
from twin.sim.runner import touch
from twin.sim.trace import Trace

if TYPE_CHECKING:
    from twin.sim.client import Cache

T = TypeVar("T", bound=Object)
Resource = type[Object] | str
"""What one table of the store holds: a typed kind, or 'kind.group' of a kind we have no class for."""

Observer = Callable[[Object | None, Object | None, int], None]
"""(old, new, at_ns): called with every change, at once. For the trace and the checks, never for controllers."""

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_WITHOUT_GENERATION: tuple[Resource, ...] = (ConfigMap, Event, Lease, Namespace, Node, Secret, Service)
"""Core kinds whose generation the server does not keep (seen at kube-apiserver v1.34)."""
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def resource_of(obj: Object) -> Resource:
    if isinstance(obj, Unstructured):
        return f"{obj.kind}.{obj.group_version.rpartition('/')[0]}"
    return type(obj)


def plural(resource: Resource) -> str:
    """The name a Status message uses: `dpus.provisioning.dpu.nvidia.com`."""
    if isinstance(resource, str):
        kind, _, group = resource.partition(".")
        return f"{kind.lower()}s.{group}" if group else f"{kind.lower()}s"
    return f"{resource.PLURAL}.{resource.GROUP}" if resource.GROUP else resource.PLURAL


def kind_name(resource: Resource) -> str:
    return resource.partition(".")[0] if isinstance(resource, str) else resource.KIND


class ApiServer:
    """One cluster's API server. `name` is '' for the host cluster, else the DPU cluster's."""

    def __init__(self, env: TwinEnvironment, trace: Trace, name: str = "", *, lag_ns: int = 0, gc_ns: int = 0,
                 write_ns: int = 0,
                 url: str = "https://10.0.0.1:6443", webhooks: Any = None) -> None:
        self.env = env
        self.trace = trace
        self.name = name
        self.url = url
        self.lag_ns = lag_ns
        self.webhooks = webhooks
        self._lister = _Lister(self)
        self.down = False
        self.deliveries = 0
        """Watch events sent to caches."""
        self.version = "v1.30.2"
        self.slowness = 1.0
        self.flaky: tuple[Callable[[], bool], bool] | None = None
        """(does this write fail, does it take effect all the same)"""
        self.revoked: dict[str, None] = {}
        """Kubeconfigs whose credentials are no longer good."""
        self.write_ns = write_ns
        """How long the store is taken by one write: the inverse of its writes per second."""
        self._written_at = 0
        self._events = _Recorder()
        self.readers: dict[Any, dict[Any, None]] = {}
        """Who read what by live reads; tokens are (resource, key), resources, and 'up'."""
        self.observers: dict[Resource, list[Observer]] = {}
        self._gc_ns = gc_ns
        self._rv = 0
        self._made = 0
        self._tables: dict[Resource, dict[Key, Object]] = {}
        self._interested: dict[Resource, list[Cache]] = {}
        """Caches that watch a kind."""
        self._dependents: dict[str, dict[tuple[Resource, Key], None]] = {}
        self._leaving: dict[tuple[Resource, Key], int] = {}
        """Objects removed by a request whose metered moment is still to come, and that moment."""

    # --- reads

    def table(self, resource: Resource) -> dict[Key, Object]:
        """All stored objects of a kind. Read only."""
        found = self._tables.get(resource)
        if found is None:
            found = self._tables[resource] = {}
        return found

    def resources(self) -> Iterator[Resource]:
        return iter(list(self._tables))

    def find(self, kind: type[T], key: Key) -> T | None:
        table = self._tables.get(kind)
        return cast("T | None", table.get(key)) if table else None

    def get(self, kind: type[T], key: Key) -> T:
        """Raises NotFound with the server's text."""
        obj = self.find(kind, key)
        if obj is None:
            raise not_found(kind, key)
        return obj

    @property
    def resource_version(self) -> int:
        return self._rv

    def attach(self, cache: Cache, resource: Resource) -> None:
        """Send this cache every change of this kind from now on."""
        self._interested.setdefault(resource, []).append(cache)

    def detach(self, cache: Cache) -> None:
        for caches in self._interested.values():
            if cache in caches:
                caches.remove(cache)

    # --- writes

    def create(self, obj: T, by: str, at_ns: int, *, admitted: bool = False) -> T:
        """Store a new object. Raises AlreadyExists, NotFound (its namespace), or what admission refuses.

        `admitted`: it came as JSON and has passed. A typed write is judged with the fields Go sends when they are empty.
        """
        resource = resource_of(obj)
        meta = obj.metadata
        name = meta.name or (meta.generate_name and meta.generate_name + self._suffix())
        key = Key(meta.namespace, name)
        table = self.table(resource)
        if key.namespace and Key("", key.namespace) not in self.table(Namespace):
            raise NotFound(f'namespaces "{key.namespace}" not found')
        if key in table:
            if not admitted:  # a real server validates before it looks whether the name is taken
                admit_typed(type(obj), with_defaults(replace(obj, metadata=replace(meta, name=name))), None)
            raise AlreadyExists(f'{plural(resource)} "{name}" already exists')
        self._rv += 1
        self._made += 1
        new = replace(obj, metadata=replace(
            meta, name=name, uid=self._uid(), resource_version=str(self._rv),
            generation=0 if resource in _WITHOUT_GENERATION else 1,
            creation_timestamp=format_time(EPOCH + at_ns / SECOND), deletion_timestamp="",
            deletion_grace_period_seconds=None))
        if admitted:
            new = with_defaults(new)
        else:
            try:
                new = admit_object(type(obj), new, None, webhooks=self.webhooks, reader=self._lister)
            except ApiError as error:
                self._refused(resource, key, "create", by, at_ns, error.reason)
                raise
        if isinstance(new, Service):
            new = with_node_ports(new, cast("list[Service]", list(table.values())))
        elif isinstance(new, Secret) and new.string_data:
            new = cast(T, without_string_data(new))
        table[key] = new
        self._leaving.pop((resource, key), None)
        for ref in meta.owner_references:
            self._dependents.setdefault(ref.uid, {})[resource, key] = None
        self._commit(resource, key, None, new, "create", by, at_ns)
        return new

    def update(self, obj: T, by: str, at_ns: int, *, status: bool = False, verb: str = "update",
               admitted: bool = False) -> T:
        """Replace an object (its status only, or all but its status). Nothing changes, nothing is written.

        `admitted`: as for `create`.

        Raises: NotFound, Conflict (stale resourceVersion), Invalid.
        """
        resource = resource_of(obj)
        meta = obj.metadata
        key = Key(meta.namespace, meta.name)
        table = self.table(resource)
        old = cast("T | None", table.get(key))
        if old is None or (meta.uid and meta.uid != old.metadata.uid):
            raise not_found(resource, key)
        was = old.metadata
        if meta.resource_version and meta.resource_version != was.resource_version:
            self._refused(resource, key, verb, by, at_ns, "Conflict")
            raise conflict(resource, key)
        if isinstance(obj, Secret) and obj.string_data:
            obj = cast(T, without_string_data(obj))
        if status:
            if obj.status == old.status:  # type: ignore[attr-defined]
                return old
            new = replace(old, status=obj.status)  # type: ignore[attr-defined]
            generation = was.generation
        else:
            kept = self._fixed(meta, was)
            new = replace(obj, metadata=kept)
            if type(obj).HAS_STATUS:
                new = replace(new, status=old.status)  # type: ignore[attr-defined]
            if new == old:
                return old
            generation = was.generation + (was.generation > 0 and replace(new, metadata=was) != old)
        if not admitted:
            try:
                new = admit_object(type(obj), new, old, subresource="status" if status else "", webhooks=self.webhooks,
                                   reader=self._lister)
            except ApiError as error:
                self._refused(resource, key, verb, by, at_ns, error.reason)
                raise
        self._rv += 1
        new = replace(new, metadata=replace(new.metadata, resource_version=str(self._rv), generation=generation))
        if new.metadata.owner_references is not was.owner_references:
            self._reown(resource, key, was, new.metadata)
        if new.metadata.deletion_timestamp and not new.metadata.finalizers and not self._lingers(new):
            self._remove(resource, key, old, new, verb, by, at_ns)
        else:
            table[key] = new
            self._commit(resource, key, old, new, verb, by, at_ns)
        return new

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], by: str, at_ns: int, *, status: bool = False,
              resource_version: str = "") -> T:
        """JSON merge patch of an object, or of its status. Raises as `update`, and what admission refuses."""
        if status or self.webhooks is None or not self.webhooks.watches(kind):
            # No webhook wants to see it as JSON: patch the object itself.
            old = self.get(kind, key)
            new = merged(old, merge)
            if resource_version:
                new = replace(new, metadata=replace(new.metadata, resource_version=resource_version))
            return old if new is old else self.update(new, by, at_ns, status=status, verb="patch")
        return cast(T, self.patch_resource(kind, key, merge, by, at_ns, status=status,
                                           resource_version=resource_version))

    def patch_resource(self, resource: Resource, key: Key, merge: Mapping[str, Any], by: str, at_ns: int, *,
                       status: bool = False, resource_version: str = "") -> Object:
        """As `patch`, also for kinds without a class."""
        old = self.table(resource).get(key)
        if old is None:
            raise not_found(resource, key)
        if resource_version and resource_version != old.metadata.resource_version:
            self._refused(resource, key, "patch", by, at_ns, "Conflict")
            raise conflict(resource, key)
        before = to_manifest(old)
        if not isinstance(resource, str):
            before = as_sent(resource, before, stored=True)
        after = merge_json(before, merge)
        if after == before:
            return old
        if not isinstance(resource, str):
            try:
                after = admit(resource, after, before, operation="UPDATE", subresource="status" if status else "",
                              webhooks=self.webhooks, reader=self._lister)
            except ApiError as error:
                self._refused(resource, key, "patch", by, at_ns, error.reason)
                raise
        return self.update(from_manifest(after), by, at_ns, status=status, verb="patch", admitted=True)

    def create_manifest(self, manifest: dict[str, Any], by: str, at_ns: int, field_validation: str = "Warn") -> Object:
        """Create from a mapping: admission in Kubernetes' order, then storage."""
        obj = from_shape(manifest)
        admitted = admit(obj, manifest, None, operation="CREATE", webhooks=self.webhooks, reader=self._lister,
                         field_validation=field_validation) if obj is not Unstructured else manifest
        return self.create(from_manifest(admitted), by, at_ns, admitted=True)

    def delete(self, resource: Resource, key: Key, by: str, at_ns: int, *, propagation: str = "Background",
               uid: str = "") -> None:
        """Delete, or mark for deletion while finalizers (or a pod's grace) hold it."""
        table = self.table(resource)
        old = table.get(key)
        if old is None:
            if self._leaving.get((resource, key), -1) > at_ns:
                return  # it goes later than this request is made: still there, and being deleted already
            raise not_found(resource, key)
        if uid and uid != old.metadata.uid:
            raise Conflict(f'Precondition failed: UID in precondition: {uid}, UID in object meta: {old.metadata.uid}')
        if not isinstance(resource, str):
            admit(resource, to_manifest(old) if resource.GROUP.endswith("dpu.nvidia.com") else {}, None,
                  operation="DELETE", webhooks=self.webhooks, reader=self._lister)
        meta = old.metadata
        finalizers = meta.finalizers
        if propagation == "Foreground" and FOREGROUND not in finalizers and self._dependents.get(meta.uid):
            finalizers = (*finalizers, FOREGROUND)
        if propagation == "Orphan" and ORPHAN not in finalizers and self._dependents.get(meta.uid):
            finalizers = (*finalizers, ORPHAN)
        if not finalizers and not (isinstance(old, Pod) and old.spec.node_name and not old.deleting):
            self._rv += 1
            gone = replace(old, metadata=replace(meta, resource_version=str(self._rv)))
            self._remove(resource, key, old, gone, "delete", by, at_ns)
            return
        if old.deleting and finalizers == meta.finalizers:
            return
        self._rv += 1
        grace = old.spec.termination_grace_period_seconds if isinstance(old, Pod) else 0
        new = replace(old, metadata=replace(
            meta, resource_version=str(self._rv), finalizers=finalizers,
            generation=meta.generation + (meta.generation > 0),
            deletion_timestamp=meta.deletion_timestamp or format_time(EPOCH + at_ns / SECOND),
            deletion_grace_period_seconds=30 if grace is None else grace))
        table[key] = new
        self._commit(resource, key, old, new, "delete", by, at_ns)
        if FOREGROUND in finalizers or ORPHAN in finalizers:
            self.env.call_at(max(at_ns - self.env.now, 0) + self._gc_ns, self._collect, meta.uid, resource, key)

    def kill(self, key: Key, by: str) -> None:
        """Remove a pod at once (the kubelet's last word, or a forced deletion)."""
        old = self.find(Pod, key)
        if old is not None:
            self._rv += 1
            gone = replace(old, metadata=replace(old.metadata, resource_version=str(self._rv)))
            self._remove(Pod, key, old, gone, "delete", by, self.env.now)

    def record_event(self, about: Object, type_: str, reason: str, message: str, by: str, at_ns: int) -> None:
        """A Kubernetes Event as client-go's recorder sends it: equal ones are counted, a flood about one object is
        cut off (burst 25, then one in 5 minutes)."""
        if not self._events.allow((by, about.metadata.uid), at_ns):
            return
        kind = kind_name(resource_of(about))
        self.trace.kube_event(at_ns, self.name, f"{kind}/{about.key}", type_, reason, message)
        now = format_time(EPOCH + at_ns / SECOND)
        same = (about.metadata.uid, by, type_, reason, message)
        key = self._events.names.get(same)
        old = self.find(Event, key) if key is not None else None
        if old is not None:
            self.update(replace(old, count=old.count + 1, last_timestamp=now), by, at_ns)
            return
        namespace = about.metadata.namespace or "default"
        self._events.names[same] = key = Key(namespace, f"{about.metadata.name}.{self._made:016x}")
        self.create(Event(
            metadata=ObjectMeta(namespace=namespace, name=key.name), type=type_, reason=reason, message=message, count=1,
            first_timestamp=now, last_timestamp=now, source={"component": by}, reporting_component=by,
            involved_object=ObjectReference(
                kind=kind, namespace=about.metadata.namespace, name=about.metadata.name, uid=about.metadata.uid,
                api_version=type(about).api_version(), resource_version=about.metadata.resource_version)), by, at_ns)

    # --- load

    def slowed(self, cost_ns: int) -> int:
        """What a request takes while the server is slow (a fault); `slowness` is a factor."""
        return cost_ns if self.slowness == 1.0 else round(cost_ns * self.slowness)

    def busy_ns(self, now: int) -> int:
        """How long a write that arrives now waits for those before it (the server stores one at a time)."""
        if not self.write_ns:
            return 0
        start = max(self._written_at, now)
        self._written_at = start + self.slowed(self.write_ns)
        return start - now

    # --- inside

    def _fixed(self, meta: ObjectMeta, was: ObjectMeta) -> ObjectMeta:
        """What a client cannot change in metadata."""
        if (meta.uid == was.uid and meta.creation_timestamp == was.creation_timestamp
                and meta.deletion_timestamp == was.deletion_timestamp and meta.generation == was.generation
                and meta.resource_version == was.resource_version):
            return meta
        return replace(meta, uid=was.uid, creation_timestamp=was.creation_timestamp, generation=was.generation,
                       deletion_timestamp=was.deletion_timestamp, resource_version=was.resource_version,
                       deletion_grace_period_seconds=was.deletion_grace_period_seconds)

    def _lingers(self, obj: Object) -> bool:
        return isinstance(obj, Pod) and bool(obj.spec.node_name)

    def _commit(self, resource: Resource, key: Key, old: Object | None, new: Object, verb: str, by: str,
                at_ns: int) -> None:
        """Announce a stored change: trace, observers, live readers at once; watchers after the lag."""
        self.trace.write(at_ns, by, verb, self.name, kind_name(resource), key.namespace, key.name,
                         new.metadata.resource_version, "")
        self._announce(resource, key, old, new, "ADDED" if old is None else "MODIFIED", at_ns)

    def _remove(self, resource: Resource, key: Key, old: Object, gone: Object, verb: str, by: str, at_ns: int) -> None:
        del self._tables[resource][key]
        if at_ns > self.env.now:
            self._leaving[resource, key] = at_ns
        self.trace.write(at_ns, by, verb, self.name, kind_name(resource), key.namespace, key.name,
                         gone.metadata.resource_version, "")
        self._announce(resource, key, gone, None, "DELETED", at_ns)
        uid = gone.metadata.uid
        for ref in gone.metadata.owner_references:
            siblings = self._dependents.get(ref.uid)
            if siblings:
                siblings.pop((resource, key), None)
                self._owner_may_go(ref.uid, ref.kind, ref.name, key.namespace)
        if self._dependents.get(uid):
            self.env.call_at(max(at_ns - self.env.now, 0) + self._gc_ns, self._collect, uid, resource, key)

    def _announce(self, resource: Resource, key: Key, old: Object | None, new: Object | None, op: str,
                  at_ns: int) -> None:
        obj = new if new is not None else old
        assert obj is not None
        if self.trace.keep_objects:
            self.trace.object(at_ns, op, self.name, obj)
        observers = self.observers.get(resource)
        if observers:
            for observe in observers:
                observe(old, new, at_ns)
        readers = self.readers
        if readers:
            touch(readers, (resource, key))
            touch(readers, resource)
        delay = at_ns - self.env.now + self.lag_ns
        if resource in self._interested:
            self.env.call_at(delay if delay > 0 else 0, self._deliver, resource, key, new, obj)

    def _deliver(self, resource: Resource, key: Key, new: Object | None, last: Object) -> None:
        interested = self._interested.get(resource)
        if interested is None:
            return
        self.deliveries += len(interested)
        for cache in interested:
            cache.receive(resource, key, new, last)

    def _refused(self, resource: Resource, key: Key, verb: str, by: str, at_ns: int, reason: str) -> None:
        self.trace.write(at_ns, by, verb, self.name, kind_name(resource), key.namespace, key.name, "", reason)

    # --- owners (kube-controller-manager's garbage collector)

    def _reown(self, resource: Resource, key: Key, was: ObjectMeta, now: ObjectMeta) -> None:
        for ref in was.owner_references:
            self._dependents.get(ref.uid, {}).pop((resource, key), None)
        for ref in now.owner_references:
            self._dependents.setdefault(ref.uid, {})[resource, key] = None

    def _collect(self, uid: str, resource: Resource, key: Key) -> None:
        """Dependents of an owner that is gone, or going by foreground or orphan deletion."""
        owner = self.table(resource).get(key)
        alive = owner if owner is not None and owner.metadata.uid == uid else None
        orphan = alive is not None and ORPHAN in alive.metadata.finalizers
        for child_resource, child_key in list(self._dependents.get(uid, {})):
            child = self.table(child_resource).get(child_key)
            if child is None:
                continue
            left = tuple(r for r in child.metadata.owner_references if r.uid != uid)
            if orphan or (left and alive is None):
                self.update(replace(child, metadata=replace(child.metadata, owner_references=left)), "garbage-collector",
                            self.env.now, verb="patch")
            elif not child.deleting:
                try:
                    self.delete(child_resource, child_key, "garbage-collector", self.env.now,
                                propagation="Foreground" if alive is not None else "Background")
                except ApiError:
                    # Refused by a webhook: the real collector tries again with back-off.
                    self.env.call_at(5 * SECOND, self._collect, uid, resource, key)
        if alive is not None:
            if orphan:
                self._strip(alive, ORPHAN)
            else:
                self._owner_may_go(uid, kind_name(resource), key.name, key.namespace)

    def _owner_may_go(self, uid: str, kind: str, name: str, namespace: str) -> None:
        """An owner in foreground deletion goes when its last blocking dependent has gone."""
        for resource in list(self._tables):
            if kind_name(resource) != kind:
                continue
            owner = self._tables[resource].get(Key(namespace, name)) or self._tables[resource].get(Key("", name))
            if owner is None or owner.metadata.uid != uid or FOREGROUND not in owner.metadata.finalizers:
                continue
            blocking = any(
                ref.uid == uid and ref.block_owner_deletion
                for r, k in self._dependents.get(uid, {}) if (child := self.table(r).get(k)) is not None
                for ref in child.metadata.owner_references)
            if not blocking:
                self._strip(owner, FOREGROUND)

    def _strip(self, obj: Object, finalizer: str) -> None:
        left = tuple(f for f in obj.metadata.finalizers if f != finalizer)
        self.update(replace(obj, metadata=replace(obj.metadata, finalizers=left)), "garbage-collector", self.env.now,
                    verb="patch")

    # --- names

    def _uid(self) -> str:
        d = hashlib.blake2b(f"{self.name}/{self._made}".encode(), digest_size=16).hexdigest()
        return f"{d[:8]}-{d[8:12]}-4{d[13:16]}-8{d[17:20]}-{d[20:]}"

    def _suffix(self) -> str:
        raw = hashlib.blake2b(f"{self.name}/name/{self._made}/{self._rv}".encode(), digest_size=5).digest()
        return "".join(_ALPHABET[b % len(_ALPHABET)] for b in raw)


class _Lister:
    """What webhooks may read: the stored objects of a kind."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def list(self, kind: Any, namespace: str | None = None) -> list[Any]:
        return [o for k, o in self._server.table(kind).items() if namespace is None or k.namespace == namespace]


class _Recorder:
    """What client-go's event correlator remembers."""

    BURST = 25
    REFILL_NS = 300 * SECOND

    def __init__(self) -> None:
        self.names: dict[tuple[str, ...], Key] = {}
        self._next: dict[tuple[str, str], int] = {}

    def allow(self, source: tuple[str, str], now: int) -> bool:
        at = max(self._next.get(source, -(10**30)), now - self.BURST * self.REFILL_NS) + self.REFILL_NS
        if at > now:
            return False
        self._next[source] = at
        return True


def from_shape(manifest: Mapping[str, Any]) -> type[Object]:
    return kind_of(str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))


def without_string_data(secret: Secret) -> Secret:
    """As stored: what stringData says is in data, encoded, over what was there under the same name."""
    plain = {name: base64.b64encode(text.encode()).decode() for name, text in secret.string_data.items()}
    return replace(secret, data={**secret.data, **plain}, string_data={})


def not_found(resource: Resource, key: Key) -> NotFound:
    return NotFound(f'{plural(resource)} "{key.name}" not found')


def conflict(resource: Resource, key: Key) -> Conflict:
    return Conflict(f'Operation cannot be fulfilled on {plural(resource)} "{key.name}": the object has been modified; '
                    "please apply your changes to the latest version and try again")

