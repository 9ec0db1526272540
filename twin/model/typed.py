"""The quick check of typed writes: what the schema still can refuse when the types are right, on what changed only.

A run makes a million of these, so per class only the fields that can be wrong are kept, and identity ends the walk.
Go's typed clients send required fields even when they are empty; so does this (`Rule.sent`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from operator import attrgetter
from typing import Any, Final, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo, fields, replace

from twin.model import fielderror as fe
from twin.model.cel import broken, is_equality
from twin.model.fielderror import FieldError, Path
from twin.model.meta import Condition, Object, Part
from twin.model.rules import ABSENT, CONDITION, NONE, Cel, Rule
from twin.model.schema import has_crd, is_required, unwrap
from twin.model.validation import Check, checks_of

T = TypeVar("T", bound=Object)
Deep = Callable[[Any, Any, Path, list[FieldError]], None]
"""(value, old value or ABSENT, path, errors): look into a value."""


class FieldCheck:
    """What can be wrong with one attribute. `sent`: an empty value is checked too, as `zero`.

    `by_value`: a struct that is no pointer in Go. It is always sent; it is absent in the store only while it is the
    very default of the class, which decoding leaves where the field was missing.
    """

    __slots__ = ("attr", "births", "by_value", "checks", "deep", "empty", "held", "itself", "name", "sent",
                 "transitions", "type", "zero")

    def __init__(self, f: FieldInfo, bare: Any, rule: Rule, deep: Deep | None) -> None:
        self.attr, self.name = f.name, f.encode_name
        self.checks: tuple[Check, ...] = checks_of(rule.schema())
        self.transitions: tuple[Cel, ...] = tuple(r for r in rule.cel if r.transition)
        self.births: tuple[Cel, ...] = tuple(r for r in rule.cel if not r.transition)
        self.held: Any = ABSENT  # the last value for which `births` held: a fleet's objects are made of few templates
        self.itself = bool(self.checks or rule.cel)  # is there more than what is inside?
        self.deep = deep
        self.by_value = isinstance(f.default, Part)
        self.sent = rule.sent or self.by_value or is_required(f)
        self.empty: Any = None if f.default is msgspec.NODEFAULT else f.default
        self.type = {str: "string", int: "integer", bool: "boolean"}.get(bare, "object")
        is_part = isinstance(bare, type) and issubclass(bare, Part)
        self.zero: Any = bare() if is_part and self.sent and f.default is None else self.empty

    def absent(self, value: Any) -> bool:
        """Would the store hold no such field?"""
        return value is None or value is self.empty or (not self.by_value and bool(value == self.empty))

    def look(self, value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
        """Check this changed value."""
        if value is None or value is self.empty or (not self.by_value and value == self.empty):
            if not self.sent:
                return
            value = self.zero
        where = (*path, self.name)
        if self.itself:
            self._look_at_itself(value, old, where, errors)
        if self.deep is not None:
            self.deep(value, old, where, errors)

    def _look_at_itself(self, value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
        for check in self.checks:
            if error := check(value, path):
                errors.append(error)
        if self.births and value is not self.held and value != self.held:
            before = len(errors)
            self._hold(self.births, value, None, path, errors)
            if len(errors) == before:
                self.held = value
        if self.transitions and not self.absent(old):
            self._hold(self.transitions, value, old, path, errors)

    def _hold(self, rules: tuple[Cel, ...], value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
        for rule in rules:
            if is_equality(rule.rule):
                text = "" if value == old else rule.message
            else:
                text = broken(rule, _builtins(value), _builtins(old))
            if text:
                errors.append(FieldError(fe.RULE, path, self.type, text))


def _builtins(value: Any) -> Any:
    """Plain JSON: CEL knows lists, not tuples."""
    return msgspec.json.decode(msgspec.json.encode(value)) if isinstance(value, Part | tuple) else value


@cache
def part_checks(cls: type[Part] | type[Object]) -> tuple[FieldCheck, ...]:
    """The attributes of this class that a typed write can get wrong."""
    out = []
    for f in fields(cls):
        if f.name == "metadata":
            continue
        bare, rule = unwrap(f.type)
        check = FieldCheck(f, bare, rule, _deep(bare))
        if check.itself or check.deep:
            out.append(check)
    return tuple(out)


def _deep(bare: Any) -> Deep | None:
    if isinstance(bare, type) and issubclass(bare, Part):
        inner = part_checks(bare)
        return _into_part(inner) if inner else None
    if get_origin(bare) in (tuple, Mapping):
        element, rule = unwrap(get_args(bare)[0 if get_origin(bare) is tuple else 1])
        if element is Any:
            return None
        if element is Condition and get_origin(bare) is tuple:
            return _look_at_conditions
        return _into_elements(checks_of(rule.schema()), rule.cel, _deep(element))
    return None


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """The values of these attributes, in one go."""
    if len(names) == 1:
        only = attrgetter(names[0])
        return lambda value: (only(value),)
    return attrgetter(*names)


def _into_part(inner: tuple[FieldCheck, ...]) -> Deep:
    values = _getter([f.attr for f in inner])

    def deep(value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
        if old is ABSENT or old is None:
            for f, new_value in zip(inner, values(value), strict=True):
                if new_value is not f.empty or f.sent:
                    f.look(new_value, None, path, errors)
            return
        for f, new_value, old_value in zip(inner, values(value), values(old), strict=True):
            if new_value is not old_value and new_value != old_value:
                f.look(new_value, old_value, path, errors)

    return deep


def _into_elements(checks: tuple[Check, ...], rules: tuple[Cel, ...], inner: Deep | None) -> Deep | None:
    """Elements have no old value here; those that stood at their place before are not looked at again."""
    if not checks and not rules and inner is None:
        return None
    once = tuple(r for r in rules if not r.transition)

    def one(value: Any, path: Path, errors: list[FieldError]) -> None:
        for check in checks:
            if error := check(value, path):
                errors.append(error)
        for rule in once:
            if text := broken(rule, _builtins(value), None):
                errors.append(FieldError(fe.RULE, path, "object", text))
        if inner is not None:
            inner(value, ABSENT, path, errors)

    def deep(value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
        if isinstance(value, tuple):
            before = old if isinstance(old, tuple) else ()
            known = len(before)
            for i, item in enumerate(value):
                if i >= known or item is not before[i]:
                    one(item, (*path, i), errors)
        else:
            for key in sorted(value):
                one(value[key], (*path, key), errors)

    return deep


# --- conditions: written more often than anything else

_CONDITION_CHECKS: Final = {name: checks_of(sub) for name, sub in CONDITION["properties"].items()}
_STATUSES: Final = frozenset(CONDITION["properties"]["status"]["enum"])
_good: Final[dict[tuple[str, str], bool]] = {}


def _look_at_conditions(value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
    before = old[:len(value)] if isinstance(old, tuple) else ()
    for c, was in zip_longest(value, before):
        if c is not was and not ((c.type, c.reason) in _good and c.status in _STATUSES and c.last_transition_time
                                 and len(c.message) <= 32768):
            break
    else:
        return
    for i, (c, was) in enumerate(zip_longest(value, before)):
        if c is not was:
            _look_at_condition(c, (*path, i), errors)


def _look_at_condition(c: Any, path: Path, errors: list[FieldError]) -> None:
    found = [error for name, value in (("message", c.message), ("reason", c.reason), ("status", c.status),
                                       ("type", c.type))
             for check in _CONDITION_CHECKS[name] if (error := check(value, (*path, name)))]
    if not c.last_transition_time:  # Go's zero time is written as null
        where = (*path, "lastTransitionTime")
        found.append(FieldError(fe.TYPE_INVALID, where, "null",
                                f'{fe.path_text(where)} in body must be of type string: "null"'))
    if not found:
        _good[c.type, c.reason] = True
    errors.extend(found)


# --- whole objects


@cache
def _halves(kind: type[Object]) -> tuple[FieldCheck | None, tuple[FieldCheck, ...]]:
    """The checks of the status and of everything else; only DPF's own kinds have any."""
    checks = part_checks(kind) if has_crd(kind) else ()
    return next((f for f in checks if f.name == "status"), None), tuple(f for f in checks if f.name != "status")


def status_errors(kind: type[Object], status: Any, old: Any) -> list[FieldError]:
    """What the server has against writing this status over the old one."""
    errors: list[FieldError] = []
    f = _halves(kind)[0]
    if f is not None and status is not old:
        f.look(status, old, (), errors)
    return errors


def body_errors(kind: type[Object], new: Object, old: Object | None) -> list[FieldError]:
    """What the server has against everything but metadata and status."""
    errors: list[FieldError] = []
    for f in _halves(kind)[1]:
        value = getattr(new, f.attr)
        before = None if old is None else getattr(old, f.attr)
        if old is not None and value is before and not (value is None and f.sent):
            continue  # unchanged, unless it is absent in the store and empty in what Go sends
        f.look(value, before, (), errors)
    return errors


# --- defaults


@cache
def _defaults(cls: type[Part] | type[Object]) -> tuple[tuple[str, Any, Any, bool], ...]:
    """(attribute, empty value, default or ABSENT, look inside)."""
    out = []
    for f in fields(cls):
        if f.name == "metadata":
            continue
        bare, rule = unwrap(f.type)
        is_part = isinstance(bare, type) and issubclass(bare, Part) and bare is not Condition
        below = is_part and bool(_defaults(cast(Any, bare)))
        if rule is not NONE and rule.default is not ABSENT:
            empty = None if f.default is msgspec.NODEFAULT else f.default
            out.append((f.name, empty, msgspec.convert(rule.default, bare), below))
        elif below:
            out.append((f.name, ABSENT, ABSENT, True))
    return tuple(out)


@cache
def _status_defaults(kind: type[Object]) -> tuple[tuple[str, Any, Any, bool], ...]:
    return tuple(row for row in _defaults(kind) if row[0] == "status")


def with_defaults(value: Any) -> Any:
    """The same object or part with the schema's defaults where an attribute is empty; itself if nothing is missing."""
    cls: Any = type(value)
    rows = _defaults(cls)
    return _filled(value, rows) if rows else value


def with_default_status(obj: T) -> T:
    """As `with_defaults`, of the status only."""
    cls: Any = type(obj)
    rows = _status_defaults(cls)
    return cast(T, _filled(obj, rows)) if rows else obj


def _filled(value: Any, rows: tuple[tuple[str, Any, Any, bool], ...]) -> Any:
    changes = {}
    for attr, empty, default, below in rows:
        current = getattr(value, attr)
        new = current
        if default is not ABSENT and (current is None or current == empty):
            new = default
        if below and new is not None:
            new = with_defaults(new)
        if new is not current:
            changes[attr] = new
    return replace(value, **changes) if changes else value


# --- what Go would send

_CONDITION_SENT: Final = ("message", "reason")
_ZEROS: Final[dict[Any, Any]] = {str: "", int: 0, bool: False, float: 0}


@cache
def _sent(cls: type[Part] | type[Object]) -> tuple[tuple[str, Any, bool, Any], ...]:
    """(field, what an absent one is sent as or ABSENT, is it required, the class inside) of each field that matters."""
    out = []
    for f in fields(cls):
        if f.name == "metadata":
            continue
        bare, rule = unwrap(f.type)
        inner = bare
        if get_origin(bare) is tuple or get_origin(bare) is Mapping:
            inner = unwrap(get_args(bare)[0 if get_origin(bare) is tuple else 1])[0]
        part = inner if isinstance(inner, type) and issubclass(inner, Part) else None
        zero: Any = ABSENT
        if rule.sent or is_required(f) or isinstance(f.default, Part):
            default = None if f.default is msgspec.NODEFAULT else f.default
            zero = _zero(bare) if default is None else _builtins(default)
        if zero is not ABSENT or part is not None:
            out.append((f.encode_name, zero, is_required(f), part))
    return tuple(out)


def _zero(bare: Any) -> Any:
    return [] if get_origin(bare) is tuple else _ZEROS.get(bare, {})


def as_sent(cls: Any, manifest: dict[str, Any], *, stored: bool = False) -> dict[str, Any]:
    """The manifest of one of our objects with the empty fields that a Go client writes out, in place.

    Our encoder leaves out what is empty; upstream's types write a required field even then (a condition's message, the
    url of a BFB without spec), and the API server checks it. With `stored` only fields that the schema requires are put
    back: what the store must hold, whoever wrote it.
    """
    if cls is Condition:
        for name in _CONDITION_SENT:
            manifest.setdefault(name, "")
        return manifest
    for name, zero, required, part in _sent(cls):
        if name not in manifest:
            if zero is ABSENT or (stored and not required):
                continue
            manifest[name] = msgspec.json.decode(msgspec.json.encode(zero))
        value = manifest[name]
        if part is None:
            continue
        if isinstance(value, list):
            for item in value:
                as_sent(part, item, stored=stored)
        elif get_origin(_annotation(cls, name)) is Mapping:
            for item in value.values():
                as_sent(part, item, stored=stored)
        else:
            as_sent(part, value, stored=stored)
    return manifest


@cache
def _annotation(cls: type[Part] | type[Object], name: str) -> Any:
    return next(unwrap(f.type)[0] for f in fields(cls) if f.encode_name == name)
