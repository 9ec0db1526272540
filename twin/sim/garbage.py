"""Owners and dependents: kube-controller-manager's garbage collector.

An object goes when none of its owners is left; a reference to an owner that is gone is taken off while another stays.
Foreground deletion keeps the owner until the dependents that block it have gone, orphan deletion lets them loose.
References count only within the dependent's namespace, or to a cluster-wide kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from twin.backends.base import ApiError
from twin.model.kinds import kind_of
from twin.model.meta import Key, Object, ObjectMeta, OwnerReference, Unstructured, replace
from twin.sim.clock import SECOND, TwinEnvironment
from twin.sim.status import Resource, kind_name, resource_of

FOREGROUND: Final = "foregroundDeletion"
ORPHAN: Final = "orphan"
COLLECTOR: Final = "garbage-collector"
_AGAIN_NS: Final = 5 * SECOND


class Store(Protocol):
    """What the collector asks of the API server it belongs to."""

    env: TwinEnvironment

    def table(self, resource: Resource) -> Mapping[Key, Any]: ...

    def update(self, obj: Any, by: str, at_ns: int, *, verb: str = "update") -> Any: ...

    def delete(self, resource: Resource, key: Key, by: str, at_ns: int, *, propagation: str = "Background",
               uid: str = "") -> None: ...


class Collector:
    """Knows who depends on whom at one server. It looks `delay_ns` after the change that concerns it.

    None: never, as with a bare API server.
    """

    def __init__(self, server: Store, delay_ns: int | None) -> None:
        self._server = server
        self._delay_ns = delay_ns
        self._dependents: dict[str, dict[tuple[Resource, Key], None]] = {}

    def has_dependents(self, uid: str) -> bool:
        return bool(self._dependents.get(uid))

    # --- what the server tells

    def born(self, resource: Resource, key: Key, meta: ObjectMeta, at_ns: int) -> None:
        """An object that has owners was stored."""
        for ref in meta.owner_references:
            self._dependents.setdefault(ref.uid, {})[resource, key] = None
            if self._owner(ref, key) is None:
                self._later(at_ns, self._look_at, resource, key, meta.uid)

    def reowned(self, resource: Resource, key: Key, was: ObjectMeta, now: ObjectMeta, at_ns: int) -> None:
        for ref in was.owner_references:
            self._dependents.get(ref.uid, {}).pop((resource, key), None)
        self.born(resource, key, now, at_ns)
        for ref in was.owner_references:
            self._owner_may_go(ref, key)

    def deleting(self, resource: Resource, key: Key, uid: str, at_ns: int) -> None:
        """Marked for deletion, and the collector has a finalizer on it."""
        self._later(at_ns, self._collect, resource, key, uid)

    def gone(self, resource: Resource, key: Key, meta: ObjectMeta, at_ns: int) -> None:
        for ref in meta.owner_references:
            siblings = self._dependents.get(ref.uid)
            if siblings:
                siblings.pop((resource, key), None)
                self._owner_may_go(ref, key)
        if self._dependents.get(meta.uid):
            self._later(at_ns, self._collect, resource, key, meta.uid)

    # --- what it does

    def _later(self, at_ns: int, do: Callable[..., None], *args: Any) -> None:
        if self._delay_ns is not None:
            env = self._server.env
            env.call_at(max(at_ns - env.now, 0) + self._delay_ns, self._try, do, *args)

    def _try(self, do: Callable[..., None], *args: Any) -> None:
        """Refused, by a webhook for example: the real collector tries again with back-off."""
        try:
            do(*args)
        except ApiError:
            self._server.env.call_at(_AGAIN_NS, self._try, do, *args)

    def _collect(self, resource: Resource, key: Key, uid: str) -> None:
        """The dependents of an owner that is gone, or going by foreground or orphan deletion."""
        owner = self._server.table(resource).get(key)
        if owner is not None and owner.metadata.uid != uid:
            owner = None
        if owner is not None and ORPHAN in owner.metadata.finalizers:
            for child_resource, child in self._children(uid):
                self._release(child_resource, child, (uid,))
            self._strip(owner, ORPHAN)
            return
        for child_resource, child in self._children(uid):
            if owner is None or any(r.uid == uid and r.block_owner_deletion for r in child.metadata.owner_references):
                self._try(self._look_at, child_resource, child.key, child.metadata.uid)
        self._finish(resource, key, uid)

    def _look_at(self, resource: Resource, key: Key, uid: str) -> None:
        """Delete this object if nothing holds it; take off references to owners that do not."""
        obj = self._server.table(resource).get(key)
        if obj is None or obj.metadata.uid != uid or obj.deleting:
            return
        solid, idle, leaving = [], [], False
        for ref in obj.metadata.owner_references:
            owner = self._owner(ref, key)
            if owner is not None and not (owner.deleting and FOREGROUND in owner.metadata.finalizers):
                solid.append(ref.uid)
            else:
                idle.append(ref.uid)
                leaving = leaving or owner is not None
        if not idle:
            return
        if solid:
            self._release(resource, obj, tuple(idle))
            return
        foreground = leaving and self.has_dependents(uid)
        self._server.delete(resource, key, COLLECTOR, self._server.env.now, uid=uid,
                            propagation="Foreground" if foreground else "Background")

    def _finish(self, resource: Resource, key: Key, uid: str) -> None:
        """An owner in foreground deletion goes when its last blocking dependent has gone."""
        owner = self._server.table(resource).get(key)
        if owner is not None and owner.metadata.uid == uid and FOREGROUND in owner.metadata.finalizers and not any(
                ref.uid == uid and ref.block_owner_deletion
                for _, child in self._children(uid) for ref in child.metadata.owner_references):
            self._strip(owner, FOREGROUND)

    def _owner_may_go(self, ref: OwnerReference, key: Key) -> None:
        owner = self._owner(ref, key)
        if self._delay_ns is not None and owner is not None and owner.deleting:
            self._try(self._finish, resource_of(owner), owner.key, owner.metadata.uid)

    def _children(self, uid: str) -> list[tuple[Resource, Object]]:
        return [(r, child) for r, k in list(self._dependents.get(uid, {}))
                if (child := self._server.table(r).get(k)) is not None]

    def _owner(self, ref: OwnerReference, key: Key) -> Object | None:
        """The owner this reference of the object at `key` means, if it is there."""
        cls = kind_of(ref.api_version, ref.kind)
        resource: Resource = cls if cls is not Unstructured else f"{ref.kind}.{ref.api_version.rpartition('/')[0]}"
        table = self._server.table(resource)
        owner = table.get(Key(key.namespace, ref.name))
        if owner is None and key.namespace:
            owner = table.get(Key("", ref.name))
        return owner if owner is not None and owner.metadata.uid == ref.uid else None

    def _release(self, resource: Resource, child: Object, owners: tuple[str, ...]) -> None:
        left = tuple(r for r in child.metadata.owner_references if r.uid not in owners)
        self._patch(replace(child, metadata=replace(child.metadata, owner_references=left)), kind_name(resource))

    def _strip(self, obj: Object, finalizer: str) -> None:
        left = tuple(f for f in obj.metadata.finalizers if f != finalizer)
        self._patch(replace(obj, metadata=replace(obj.metadata, finalizers=left)), obj.KIND)

    def _patch(self, obj: Object, kind: str) -> None:
        self._server.update(obj, COLLECTOR, self._server.env.now, verb="patch")
