"""Rules of `metadata` that hold for every kind, and the few core rules our controllers can break.

Texts as a kube-apiserver v1.34 prints them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from twin.model import fielderror as fe
from twin.model.core import Node
from twin.model.fielderror import FieldError, Path
from twin.model.gojson import OWNER_REFERENCE
from twin.model.meta import Object

Json = Mapping[str, Any]

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_QUALIFIED: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_VALUE: Final = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")

SUBDOMAIN_TEXT: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_NAME_PART: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
ANNOTATIONS_BYTES: Final = 256 * 1024
_IMMUTABLE: Final = "field is immutable"
TAINT_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@lru_cache(maxsize=65536)
def subdomain_problems(name: str) -> tuple[str, ...]:
    """What keeps this from being a DNS-1123 subdomain: an object's name."""
    out = ["must be no more than 253 characters"] if len(name) > 253 else []
    if not _SUBDOMAIN.match(name):
        out.append(SUBDOMAIN_TEXT)
    return tuple(out)


@lru_cache(maxsize=65536)
def qualified_name_problems(key: str) -> tuple[str, ...]:
    """What keeps this from being `[prefix/]name`: a label, annotation, taint key or finalizer."""
    prefix, slash, name = key.rpartition("/")
    if "/" in prefix:
        return (_NAME_PART.replace("name part", "a qualified name", 1)
                + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",)
    out: list[str] = []
    if slash and not prefix:
        out.append("prefix part must be non-empty")
    elif slash:
        out += [f"prefix part {text}" for text in subdomain_problems(prefix)]
    if not name:
        out.append("name part must be non-empty")
    elif len(name) > 63:
        out.append("name part must be no more than 63 characters")
    if not _QUALIFIED.match(name):
        out.append(_NAME_PART)
    return tuple(out)


@lru_cache(maxsize=65536)
def label_value_problems(value: str) -> tuple[str, ...]:
    """What keeps this from being a label value."""
    out = ["must be no more than 63 characters"] if len(value) > 63 else []
    if not _VALUE.match(value):
        out.append(_LABEL_VALUE)
    return tuple(out)


def label_errors(labels: Mapping[str, Any]) -> list[FieldError]:
    for key, value in labels.items():
        if qualified_name_problems(key) or label_value_problems(value):
            break
    else:
        return []
    path: Path = ("metadata", "labels")
    out: list[FieldError] = []
    for key in sorted(labels):
        out += [FieldError(fe.INVALID, path, key, text) for text in qualified_name_problems(key)]
        value = labels[key]
        out += [FieldError(fe.INVALID, path, value, text) for text in label_value_problems(value)]
    return out


def annotation_errors(annotations: Mapping[str, Any]) -> list[FieldError]:
    path: Path = ("metadata", "annotations")
    out: list[FieldError] = []
    for key in sorted(annotations):
        out += [FieldError(fe.INVALID, path, key, text) for text in qualified_name_problems(key.lower())]
    if sum(len(k) + len(v) for k, v in annotations.items()) > ANNOTATIONS_BYTES:
        out.append(FieldError(fe.TOO_LONG, path, "", f"may not be more than {ANNOTATIONS_BYTES} bytes"))
    return out


def metadata_errors(kind: type[Object], obj: Json, old: Json | None) -> list[FieldError]:
    """What the server has against this metadata, in its order."""
    meta: Json = obj.get("metadata") or {}
    out = _name_errors(kind, meta.get("name", ""), meta.get("generateName", ""), meta.get("namespace"))
    out += label_errors(meta.get("labels") or {})
    out += annotation_errors(meta.get("annotations") or {})
    out += _owner_errors(meta.get("ownerReferences") or [])
    finalizers = meta.get("finalizers") or []
    if "orphan" in finalizers and "foregroundDeletion" in finalizers:
        out.append(FieldError(fe.INVALID, ("metadata", "finalizers"), finalizers,
                              "finalizer orphan and foregroundDeletion cannot be both set"))
    for name in finalizers:
        out += [FieldError(fe.INVALID, ("metadata", "finalizers"), name, t) for t in qualified_name_problems(name)]
    if old is not None:
        out += _update_errors(meta, old.get("metadata") or {})
    return out


def _name_errors(kind: type[Object], name: str, prefix: str, namespace: str | None) -> list[FieldError]:
    out: list[FieldError] = []
    if prefix:
        masked = prefix[:-1] + "a" if prefix.endswith("-") else prefix  # a name may follow the dash
        out += [FieldError(fe.INVALID, ("metadata", "generateName"), prefix, t) for t in subdomain_problems(masked)]
        if not name:
            return out
    if not name:
        return [FieldError(fe.REQUIRED, ("metadata", "name"), None, "name or generateName is required")]
    if problems := subdomain_problems(name):
        out += [FieldError(fe.INVALID, ("metadata", "name"), name, text) for text in problems]
    if kind.NAMESPACED and not namespace:
        out.append(FieldError(fe.REQUIRED, ("metadata", "namespace"), None, ""))
    return out


def _owner_errors(owners: list[Json]) -> list[FieldError]:
    path: Path = ("metadata", "ownerReferences")
    out: list[FieldError] = []
    controller = ""
    for owner in owners:
        version = owner.get("apiVersion", "")
        if not version.rpartition("/")[2] or version.count("/") > 1:
            out.append(FieldError(fe.INVALID, (*path, "apiVersion"), version, "version must not be empty"))
        out += [FieldError(fe.INVALID, (*path, field), "", "must not be empty")
                for field in ("kind", "name", "uid") if not owner.get(field)]
        if version == "v1" and owner.get("kind") == "Event":
            out.append(FieldError(fe.INVALID, path, _in_go_order(owner),
                                  "/v1, Kind=Event is disallowed from being an owner"))
        if owner.get("controller"):
            this = f'{owner.get("kind")}/{owner.get("name")}'
            if controller:
                out.append(FieldError(fe.INVALID, path, [_in_go_order(o) for o in owners],
                                      "Only one reference can have Controller set to true. "
                                      f'Found "true" in references for {controller} and {this}'))
            controller = this
    return out


def _in_go_order(owner: Json) -> Json:
    return {name: owner[name] for name in OWNER_REFERENCE.fields if name in owner}


def _update_errors(meta: Json, old: Json) -> list[FieldError]:
    out = [FieldError(fe.INVALID, ("metadata", field), meta.get(field, ""), _IMMUTABLE)
           for field in ("name", "namespace", "uid") if meta.get(field) and meta.get(field) != old.get(field)]
    out += new_finalizer_errors(meta.get("finalizers") or (), old.get("finalizers") or (),
                                bool(old.get("deletionTimestamp")))
    return out


def new_finalizer_errors(new: Any, old: Any, deleting: bool) -> list[FieldError]:
    """An object that is being deleted takes no new finalizers."""
    added = [name for name in new if name not in old] if deleting else []
    if not added:
        return []
    listed = ", ".join(f'"{name}"' for name in sorted(added))
    return [FieldError(fe.FORBIDDEN, ("metadata", "finalizers"), added,
                       "no new finalizers can be added if the object is being deleted, "
                       f"found new finalizers []string{{{listed}}}")]


def core_errors(kind: type[Object], obj: Json) -> list[FieldError]:
    """Rules of core kinds that a node effect can break: a Node's taints (provisioning.md 1.8, case c10)."""
    if kind is not Node:
        return []
    out: list[FieldError] = []
    for i, taint in enumerate((obj.get("spec") or {}).get("taints") or []):
        path: Path = ("metadata", "taints", i)
        key, effect = taint.get("key", ""), taint.get("effect", "")
        out += [FieldError(fe.INVALID, (*path, "key"), key, text) for text in qualified_name_problems(key)]
        out += [FieldError(fe.INVALID, (*path, "value"), taint.get("value", ""), text)
                for text in label_value_problems(taint.get("value", ""))]
        if not effect:
            out.append(FieldError(fe.REQUIRED, (*path, "effect"), None, ""))
        elif effect not in TAINT_EFFECTS:
            out.append(fe.unsupported((*path, "effect"), effect, TAINT_EFFECTS))
    return out


# --- the same for typed objects


def typed_metadata_errors(kind: type[Object], new: Object, old: Object | None) -> list[FieldError]:
    """As `metadata_errors`, but only for what is not identical to the old metadata."""
    meta, before = new.metadata, None if old is None else old.metadata
    if meta is before:
        return []
    out: list[FieldError] = []
    if before is None:
        out = _name_errors(kind, meta.name, meta.generate_name, meta.namespace)
    if meta.labels and (before is None or meta.labels is not before.labels):
        out += label_errors(meta.labels)
    if meta.annotations and (before is None or meta.annotations is not before.annotations):
        out += annotation_errors(meta.annotations)
    if before is not None and before.deletion_timestamp and meta.finalizers is not before.finalizers:
        out += new_finalizer_errors(meta.finalizers, before.finalizers, True)
    return out


def core_object_errors(new: Object, old: Object | None) -> list[FieldError]:
    """As `core_errors`, but only for what is not identical to the old object."""
    if not isinstance(new, Node) or not new.spec.taints:
        return []
    if isinstance(old, Node) and new.spec.taints is old.spec.taints:
        return []
    return core_errors(Node, {"spec": {"taints": msgspec.to_builtins(new.spec.taints)}})
