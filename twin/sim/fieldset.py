"""Sets of fields, as server-side apply thinks of objects: which paths a manifest has, how two differ, how one is merged
into another.

A path is a tuple of the elements of fieldsV1: `f:name`, `k:{"type":"Ready"}` (an item of a keyed list), `v:"x"` (an
item of a set). Lists are atomic unless the schema says otherwise, maps are not. Seen at kube-apiserver v1.34.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twin.model.schema import has_crd, structural
from twin.sim.status import Resource

Path = tuple[str, ...]
Paths = set[Path]
Json = dict[str, Any]

_CORE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "conditions": ("type",), "addresses": ("type",), "containers": ("name",), "initContainers": ("name",),
    "ephemeralContainers": ("name",), "volumes": ("name",), "env": ("name",), "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",), "volumeDevices": ("devicePath",), "hostAliases": ("ip",), "podIPs": ("ip",),
    "hostIPs": ("ip",), "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",), "schedulingGates": ("name",), "secrets": ("name",),
}
"""Keyed lists of the core kinds, by the name of their field."""
_CORE_ATOMIC: Final = frozenset({
    "selector", "nodeSelector", "labelSelector", "namespaceSelector", "involvedObject", "related", "secretKeyRef",
    "configMapKeyRef", "fieldRef", "resourceFieldRef", "secretRef", "configMapRef", "targetRef"})
_PORT_KEYS: Final = (("containerPort", "protocol"), ("port", "protocol"))
_METADATA: Final[Json] = {"properties": {
    "ownerReferences": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"],
                        "items": {"x-kubernetes-map-type": "atomic"}},
    "finalizers": {"x-kubernetes-list-type": "set"},
    **{name: {} for name in (
        "name", "generateName", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp",
        "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "managedFields", "selfLink")},
}}


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of the type at a path: its schema, and for core kinds the name of its field."""

    schema: Mapping[str, Any]
    core: bool = False
    name: str = ""
    status: bool = False
    """At the root: status is a subresource of its own."""

    def field(self, name: str) -> tuple[Shape, bool]:
        """The shape below this name, and whether the type declares the field (a key of a map is not declared)."""
        declared = self.schema.get("properties", {})
        if name in declared:
            return Shape(declared[name], self.core, name), True
        extra = self.schema.get("additionalProperties")
        return Shape(extra if isinstance(extra, Mapping) else {}, self.core, name), False

    def items(self) -> Shape:
        return Shape(self.schema.get("items", {}), self.core)

    def element(self, item: Any) -> str | None:
        """The path element of a list's item; None: the list is atomic."""
        kind = self.schema.get("x-kubernetes-list-type")
        if kind == "set":
            return f"v:{_compact(item)}"
        keys: Iterable[str] = self.schema.get("x-kubernetes-list-map-keys", ()) if kind == "map" else ()
        if not keys and kind is None and self.core and isinstance(item, Mapping):
            keys = _CORE_KEYS.get(self.name, ())
            if self.name == "ports":
                keys = next((k for k in _PORT_KEYS if k[0] in item), ())
        if not keys or not isinstance(item, Mapping):
            return None
        default = {"protocol": "TCP"} if self.core else {}
        return "k:" + _compact({k: item.get(k, default.get(k)) for k in sorted(keys)})

    def granular_list(self, *lists: Any) -> bool:
        """Are these lists looked into? Lists whose items repeat a key are not."""
        for values in lists:
            elements = [self.element(item) for item in values]
            if None in elements or len({*elements}) < len(elements):
                return False
        return True

    def atomic_map(self) -> bool:
        return self.schema.get("x-kubernetes-map-type") == "atomic" or (self.core and self.name in _CORE_ATOMIC)


def shape_of(resource: Resource) -> Shape:
    """The shape of a whole object of this kind."""
    if isinstance(resource, str):
        return Shape({"properties": {"metadata": _METADATA}})
    schema = structural(resource)
    return Shape({**schema, "properties": {**schema.get("properties", {}), "metadata": _METADATA}},
                 core=not has_crd(resource), status=resource.HAS_STATUS)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- reading


def paths_of(value: Any, shape: Shape, path: Path = ()) -> Paths:
    """Everything an applied manifest owns: its leaves, keys of maps and items of lists."""
    out: Paths = set()
    if isinstance(value, Mapping) and value and not shape.atomic_map():
        for name, part in value.items():
            inner, declared = shape.field(name)
            out |= paths_of(part, inner, (*path, f"f:{name}"))
            if not declared:
                out.add((*path, f"f:{name}"))
    elif isinstance(value, list) and value and shape.granular_list(value):
        for item in value:
            here = (*path, str(shape.element(item)))
            out |= {here} | paths_of(item, shape.items(), here)
    else:
        out.add(path)
    return out


@dataclass
class Difference:
    """Paths that an object gained, lost, or whose value changed."""

    added: Paths = field(default_factory=set)
    removed: Paths = field(default_factory=set)
    modified: Paths = field(default_factory=set)


ABSENT: Final = object()


def compare(old: Any, new: Any, shape: Shape) -> Difference:
    out = Difference()
    _compare(old, new, shape, (), out)
    return out


def _compare(old: Any, new: Any, shape: Shape, path: Path, out: Difference) -> None:
    if isinstance(old, Mapping | list) and new is None:  # emptied: not the same as removed
        new = type(old)()
    there = [v for v in (old, new) if v is not ABSENT]
    parts = _parts(there, shape)
    if old is ABSENT:
        out.added.add(path)
    elif new is ABSENT:
        out.removed.add(path)
    elif parts is None and old != new:
        out.modified.add(path)
    if parts is None:
        return
    before, after = ({} if v is ABSENT else _children(v, shape) for v in (old, new))
    for element, inner in parts.items():
        _compare(before.get(element, ABSENT), after.get(element, ABSENT), inner, (*path, element), out)


def _parts(values: list[Any], shape: Shape) -> dict[str, Shape] | None:
    """The elements below these values (of one place) and their shapes; None: it is a leaf."""
    if not any(values):
        return None
    if all(isinstance(v, Mapping) for v in values) and not shape.atomic_map():
        return {f"f:{name}": shape.field(name)[0] for v in values for name in v}
    if all(isinstance(v, list) for v in values) and shape.granular_list(*values):
        inner = shape.items()
        return {str(shape.element(item)): inner for v in values for item in v}
    return None


def _children(value: Any, shape: Shape) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"f:{name}": part for name, part in value.items()}
    return {str(shape.element(item)): item for item in value}


# --- writing


def merge(live: Any, config: Any, shape: Shape) -> Any:
    """The live value with everything that the configuration says."""
    if isinstance(live, Mapping) and isinstance(config, Mapping) and not shape.atomic_map():
        out = dict(live)
        for name, part in config.items():
            out[name] = merge(live[name], part, shape.field(name)[0]) if name in live else part
        return out
    if isinstance(live, list) and isinstance(config, list) and (live or config) and shape.granular_list(live, config):
        return _merge_lists(live, config, shape)
    return config


def _merge_lists(live: list[Any], config: list[Any], shape: Shape) -> list[Any]:
    """Items of the configuration in its order; what only the live list has stays before the item it stood before."""
    stored = {shape.element(item): item for item in live}
    wanted = {shape.element(item): item for item in config}
    shared = [e for e in wanted if e in stored]
    pending = list(wanted)
    out: list[Any] = []

    def take(element: str | None) -> None:
        item = wanted[element]
        out.append(merge(stored[element], item, shape.items()) if element in stored else item)

    for element in stored:
        if element not in wanted:
            out.append(stored[element])
        elif shared and element == shared[0]:
            while pending and (now := pending.pop(0)):
                take(now)
                if now == element:
                    break
            shared.pop(0)
    for element in pending:
        take(element)
    return out


def without(value: Any, doomed: Collection[Path], shape: Shape) -> Any:
    """The value without what is at these paths, and below them. What loses its last part becomes null, as upstream."""
    if not doomed:
        return value
    return _left(value, doomed, shape) or None


def _left(value: Any, doomed: Collection[Path], shape: Shape) -> Any:
    below: dict[str, list[Path]] = {}
    for path in doomed:
        below.setdefault(path[0], []).append(path[1:])
    if isinstance(value, Mapping):
        return {name: without(part, below.get(f"f:{name}", ()), shape.field(name)[0]) for name, part in value.items()
                if () not in below.get(f"f:{name}", ())}
    if isinstance(value, list) and shape.granular_list(value):
        elements = [(str(shape.element(item)), item) for item in value]
        return [without(item, below.get(e, ()), shape.items()) for e, item in elements if () not in below.get(e, ())]
    return value


def with_parents(paths: Paths, shape: Shape) -> Paths:
    """Together with the declared fields that hold them: who owns `spec.x` alone owns `spec` too."""
    out = set(paths)
    for path in paths:
        here = shape
        for n, element in enumerate(path):
            if element.startswith("f:"):
                here, declared = here.field(element[2:])
                if declared:
                    out.add(path[:n + 1])
            else:
                here = here.items()
    return out


# --- fieldsV1


def to_fields(paths: Iterable[Path]) -> Json:
    """The fieldsV1 of a set of paths."""
    tree: Json = {}
    ordered = sorted(paths)
    for path in ordered:
        here = tree
        for element in path:
            here = here.setdefault(element, {})
    for path in ordered:
        here = tree
        for element in path:
            here = here[element]
        if here and path:
            here["."] = {}
    return _sorted(tree)


def _sorted(tree: Json) -> Json:
    return {name: _sorted(tree[name]) for name in sorted(tree)}


def from_fields(tree: Mapping[str, Any], path: Path = ()) -> Paths:
    """The set of paths that a fieldsV1 says."""
    out: Paths = set()
    for element, below in tree.items():
        here = path if element == "." else (*path, element)
        if not below:
            out.add(here)
        else:
            out |= from_fields(below, here)
    return out


def path_text(path: Path) -> str:
    """As conflicts show it: `.spec.containers[name="c"].image`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            text += "[" + ",".join(f"{k}={_compact(v)}" for k, v in json.loads(rest).items()) + "]"
        else:
            text += f"[={rest}]"
    return text
