"""How Go reads and rewrites JSON of a known type: the errors of its decoder, and what omitempty does on the way back.

An admission webhook of upstream decodes the object into its Go type and answers with it marshalled again, so a value of
the wrong type is refused there, before the schema is looked at, and empty fields come and go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

JSON_NAMES: Final = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Scalar:
    """string, bool or int; `name` is the Go type an error names."""

    type: type
    name: str


@dataclass(frozen=True, slots=True)
class IntOrString:
    """intstr.IntOrString: what is not a string must be an int32."""


@dataclass(frozen=True, slots=True)
class List:
    of: GoType
    name: str


@dataclass(frozen=True, slots=True)
class Map:
    """map[string]string."""


@dataclass(frozen=True, slots=True)
class Field:
    """A struct field. `keep_empty`: no omitempty (or a struct value, where omitempty does nothing).

    `pointer`: omitempty drops it only when it is absent.
    """

    type: GoType
    keep_empty: bool = False
    pointer: bool = False


@dataclass(frozen=True, slots=True)
class Struct:
    """A Go struct: `name` without package, `qualified` with it."""

    name: str
    qualified: str
    fields: dict[str, Field]


GoType = Scalar | IntOrString | List | Map | Struct

STRING: Final = Scalar(str, "string")
UID: Final = Scalar(str, "types.UID")
INT64: Final = Scalar(int, "int64")
BOOL: Final = Scalar(bool, "bool")
MAP: Final = Map()
EMPTY: Final[tuple[Any, ...]] = (None, "", {}, [])


OWNER_REFERENCE: Final = Struct("OwnerReference", "v1.OwnerReference", {
    **{name: Field(STRING, True) for name in ("apiVersion", "kind", "name")}, "uid": Field(UID, True),
    "controller": Field(BOOL, pointer=True), "blockOwnerDeletion": Field(BOOL, pointer=True),
})
OBJECT_META: Final = Struct("ObjectMeta", "v1.ObjectMeta", {
    **{name: Field(STRING) for name in ("name", "generateName", "namespace", "resourceVersion")}, "uid": Field(UID),
    **{name: Field(Scalar(str, "v1.Time")) for name in ("creationTimestamp", "deletionTimestamp")},
    "generation": Field(INT64), "deletionGracePeriodSeconds": Field(INT64), "labels": Field(MAP),
    "annotations": Field(MAP), "finalizers": Field(List(STRING, "[]string")),
    "ownerReferences": Field(List(OWNER_REFERENCE, "[]v1.OwnerReference")),
})


class DecodeError(Exception):
    """encoding/json's UnmarshalTypeError, in its words."""


def _refuse(value: Any, where: str, type_name: str, literal: bool = False) -> DecodeError:
    got = JSON_NAMES[type(value)] + (f" {value}" if literal else "")
    return DecodeError(f"json: cannot unmarshal {got} into Go struct field {where} of type {type_name}")


def roundtrip(go: GoType, value: Any, where: str = "", path: str = "") -> Any:
    """The value as Go marshals it after reading it. Fields are read in name order, as the API server sends them.

    `where` is "Struct.path.of.field" of the field that holds this value.
    Raises: DecodeError at the first value of a wrong type.
    """
    if value is None:  # null leaves Go's zero value
        return _zero(go)
    if isinstance(go, Struct):
        return _struct(go, value, where, path)
    if isinstance(go, Scalar):
        good = isinstance(value, go.type) and (go.type is bool or not isinstance(value, bool))
        if not good:
            raise _refuse(value, where, go.name, literal=go.type is int and isinstance(value, float))
        return value
    if isinstance(go, IntOrString):
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise _refuse(value, where, "int32", literal=isinstance(value, float))
    if isinstance(go, Map):
        if not isinstance(value, dict):
            raise _refuse(value, where, "map[string]string")
        return {key: roundtrip(STRING, value[key], where) for key in sorted(value) if value[key] is not None}
    if not isinstance(value, list):
        raise _refuse(value, where, go.name)
    return [roundtrip(go.of, item, where, path) for item in value]


def _struct(go: Struct, value: Any, where: str, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refuse(value, where, go.qualified)
    out: dict[str, Any] = {}
    for name in sorted(value):
        field = go.fields.get(name)
        if field is None or value[name] is None:
            continue
        inner = f"{path}.{name}" if path else name
        new = roundtrip(field.type, value[name], f"{go.name}.{inner}", inner)
        if field.keep_empty or field.pointer or isinstance(field.type, Struct) or new not in EMPTY:
            out[name] = new
    for name, field in go.fields.items():
        if field.keep_empty and name not in out:
            out[name] = _zero(field.type)
    return out


def _zero(go: GoType) -> Any:
    if isinstance(go, Struct):
        return {name: _zero(f.type) for name, f in go.fields.items() if f.keep_empty}
    if isinstance(go, Scalar):
        return go.type()
    return [] if isinstance(go, List) else {}
