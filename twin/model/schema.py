"""Structural schemas and CustomResourceDefinitions, derived from the Structs and the rules beside them.

A structural schema here is the OpenAPI v3 of a CRD: inlined, no references, keys as Kubernetes spells them.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from twin.model.meta import Condition, Object, Part
from twin.model.rules import CONDITION, NONE, Rule

Schema = dict[str, Any]

_SCALARS: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _merge(outer: Rule, inner: Rule) -> Rule:
    """The field's rule over the type's own: both hold, CEL rules add up."""
    if outer is NONE:
        return inner
    if inner is NONE:
        return outer
    changes = {name: getattr(outer, name) for name in Rule.__slots__
               if name != "cel" and getattr(outer, name) != getattr(NONE, name)}
    return replace(inner, cel=(*inner.cel, *outer.cel), **changes)


def unwrap(annotation: Any) -> tuple[Any, Rule]:
    """The bare type (without Optional and Annotated) and the rules found on the way."""
    rule = NONE
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            for note in notes:
                if isinstance(note, Rule):
                    rule = _merge(rule, note)
            continue
        if get_origin(annotation) in (Union, types.UnionType):
            members = [m for m in get_args(annotation) if m is not type(None)]
            if len(members) == 1:
                annotation = members[0]
                continue
        if isinstance(annotation, type) and issubclass(annotation, Part):
            rule = _merge(rule, getattr(annotation, "RULE", NONE))
        return annotation, rule


def _element(annotation: Any) -> Schema:
    bare, rule = unwrap(annotation)
    out = _bare(bare)
    out.update(rule.schema())
    return out


def _bare(bare: Any) -> Schema:
    if bare is Condition:
        copy: Schema = msgspec.json.decode(msgspec.json.encode(CONDITION))
        return copy
    if bare in _SCALARS:
        return {"type": _SCALARS[bare]}
    origin = get_origin(bare)
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    if origin is tuple:
        return {"type": "array", "items": _element(get_args(bare)[0])}
    if origin in (dict, Mapping):
        values = get_args(bare)[1]
        return {"type": "object"} if values is Any else {"type": "object", "additionalProperties": _element(values)}
    if isinstance(bare, type) and issubclass(bare, Part):
        return _object(bare)
    raise TypeError(f"no schema for {bare!r}")


def _object(cls: type[Part]) -> Schema:
    properties, required = _fields(cls)
    out: Schema = {"type": "object"}
    if properties:
        out["properties"] = properties
    if required:
        out["required"] = required
    return out


def _fields(cls: type[msgspec.Struct]) -> tuple[dict[str, Schema], list[str]]:
    properties: dict[str, Schema] = {}
    required: list[str] = []
    root = issubclass(cls, Object)  # whose metadata is the server's own business; a template's is not
    for name, (schema, needed) in sorted({
        f.encode_name: (_element(f.type), is_required(f)) for f in msgspec.structs.fields(cls)
        if not (root and f.name == "metadata")
    }.items()):
        properties[name] = schema
        if needed:
            required.append(name)
    return properties, required


def is_required(f: msgspec.structs.FieldInfo) -> bool:
    """Does the schema demand this field? The rule's word first, else whether the Struct has no default for it."""
    rule = unwrap(f.type)[1]
    return f.required if rule.required is None else rule.required


@cache
def structural(kind: type[Object]) -> Schema:
    """The `openAPIV3Schema` of this kind. Shared: do not change it."""
    properties, required = _fields(kind)
    for name in ("apiVersion", "kind"):
        properties[name] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    out: Schema = {"type": "object", "properties": dict(sorted(properties.items()))}
    if required:
        out["required"] = required
    return out


@cache
def has_crd(kind: type[Object]) -> bool:
    """Is this one of the custom resources whose CRD DPF installs?"""
    return kind.GROUP.endswith(".dpu.nvidia.com")


def crd(kind: type[Object]) -> dict[str, Any]:
    """The whole CustomResourceDefinition, ready for `kubectl apply`."""
    version: dict[str, Any] = {
        "name": kind.VERSION, "served": True, "storage": True, "schema": {"openAPIV3Schema": structural(kind)},
    }
    columns = [_column(*c) for c in getattr(kind, "COLUMNS", ())]
    if columns:
        version["additionalPrinterColumns"] = columns
    if kind.HAS_STATUS:
        version["subresources"] = {"status": {}}
    singular = kind.KIND.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"annotations": {"helm.sh/resource-policy": "keep"}, "name": f"{kind.PLURAL}.{kind.GROUP}"},
        "spec": {
            "group": kind.GROUP,
            "names": {"kind": kind.KIND, "listKind": f"{kind.KIND}List", "plural": kind.PLURAL, "singular": singular},
            "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
            "versions": [version],
        },
    }


def _column(name: str, path: str, type_: str = "string") -> dict[str, str]:
    return {"jsonPath": path, "name": name, "type": type_}
