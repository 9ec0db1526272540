"""The simulated API server: the truth about one cluster's objects.

Keeps what a real one keeps: a global resourceVersion, generation, the status subresource, optimistic locking,
finalizers and deletion timestamps, owner garbage collection, no-op writes that change nothing. Objects are frozen, so a
version once read never changes. Who asks pays elsewhere (`twin.sim.client`); `at_ns` is the metered moment of a write:
watchers see it `lag` after that.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import msgspec

from twin.backends.base import ApiError, NotFound
from twin.model.core import ConfigMap, Event, Lease, Namespace, Node, ObjectReference, Pod, Secret, Service
from twin.model.kinds import from_manifest, kind_of, to_manifest
from twin.model.merge import merge_json, merged
from twin.model.meta import Key, Object, ObjectMeta, Unstructured, format_time, new_key, replace
from twin.model.schema import has_crd
from twin.model.typed import as_sent, with_default_status, with_defaults
from twin.runtime.events import Correlator
from twin.sim import apply as ssa
from twin.sim.admission import admit, admit_object, admit_typed
from twin.sim.clock import EPOCH, SECOND, TwinEnvironment
from twin.sim.fieldset import shape_of
from twin.sim.garbage import FOREGROUND, ORPHAN, Collector
from twin.sim.jsonpatch import patched
from twin.sim.node_ports import with_node_ports
from twin.sim.pages import COMPACTION_NS, Page, Pages, place
from twin.sim.runner import touch
from twin.sim.selectors import matching
from twin.sim.status import (
    Resource,
    already_exists,
    bad_request,
    conflict,
    delete_conflict,
    kind_name,
    no_version,
    not_found,
    resource_of,
    resource_parts,
    too_large_version,
)
from twin.sim.trace import Trace
from twin.sim.watch import ApiWatch, History

__all__ = ["ApiServer", "Observer", "Resource"]

T = TypeVar("T", bound=Object)
Observer = Callable[[Object | None, Object | None, int], None]
"""(old, new, at_ns): called with every change, at once. For the trace and the checks, never for controllers."""

_WITHOUT_GENERATION: frozenset[Resource] = frozenset((ConfigMap, Event, Lease, Namespace, Node, Secret, Service))
"""Core kinds whose generation the server does not keep (seen at kube-apiserver v1.34)."""
NAME_ATTEMPTS = 8
NAME_BASE = 58
"""Characters of generateName that are used: names have 63, the suffix 5."""
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class Follower(Protocol):
    """A process's cache of the objects of one kind."""

    def receive(self, key: Key, before: Object | None, new: Object | None, last: Object) -> None:
        """A change from the version `before`; `new` is None when the object has gone, `last` its last version."""


class ApiServer:
    """One cluster's API server. `name` is '' for the host cluster, else the DPU cluster's."""

    def __init__(self, env: TwinEnvironment, trace: Trace, name: str = "", *, lag_ns: int = 0, gc_ns: int | None = 0,
                 write_ns: int = 0, follow_managers: bool = False, window: tuple[int, int] = (1000, COMPACTION_NS),
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
        self._events = Correlator()
        self.readers: dict[Any, dict[Any, None]] = {}
        """Who read what by live reads; tokens are (resource, key), resources, and 'up'."""
        self.observers: dict[Resource, list[Observer]] = {}
        self.writer = ""
        """Who makes the change that observers are being told of."""
        self._rv = 0
        self._made = 0
        self._tables: dict[Resource, dict[Key, Object]] = {}
        self._interested: dict[Resource, list[Follower]] = {}
        """Caches that watch a kind."""
        self.follow_managers = follow_managers
        """Keep managedFields of every object from its birth, as a real server does; else from its first apply."""
        self._window = window
        """How much a watch may lag behind: changes of a kind, and their age in ns."""
        self._garbage = Collector(self, gc_ns)
        self._pages = Pages()
        self._histories: dict[Resource, History] = {}
        self._leaving: dict[tuple[Resource, Key], int] = {}
        self._defaulted: dict[tuple[Resource, Key], str] = {}
        """Objects whose status was a default at their creation, and their version then."""
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
        return table.get(key) if table else None  # type: ignore[return-value]

    def get(self, kind: type[T], key: Key) -> T:
        """Raises NotFound with the server's text."""
        obj = self.find(kind, key)
        if obj is None:
            raise not_found(kind, key)
        return obj

    def list_page(self, resource: Resource, *, namespace: str | None = None, labels: str = "", fields: str = "",
                  limit: int = 0, token: str = "") -> Page:
        """LIST with selectors, in pages if there is a limit. A watch from its version sees everything after it.

        Raises: Gone (the token is older than 5 minutes), ApiError 400.
        """
        self._history(resource)
        return self._pages.page(
            (resource, namespace), sorted(self.table(resource).values(), key=place),
            matching(resource, namespace, labels, fields), bool(labels or fields), self._rv, limit, token, self.env.now)

    def watch(self, resource: Resource, since: str = "", *, namespace: str | None = None, labels: str = "",
              fields: str = "", bookmarks: bool = False, initial_events: bool = False, coalesce: bool = False,
              lag_ns: int | None = None) -> ApiWatch:
        """WATCH from this resourceVersion on; '' or '0': what there is comes first, as ADDED events.

        `initial_events`: a bookmark marks the end of those. `lag_ns`: instead of the server's.
        Raises: Gone (410 Expired) when the version is forgotten, ApiError 400, 500 or 504 for a wrong one.
        """
        history = self._history(resource)
        if not since.isdigit() and since:
            raise ApiError(f'resourceVersion: Invalid value: "{since}": strconv.ParseUint: parsing "{since}": '
                           "invalid syntax", reason="")
        rv = int(since or 0)
        if rv > self._rv:
            raise too_large_version(rv, self._rv)
        test = matching(resource, namespace, labels, fields)
        changes = history.since(rv) if rv else []
        objects = [] if rv else [o for o in sorted(self.table(resource).values(), key=place) if test(o)]
        kind = kind_name(resource)
        watch = ApiWatch(
            self.env, history, (lambda meta: Unstructured(metadata=meta, kind=kind)) if isinstance(resource, str)
            else (lambda meta: resource(metadata=meta)), test, lag_ns=self.lag_ns if lag_ns is None else lag_ns,
            coalesce=coalesce, bookmarks=bookmarks, rv=rv or self._rv)
        watch.begin(objects, changes, initial_events)
        return watch

    def _history(self, resource: Resource) -> History:
        found = self._histories.get(resource)
        if found is None:
            found = self._histories[resource] = History(self._rv, events=self._window[0], age_ns=self._window[1])
            self.observers.setdefault(resource, []).append(found.observe)
        return found

    @property
    def resource_version(self) -> int:
        return self._rv

    def attach(self, cache: Follower, resource: Resource) -> None:
        """Send this cache every change of this kind from now on."""
        self._interested.setdefault(resource, []).append(cache)

    def detach(self, cache: Follower, resource: Resource) -> None:
        caches = self._interested.get(resource, [])
        if cache in caches:
            caches.remove(cache)

    # --- writes

    def create(self, obj: T, by: str, at_ns: int, *, admitted: bool = False, verb: str = "create") -> T:
        """Store a new object. Raises AlreadyExists, NotFound (its namespace), or what admission refuses.

        `admitted`: it came as JSON and has passed. A typed write is judged with the fields that Go
        sends when they are empty.
        """
        resource = resource_of(obj)
        meta = obj.metadata
        table = self.table(resource)
        name = meta.name or self._generated(table, meta)
        key = new_key(Key, (meta.namespace, name))
        if meta.namespace and ("", meta.namespace) not in self.table(Namespace):
            raise not_found(Namespace, Key("", meta.namespace))
        if key in table:
            if not admitted:  # a real server validates before it looks whether the name is taken
                admit_typed(type(obj), with_defaults(replace(obj, metadata=replace(meta, name=name))), None)
            raise already_exists(resource, name, deleting=table[key].deleting)
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
            new = cast(T, with_node_ports(new, cast("list[Service]", list(table.values()))))
        elif isinstance(new, Secret) and new.string_data:
            new = cast(T, without_string_data(new))
        if self.follow_managers and not new.metadata.managed_fields:
            new = self._followed(None, new, by, at_ns, "")
        table[key] = new
        if getattr(new, "status", None) is not None and not isinstance(resource, str) and has_crd(resource):
            self._defaulted[resource, key] = new.metadata.resource_version
        if self._leaving:
            self._leaving.pop((resource, key), None)
        if meta.owner_references:
            self._garbage.born(resource, key, new.metadata, at_ns)
        self._commit(resource, key, None, new, verb, by, at_ns)
        return new

    def update(self, obj: T, by: str, at_ns: int, *, status: bool = False, verb: str = "update",
               admitted: bool = False, managed: tuple[dict[str, Any], ...] | None = None) -> T:
        """Replace an object (its status only, or all but its status). Nothing changes, nothing is written.

        `admitted`: as for `create`. `managed`: the managedFields to store with it, from an apply.

        Raises: NotFound, Conflict (stale resourceVersion), Invalid.
        """
        if status:
            return self.update_status(obj, by, at_ns, verb=verb, admitted=admitted, managed=managed)
        resource = resource_of(obj)
        meta = obj.metadata
        key = new_key(Key, (meta.namespace, meta.name))
        old: T = self._current(resource, key, meta, verb, by, at_ns)
        was = old.metadata
        if isinstance(obj, Secret) and obj.string_data:
            obj = cast(T, without_string_data(obj))
        kept = self._fixed(meta, was)
        if managed is not None:
            kept = replace(kept, managed_fields=managed)
        new = obj if kept is meta else replace(obj, metadata=kept)
        if type(obj).HAS_STATUS and new.status is not old.status:  # type: ignore[attr-defined]
            new = replace(new, status=old.status)  # type: ignore[attr-defined]
        if kept is not was and kept != was:
            grown = was.generation > 0 and replace(new, metadata=was) != old
        else:
            grown = new != old
            if not grown and not self._unstored(resource, key, was):
                return old
        if not admitted:
            try:
                new = admit_object(type(obj), new, old, webhooks=self.webhooks, reader=self._lister)
            except ApiError as error:
                self._refused(resource, key, verb, by, at_ns, error.reason)
                raise
        if managed is None and was.managed_fields:
            new = self._followed(old, new, by, at_ns, "")
        self._rv += 1
        left = replace(new.metadata, resource_version=str(self._rv),
                       generation=was.generation + (was.generation > 0 and grown))
        new = replace(new, metadata=left)
        if left.deletion_timestamp and not left.finalizers and not self._lingers(new):
            self._remove(resource, key, old, new, verb, by, at_ns)
            left = ObjectMeta()  # the owners it had until now lost it just as well
        else:
            self._tables[resource][key] = new
            self._commit(resource, key, old, new, verb, by, at_ns)
        # After the write itself: an owner that may go now goes with a later version.
        if new.metadata.owner_references is not was.owner_references:
            self._garbage.reowned(resource, key, was, left, at_ns)
        return new

    def update_status(self, obj: T, by: str, at_ns: int, *, verb: str = "status", admitted: bool = False,
                      managed: tuple[dict[str, Any], ...] | None = None) -> T:
        """As `update`, of the status only. Most writes are one: it changes neither owners nor what holds the object."""
        resource = resource_of(obj)
        meta = obj.metadata
        key = new_key(Key, (meta.namespace, meta.name))
        old: T = self._current(resource, key, meta, verb, by, at_ns)
        was = old.metadata
        status, before = obj.status, old.status  # type: ignore[attr-defined]
        if status == before and managed in (None, was.managed_fields) and not self._unstored(resource, key, was):
            return old
        if not admitted:
            try:
                admit_typed(type(obj), obj, old, "status")
            except ApiError as error:
                self._refused(resource, key, verb, by, at_ns, error.reason)
                raise
        if managed is None and was.managed_fields:
            managed = self._followed(old, replace(old, status=status), by, at_ns, "status").metadata.managed_fields
        self._rv += 1
        version = str(self._rv)
        kept = (replace(was, resource_version=version) if managed is None
                else replace(was, resource_version=version, managed_fields=managed))
        new = replace(old, metadata=kept, status=status)
        self._tables[resource][key] = new
        self._commit(resource, key, old, new, verb, by, at_ns)
        return new

    def _current(self, resource: Resource, key: Key, meta: ObjectMeta, verb: str, by: str, at_ns: int) -> Any:
        """The stored object that one with this metadata is to replace. Raises: NotFound, Conflict, Invalid."""
        table = self._tables.get(resource)
        old = table.get(key) if table else None
        if old is None:
            raise not_found(resource, key)
        was = old.metadata
        if meta is not was and (meta.resource_version != was.resource_version or (meta.uid and meta.uid != was.uid)):
            self._refuse_stale(resource, key, meta, was, verb, by, at_ns)
        return old

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], by: str, at_ns: int, *, status: bool = False,
              resource_version: str = "") -> T:
        """JSON merge patch of an object, or of its status. Raises as `update`, and what admission refuses."""
        if status and not kind.HAS_STATUS:
            raise not_found(kind, key) if has_crd(kind) else NotFound(
                "the server could not find the requested resource")
        if status or self.webhooks is None or not self.webhooks.watches(kind):
            # No webhook wants to see it as JSON: patch the object itself.
            old: T | None = self.table(kind).get(key)  # type: ignore[assignment]
            if old is None:
                raise not_found(kind, key)
            new = merged(old, merge)
            if "status" in merge:
                new = with_default_status(new) if status else with_defaults(new)
            if resource_version:
                new = replace(new, metadata=replace(new.metadata, resource_version=resource_version))
            if new is old and not self._unstored(kind, key, old.metadata):
                return old
            if status:
                return self.update_status(new, by, at_ns, verb="patch")
            return self.update(new, by, at_ns, verb="patch")
        return cast(T, self.patch_resource(kind, key, merge, by, at_ns, status=status,
                                           resource_version=resource_version))

    def patch_resource(self, resource: Resource, key: Key, merge: Mapping[str, Any], by: str, at_ns: int, *,
                       status: bool = False, resource_version: str = "") -> Object:
        """As `patch`, also for kinds without a class."""
        return self._rewrite(resource, key, lambda before: merge_json(before, merge), by, at_ns, status,
                             resource_version)

    def json_patch(self, resource: Resource, key: Key, operations: Sequence[Mapping[str, Any]], by: str, at_ns: int, *,
                   status: bool = False) -> Object:
        """JSON patch (RFC 6902). Raises as `patch`, and 400 or 422 for operations that do not fit."""
        return self._rewrite(resource, key, lambda before: patched(before, operations), by, at_ns, status, "")

    def _rewrite(self, resource: Resource, key: Key, change: Callable[[dict[str, Any]], Any], by: str, at_ns: int,
                 status: bool, resource_version: str) -> Object:
        """Change an object's JSON and store what admission makes of it."""
        old = self.table(resource).get(key)
        if old is None:
            raise not_found(resource, key)
        if resource_version and resource_version != old.metadata.resource_version:
            self._refused(resource, key, "patch", by, at_ns, "Conflict")
            raise conflict(resource, key)
        before = self._stored(resource, old)
        after = change(before)
        if after == before and not self._unstored(resource, key, old.metadata):
            return old
        name = after.get("metadata", {}).get("name")
        if name != key.name:
            raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({key.name})")
        after = self._admitted(resource, key, after, before, "patch", by, at_ns, status)
        return self.update(_decoded(resource, after), by, at_ns, status=status, verb="patch", admitted=True)

    def apply(self, manifest: Mapping[str, Any], manager: str, by: str, at_ns: int, *, force: bool = False,
              status: bool = False) -> Object:
        """Server-side apply. What is stored stays untouched if nothing changes.

        Raises: Conflict when others manage what would change and `force` is off; what `create` and `update` raise.
        """
        ssa.check_request(manifest, manager)
        config = {k: v for k, v in manifest.items() if status or k != "status"}
        cls = from_shape(manifest)
        kind, version = str(manifest.get("kind", "")), str(manifest.get("apiVersion", ""))
        resource: Resource = cls if cls is not Unstructured else f"{kind}.{version.rpartition('/')[0]}"
        meta = msgspec.convert(manifest.get("metadata") or {}, ObjectMeta)
        key, shape = Key(meta.namespace, meta.name), shape_of(resource)
        if not isinstance(resource, str) and has_crd(resource):
            ssa.check_typed(manifest, shape)
        who, now = ssa.Manager(ssa.APPLY, manager, version, "status" if status else ""), _time(at_ns)
        old = self.table(resource).get(key)
        if old is None:
            if status:
                raise not_found(resource, key)
            if meta.uid:
                raise conflict(resource, key, f"uid mismatch: the provided object specified uid {meta.uid}, and no "
                               "existing object was found")
            born, managers = ssa.applied({}, config, {}, who, shape, now)
            body = self._admitted(resource, key, born, None, "apply", by, at_ns, False)
            new = _decoded(resource, body)
            new = replace(new, metadata=replace(new.metadata, managed_fields=ssa.entries_of(managers)))
            return self.create(new, by, at_ns, admitted=True, verb="apply")
        was = old.metadata
        if (meta.resource_version and meta.resource_version != was.resource_version) or (
                meta.uid and meta.uid != was.uid):
            self._refuse_stale(resource, key, meta, was, "apply", by, at_ns)
        before = self._stored(resource, old)
        before.get("metadata", {}).pop("managedFields", None)
        had = ssa.managers_of(was.managed_fields)
        after, managers = ssa.applied(before, config, had, who, shape, now, force=force)
        if after is before and not self._unstored(resource, key, was):
            return old
        after = self._admitted(resource, key, after, before, "apply", by, at_ns, status)
        new = _decoded(resource, after)
        if ssa.same_owners(managers, had):
            # Perhaps only our spelling of what is empty differs: then there is nothing to write, not even the time.
            managed = was.managed_fields if self._unchanged(new, old, status) else ssa.entries_of(managers)
        else:
            managed = ssa.entries_of(managers)
        return self.update(new, by, at_ns, status=status, verb="apply", admitted=True, managed=managed)

    def dry_run(self) -> ApiServer:
        """A server with the same objects that forgets what is written to it: `server.dry_run().create(...)`."""
        other = ApiServer(TwinEnvironment(), Trace(), self.name, write_ns=0, follow_managers=self.follow_managers,
                          url=self.url, webhooks=self.webhooks)
        other.version, other._rv, other._made = self.version, self._rv, self._made
        other._tables = {resource: dict(table) for resource, table in self._tables.items()}
        return other

    def create_manifest(self, manifest: dict[str, Any], by: str, at_ns: int, field_validation: str = "Warn") -> Object:
        """Create from a mapping: admission in Kubernetes' order, then storage."""
        obj = from_shape(manifest)
        admitted = admit(obj, manifest, None, operation="CREATE", webhooks=self.webhooks, reader=self._lister,
                         field_validation=field_validation) if obj is not Unstructured else manifest
        resource = resource_of(from_manifest(admitted)) if obj is Unstructured else obj
        return self.create(_decoded(resource, admitted), by, at_ns, admitted=True)

    def delete(self, resource: Resource, key: Key, by: str, at_ns: int, *, propagation: str = "Background",
               uid: str = "", resource_version: str = "") -> None:
        """Delete, or mark for deletion while finalizers (or a pod's grace) hold it."""
        table = self.table(resource)
        old = table.get(key)
        if old is None:
            if self._leaving.get((resource, key), -1) > at_ns:
                return  # it goes later than this request is made: still there, and being deleted already
            raise not_found(resource, key)
        if uid and uid != old.metadata.uid:
            raise delete_conflict(
                resource, key, f"the UID in the precondition ({uid}) does not match the UID in record "
                f"({old.metadata.uid}). The object might have been deleted and then recreated")
        if resource_version and resource_version != old.metadata.resource_version:
            raise delete_conflict(
                resource, key, f"the ResourceVersion in the precondition ({resource_version}) does not match the "
                f"ResourceVersion in record ({old.metadata.resource_version}). The object might have been modified")
        if self.webhooks is not None and not isinstance(resource, str) and self.webhooks.watches(resource):
            admit(resource, to_manifest(old), None, operation="DELETE", webhooks=self.webhooks, reader=self._lister)
        meta = old.metadata
        finalizers = _deletion_finalizers(meta.finalizers, propagation)
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
            generation=meta.generation + (meta.generation > 0 and not old.deleting),
            deletion_timestamp=meta.deletion_timestamp or format_time(EPOCH + at_ns / SECOND),
            deletion_grace_period_seconds=30 if grace is None else grace))
        table[key] = new
        self._commit(resource, key, old, new, "delete", by, at_ns)
        if FOREGROUND in finalizers or ORPHAN in finalizers:
            self._garbage.deleting(resource, key, meta.uid, at_ns)

    def delete_collection(self, resource: Resource, by: str, at_ns: int, *, namespace: str | None = None,
                          labels: str = "", fields: str = "", propagation: str = "Background") -> list[Object]:
        """Delete all that match, in the order of the store's keys; returns them as they were. Raises as `delete`."""
        test = matching(resource, namespace, labels, fields)
        found = [o for o in sorted(self.table(resource).values(), key=place) if test(o)]
        for obj in found:
            self.delete(resource, obj.key, by, at_ns, propagation=propagation)
        return found

    def kill(self, key: Key, by: str) -> None:
        """Remove a pod at once (the kubelet's last word, or a forced deletion)."""
        old = self.find(Pod, key)
        if old is not None:
            self._rv += 1
            gone = replace(old, metadata=replace(old.metadata, resource_version=str(self._rv)))
            self._remove(Pod, key, old, gone, "delete", by, self.env.now)

    def record_event(self, about: Object, type_: str, reason: str, message: str, by: str, at_ns: int) -> None:
        """A Kubernetes Event as client-go's recorder sends it (`twin.runtime.events`)."""
        meta = about.metadata
        told = self._events.correlate(by, (meta.uid, meta.name), type_, reason, message, at_ns / SECOND)
        if told is None:
            return
        kind = kind_name(resource_of(about))
        self.trace.kube_event(at_ns, self.name, f"{kind}/{about.key}", type_, reason, told.message)
        namespace = meta.namespace or "default"
        old = self.find(Event, Key(namespace, told.name)) if told.name else None
        if old is not None:
            self.update(replace(old, count=told.times, message=told.message, last_timestamp=_time(at_ns)), by, at_ns)
            return
        name = f"{meta.name}.{self._made:016x}"
        self._events.made(told, name)
        self.create(Event(
            metadata=ObjectMeta(namespace=namespace, name=name), type=type_, reason=reason, message=told.message,
            count=told.times, first_timestamp=format_time(EPOCH + told.first_s), last_timestamp=_time(at_ns),
            source={"component": by}, reporting_component=by,
            involved_object=ObjectReference(
                kind=kind, namespace=meta.namespace, name=meta.name, uid=meta.uid,
                api_version=type(about).api_version(), resource_version=meta.resource_version)), by, at_ns)

    # --- load

    def slowed(self, cost_ns: int) -> int:
        """What a request takes while the server is slow (a fault); `slowness` is a factor."""
        return cost_ns if self.slowness == 1.0 else round(cost_ns * self.slowness)

    def busy_ns(self, now: int) -> int:
        """How long a write that arrives now waits for those before it (the server stores one at a time)."""
        if not self.write_ns:
            return 0
        start = self._written_at if self._written_at > now else now
        self._written_at = start + (self.write_ns if self.slowness == 1.0 else self.slowed(self.write_ns))
        return start - now

    # --- inside

    def _fixed(self, meta: ObjectMeta, was: ObjectMeta) -> ObjectMeta:
        """What a client cannot change in metadata."""
        if (meta.uid == was.uid and meta.creation_timestamp == was.creation_timestamp
                and meta.deletion_timestamp == was.deletion_timestamp and meta.generation == was.generation
                and meta.resource_version == was.resource_version and meta.managed_fields is was.managed_fields):
            return meta
        return replace(meta, uid=was.uid, creation_timestamp=was.creation_timestamp, generation=was.generation,
                       deletion_timestamp=was.deletion_timestamp, resource_version=was.resource_version,
                       deletion_grace_period_seconds=was.deletion_grace_period_seconds,
                       managed_fields=was.managed_fields)

    def _unstored(self, resource: Resource, key: Key, was: ObjectMeta) -> bool:
        """Is its status a default that readers see and the store does not hold? Then any write is one."""
        return self._defaulted.get((resource, key)) == was.resource_version

    def _refuse_stale(self, resource: Resource, key: Key, meta: ObjectMeta, was: ObjectMeta, verb: str, by: str,
                      at_ns: int) -> None:
        """A write that carries another version or uid than the stored one. Raises Conflict or Invalid, or lets it pass:
        core kinds may be replaced without a version."""
        if meta.uid and meta.uid != was.uid:
            group, many = resource_parts(resource)[1:]
            path = "/".join(part for part in ("/registry", group if "." in group else "", many, str(key)) if part)
            self._refused(resource, key, verb, by, at_ns, "Conflict")
            raise conflict(resource, key, f"StorageError: invalid object, Code: 4, Key: {path}, ResourceVersion: 0, "
                           f"AdditionalErrorMsg: Precondition failed: UID in precondition: {meta.uid}, "
                           f"UID in object meta: {was.uid}")
        if meta.resource_version:
            self._refused(resource, key, verb, by, at_ns, "Conflict")
            raise conflict(resource, key)
        if not isinstance(resource, str) and has_crd(resource):
            self._refused(resource, key, verb, by, at_ns, "Invalid")
            raise no_version(resource, key)

    def _followed(self, old: T | None, new: T, by: str, at_ns: int, subresource: str) -> T:
        """With managedFields that say what this write made its own."""
        resource = resource_of(new)
        version = new.group_version if isinstance(new, Unstructured) else type(new).api_version()
        managers = ssa.followed(
            None if old is None else to_manifest(old), to_manifest(new), ssa.managers_of(new.metadata.managed_fields),
            ssa.Manager(ssa.UPDATE, by, version, subresource), shape_of(resource), _time(at_ns))
        return replace(new, metadata=replace(new.metadata, managed_fields=ssa.entries_of(managers)))

    def _stored(self, resource: Resource, old: Object) -> dict[str, Any]:
        """The object's JSON as a client would read it."""
        manifest = to_manifest(old)
        return manifest if isinstance(resource, str) else as_sent(resource, manifest, stored=True)

    def _admitted(self, resource: Resource, key: Key, after: dict[str, Any], before: dict[str, Any] | None, verb: str,
                  by: str, at_ns: int, status: bool) -> dict[str, Any]:
        if isinstance(resource, str):
            return after
        try:
            return admit(resource, after, before, operation="CREATE" if before is None else "UPDATE",
                         subresource="status" if status else "", webhooks=self.webhooks, reader=self._lister,
                         nulls=verb == "apply")
        except ApiError as error:
            self._refused(resource, key, verb, by, at_ns, error.reason)
            raise

    def _unchanged(self, new: Object, old: Object, status: bool) -> bool:
        if status:
            return bool(new.status == old.status)  # type: ignore[attr-defined]
        meta = self._fixed(new.metadata, old.metadata)
        new = replace(new, metadata=meta)
        if type(new).HAS_STATUS:
            new = replace(new, status=old.status)  # type: ignore[attr-defined]
        return new == old

    def _lingers(self, obj: Object) -> bool:
        return isinstance(obj, Pod) and bool(obj.spec.node_name)

    def _commit(self, resource: Resource, key: Key, before: Object | None, new: Object | None, verb: str, by: str,
                at_ns: int, gone: Object | None = None) -> None:
        """Announce a stored change: trace, observers, live readers at once; watchers after the lag.

        `before` is the version that was stored until now; `new` is None when it was removed, and `gone` the last one.
        """
        old, obj = (before, new) if new is not None else (gone, gone)
        assert obj is not None
        env, trace = self.env, self.trace
        trace.write(at_ns, by, verb, self.name, obj.KIND or kind_name(resource), key[0], key[1],
                    obj.metadata.resource_version, "")
        if trace.keep_objects:
            trace.object(at_ns, "ADDED" if old is None else "DELETED" if new is None else "MODIFIED", self.name, obj)
        observers = self.observers.get(resource)
        if observers:
            self.writer = by
            for observe in observers:
                observe(old, new, at_ns)
        readers = self.readers
        if readers:
            if (resource, key) in readers:
                touch(readers, (resource, key))
            if resource in readers:
                touch(readers, resource)
        followers = self._interested.get(resource)
        if followers:
            delay = at_ns - env._now + self.lag_ns
            env.post(delay if delay > 0 else 0, self._deliver, (followers, key, before, new, obj))

    def _remove(self, resource: Resource, key: Key, old: Object, gone: Object, verb: str, by: str, at_ns: int) -> None:
        del self._tables[resource][key]
        if at_ns > self.env.now:
            self._leaving[resource, key] = at_ns
        self._commit(resource, key, old, None, verb, by, at_ns, gone)
        self._garbage.gone(resource, key, gone.metadata, at_ns)

    def _deliver(self, followers: list[Follower], key: Key, before: Object | None, new: Object | None,
                 last: Object) -> None:
        self.deliveries += len(followers)
        for follower in followers:
            follower.receive(key, before, new, last)

    def _refused(self, resource: Resource, key: Key, verb: str, by: str, at_ns: int, reason: str) -> None:
        self.trace.write(at_ns, by, verb, self.name, kind_name(resource), key.namespace, key.name, "", reason)

    # --- names

    def _uid(self) -> str:
        d = hashlib.blake2b(f"{self.name}/{self._made}".encode(), digest_size=16).hexdigest()
        return f"{d[:8]}-{d[8:12]}-4{d[13:16]}-8{d[17:20]}-{d[20:]}"

    def _generated(self, table: dict[Key, Object], meta: ObjectMeta) -> str:
        """A name after the prefix, '' without one. A taken name is not the client's business: 8 are tried."""
        if not meta.generate_name:
            return ""
        name = ""
        for attempt in range(NAME_ATTEMPTS):
            name = meta.generate_name[:NAME_BASE] + self._suffix(attempt)
            if Key(meta.namespace, name) not in table:
                break
        return name

    def _suffix(self, attempt: int) -> str:
        again = f"/{attempt}" if attempt else ""
        raw = hashlib.blake2b(f"{self.name}/name/{self._made}/{self._rv}{again}".encode(), digest_size=5).digest()
        return "".join(_ALPHABET[b % len(_ALPHABET)] for b in raw)


class _Lister:
    """What webhooks may read: the stored objects of a kind."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def list(self, kind: Any, namespace: str | None = None) -> list[Any]:
        return [o for k, o in self._server.table(kind).items() if namespace is None or k.namespace == namespace]


def from_shape(manifest: Mapping[str, Any]) -> type[Object]:
    return kind_of(str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))


def without_string_data(secret: Secret) -> Secret:
    """As stored: what stringData says is in data, encoded, over what was there under the same name."""
    plain = {name: base64.b64encode(text.encode()).decode() for name, text in secret.string_data.items()}
    return replace(secret, data={**secret.data, **plain}, string_data={})


def _time(at_ns: int) -> str:
    return format_time(EPOCH + at_ns / SECOND)


def _decoded(resource: Resource, manifest: dict[str, Any]) -> Object:
    """The object this JSON is. Raises: ApiError 400 when a field has a wrong type."""
    try:
        return from_manifest(manifest)
    except msgspec.ValidationError as error:
        kind = kind_name(resource)
        version = str(manifest.get("apiVersion", "")).rpartition("/")[2]
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {error}') from None


_PROPAGATION = {"Foreground": (FOREGROUND,), "Orphan": (ORPHAN,)}


def _deletion_finalizers(now: tuple[str, ...], propagation: str) -> tuple[str, ...]:
    """The finalizers of an object that is deleted this way: the collector's own come last."""
    mine = _PROPAGATION.get(propagation, ())
    if not mine and FOREGROUND not in now and ORPHAN not in now:
        return now
    return (*(f for f in now if f not in (FOREGROUND, ORPHAN)), *mine)
