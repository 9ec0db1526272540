"""Field errors in the words of `k8s.io/apimachinery/.../field`, as a kube-apiserver v1.34 prints them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

Path = tuple["str | int | Key", ...]


class Key(NamedTuple):
    """A map key in a path that is written `[key]` (CEL errors) instead of `.key` (schema errors)."""

    key: str


class FieldError(NamedTuple):
    """One mistake. `kind` is the field error type; `detail` the rule in words; `value` what was found."""

    kind: str
    path: Path
    value: Any
    detail: str

    def __str__(self) -> str:
        return f"{path_text(self.path)}: {self.body}"

    @property
    def body(self) -> str:
        if self.kind == REQUIRED:
            return "Required value" + (f": {self.detail}" if self.detail else "")
        if self.kind in (TOO_LONG, FORBIDDEN):
            return f"{self.kind}: {self.detail}"
        label = INVALID if self.kind in (TYPE_INVALID, RULE) else self.kind
        return f"{label}: {value_text(self.value)}: {self.detail}"


REQUIRED: Final = "Required value"
INVALID: Final = "Invalid value"
TYPE_INVALID: Final = "TypeInvalid"  # prints as "Invalid value", but keeps CEL rules from being evaluated
RULE: Final = "Rule"  # a CEL rule that does not hold; prints as "Invalid value"
UNSUPPORTED: Final = "Unsupported value"
TOO_LONG: Final = "Too long"
TOO_MANY: Final = "Too many"
FORBIDDEN: Final = "Forbidden"

_BLOCKING: Final = (REQUIRED, UNSUPPORTED, TOO_LONG, TOO_MANY, TYPE_INVALID)
UNCHECKED: Final = FieldError(
    INVALID, (), None,
    "some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
)


def blocks_rules(errors: Iterable[FieldError]) -> bool:
    """Is one of these an error after which the API server does not evaluate CEL rules?"""
    return any(e.kind in _BLOCKING for e in errors)


def path_text(path: Path) -> str:
    """`spec.configFiles[0].operation`; the empty path prints as Go's nil."""
    out = ""
    for step in path:
        if isinstance(step, int):
            out += f"[{step}]"
        elif isinstance(step, Key):
            out += f"[{step.key}]"
        else:
            out += f".{step}" if out else step
    return out or "<nil>"


def value_text(value: Any) -> str:
    """A value as the API server prints it: strings quoted, objects as JSON, a whole float without its fraction."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def unsupported(path: Path, value: Any, allowed: Sequence[str]) -> FieldError:
    return FieldError(UNSUPPORTED, path, value, "supported values: " + ", ".join(value_text(a) for a in allowed))


def aggregate(errors: Sequence[FieldError]) -> str:
    """The list in one line: without brackets if there is one, each text once."""
    texts = list(dict.fromkeys(str(e) for e in errors))
    return texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"


CAUSES: Final = {
    REQUIRED: "FieldValueRequired", INVALID: "FieldValueInvalid", RULE: "FieldValueInvalid",
    TYPE_INVALID: "FieldValueTypeInvalid",
    UNSUPPORTED: "FieldValueNotSupported", TOO_LONG: "FieldValueTooLong", TOO_MANY: "FieldValueTooMany",
    FORBIDDEN: "FieldValueForbidden",
}
"""The `reason` of a Status cause for each kind of field error."""
