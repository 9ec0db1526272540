"""Constraints of API fields, written beside the types they constrain: `Annotated[str, Rule(pattern=...)]`.

From these `twin.model.schema` derives the CRDs, `twin.model.validation` what the API server refuses, and
`twin.model.typed` the quick check of controllers' writes. Decoding ignores them: a reader takes what the server stored,
the server is the one that is strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


@dataclass(frozen=True, slots=True)
class Cel:
    """One entry of `x-kubernetes-validations`. A rule that names `oldSelf` is a transition rule."""

    rule: str
    message: str

    @property
    def transition(self) -> bool:
        """Does it need an old value? The API server skips such a rule when there is none."""
        return "oldSelf" in self.rule


def immutable(what: str = "Value") -> Cel:
    """May be set once from absent and never changed; removal is not seen (provisioning.md 1)."""
    return Cel("self == oldSelf", f"{what} is immutable")


@dataclass(frozen=True, slots=True)
class Rule:
    """What the schema of one field says beyond its type.

    `required` overrides what the Struct says (no default = required). `sent`: upstream's Go type writes the field even
    when it is empty, so a controller's write carries the zero value and the server checks it.
    """

    required: bool | None = None
    sent: bool = False
    default: Any = ABSENT
    enum: tuple[str, ...] = ()
    pattern: str = ""
    format: str = ""
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    min_properties: int | None = None
    max_properties: int | None = None
    preserve_unknown: bool = False
    list_type: str = ""
    map_type: str = ""
    cel: tuple[Cel, ...] = ()

    def schema(self) -> dict[str, Any]:
        """The OpenAPI v3 keywords of this rule, without `required`."""
        out: dict[str, Any] = {}
        for keyword, value in (
            ("enum", list(self.enum) or None), ("pattern", self.pattern or None), ("format", self.format or None),
            ("minimum", self.minimum), ("maximum", self.maximum),
            ("minLength", self.min_length), ("maxLength", self.max_length),
            ("minItems", self.min_items), ("maxItems", self.max_items),
            ("minProperties", self.min_properties), ("maxProperties", self.max_properties),
            ("x-kubernetes-preserve-unknown-fields", self.preserve_unknown or None),
            ("x-kubernetes-list-type", self.list_type or None), ("x-kubernetes-map-type", self.map_type or None),
            ("x-kubernetes-validations", [{"message": c.message, "rule": c.rule} for c in self.cel] or None),
        ):
            if value is not None:
                out[keyword] = value
        if self.default is not ABSENT:
            out["default"] = self.default
        return out


NONE: Final = Rule()
IMMUTABLE: Final = immutable()
ATOMIC_LIST: Final = Rule(list_type="atomic")

QUANTITY: Final = Rule(pattern=(
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
))
"""A resource.Quantity in a CRD: an integer or a string of this form."""

CONDITION: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "message": {"type": "string", "maxLength": 32768},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        "reason": {"type": "string", "minLength": 1, "maxLength": 1024,
                   "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "type": {"type": "string", "maxLength": 316,
                 "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
                            r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
    },
    "required": ["lastTransitionTime", "message", "reason", "status", "type"],
}
"""metav1.Condition as controllers' CRDs carry it. `Condition` itself also serves core kinds, which ask for less."""


Column = tuple[str, str, str]
"""A printer column: heading, JSON path, type."""

READY_COLUMN: Final[Column] = ("Ready", ".status.conditions[?(@.type=='Ready')].status", "string")
REASON_COLUMN: Final[Column] = ("Phase", ".status.conditions[?(@.type=='Ready')].reason", "string")
PHASE_COLUMN: Final[Column] = ("Phase", ".status.phase", "string")
AGE_COLUMN: Final[Column] = ("Age", ".metadata.creationTimestamp", "date")
