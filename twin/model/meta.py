"""What every Kubernetes object has: identity, metadata, owner references, conditions.

Objects are frozen `msgspec.Struct`s and are replaced, never mutated: "unchanged" is identity.
A kind is a subclass of `Object`; attributes are snake_case here and camelCase on the wire.
Empty and absent fields are left out when written, as Go's omitempty does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

__all__ = [
    "Condition", "Key", "Object", "ObjectMeta", "OwnerReference", "Part", "Unstructured",
    "condition", "condition_status", "format_time", "parse_time", "replace", "set_condition", "strip_finalizer",
]


class Key(NamedTuple):
    """Namespace and name: what a work queue holds and a reconciler receives. Cluster-wide kinds have namespace ''."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


new_key = tuple.__new__
"""`new_key(Key, (namespace, name))` is `Key(namespace, name)` without a call in between: for hot paths."""


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """Base of everything inside an object (a spec, a status, a list element)."""


class OwnerReference(Part, frozen=True):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Part, frozen=True):
    """`metadata`. Times are RFC 3339 strings; `resource_version` is opaque to controllers."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    deletion_grace_period_seconds: int | None = None
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()


class Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """Base of every kind. The class variables say where it lives in the API."""

    KIND: ClassVar[str] = ""
    GROUP: ClassVar[str] = ""
    VERSION: ClassVar[str] = "v1"
    PLURAL: ClassVar[str] = ""
    NAMESPACED: ClassVar[bool] = True
    HAS_STATUS: ClassVar[bool] = False  # status subresource: plain writes ignore status, status writes the rest

    metadata: ObjectMeta = ObjectMeta()

    @property
    def key(self) -> Key:
        meta = self.metadata
        return new_key(Key, (meta.namespace, meta.name))

    @property
    def deleting(self) -> bool:
        return self.metadata.deletion_timestamp != ""

    @classmethod
    def api_version(cls) -> str:
        return f"{cls.GROUP}/{cls.VERSION}" if cls.GROUP else cls.VERSION

    def owner_reference(self, *, controller: bool = True, block: bool | None = True) -> OwnerReference:
        return OwnerReference(
            api_version=self.api_version(), kind=self.KIND, name=self.metadata.name, uid=self.metadata.uid,
            controller=controller or None, block_owner_deletion=block,
        )


class Unstructured(Object, frozen=True):
    """An object of a kind we have no class for: stored and returned as it is.

    `content` is all but apiVersion, kind and metadata.
    """

    kind: str = ""
    group_version: str = ""
    content: Mapping[str, Any] = {}


class Condition(Part, frozen=True):
    """A status condition. `last_transition_time` moves only when `status` changes."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int | None = None
    last_heartbeat_time: str = ""


Conditions = tuple[Condition, ...]
T = TypeVar("T", bound=Object)


_SECONDS: Final = tuple(f"{second:02}Z" for second in range(60))


@lru_cache(maxsize=4096)
def _format_minute(minute: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(60 * minute))


@lru_cache(maxsize=4096)
def _format_second(second: int) -> str:
    return _format_minute(second // 60) + _SECONDS[second % 60]


def format_time(now: float) -> str:
    """Seconds since the Unix epoch as Kubernetes writes times: whole seconds, UTC (metav1.Time)."""
    return _format_second(int(now))


@lru_cache(maxsize=4096)
def parse_time(text: str) -> float:
    """The inverse of `format_time`, in seconds since the Unix epoch. Fractions of a second are dropped."""
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp()


def condition(conditions: Conditions, type_: str) -> Condition | None:
    """The condition of this type, or None."""
    for c in conditions:
        if c.type == type_:
            return c
    return None


def condition_status(conditions: Conditions, type_: str) -> str:
    """'True', 'False', 'Unknown', or '' when the condition is absent."""
    c = condition(conditions, type_)
    return c.status if c else ""


def set_condition(
    conditions: Conditions, type_: str, status: str, reason: str, message: str, now: float,
    observed_generation: int | None = None,
) -> Conditions:
    """The tuple with this condition set: in place if present, else appended; the same tuple if nothing changes."""
    for i, c in enumerate(conditions):
        if c.type != type_:
            continue
        if (c.status == status and c.reason == reason and c.message == message
                and c.observed_generation == observed_generation):
            return conditions
        since = c.last_transition_time if c.status == status else format_time(now)
        new = Condition(type=type_, status=status, reason=reason, message=message,
                        last_transition_time=since, observed_generation=observed_generation)
        return (*conditions[:i], new, *conditions[i + 1:])
    return (*conditions, Condition(type=type_, status=status, reason=reason, message=message,
                                   last_transition_time=format_time(now), observed_generation=observed_generation))


def strip_finalizer(meta: ObjectMeta, finalizer: str) -> ObjectMeta:
    """Metadata without this finalizer; the same object if it was not there."""
    if finalizer not in meta.finalizers:
        return meta
    return replace(meta, finalizers=tuple(f for f in meta.finalizers if f != finalizer))
