"""Server-side apply: who manages which field of an object, and what an applied manifest makes of it.

All on plain JSON, no store. Field managers, conflicts, force, and removal of what its last applier no longer says
behave as kube-apiserver v1.34 does. Updates are followed from an object's first apply on (or always, if the server is
told to): until then nobody asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from twin.backends.base import ApiError, Conflict, Invalid
from twin.sim.fieldset import (
    Json,
    Paths,
    Shape,
    compare,
    from_fields,
    merge,
    path_text,
    paths_of,
    to_fields,
    with_parents,
    without,
)

APPLY: Final = "Apply"
UPDATE: Final = "Update"
BEFORE_FIRST_APPLY: Final = "before-first-apply"
"""Owns, in the real server's words, what an object had when nobody had written down whose it was."""

_UNOWNED: Final[Paths] = {
    (), ("f:apiVersion",), ("f:kind",), ("f:metadata",), *(("f:metadata", f"f:{name}") for name in (
        "name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields",
        "resourceVersion"))}
_SERVERS: Final = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink",
                   "managedFields", "resourceVersion", "uid")


class Manager(NamedTuple):
    """A field manager. One name may be two: as one who applies and as one who updates."""

    operation: str
    name: str
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        text = f'"{self.name}"' + (f' with subresource "{self.subresource}"' if self.subresource else "")
        return f"{text} using {self.api_version}" if self.operation == UPDATE else text


@dataclass(frozen=True, slots=True)
class Owned:
    """What a manager owns, and since when (RFC 3339)."""

    paths: frozenset[tuple[str, ...]]
    time: str


Managers = dict[Manager, Owned]


def managers_of(entries: Any) -> Managers:
    """From `metadata.managedFields`."""
    return {Manager(e.get("operation", ""), e.get("manager", ""), e.get("apiVersion", ""), e.get("subresource", "")):
            Owned(frozenset(from_fields(e.get("fieldsV1") or {})), e.get("time", "")) for e in entries or () if e}


def entries_of(managers: Managers) -> tuple[Json, ...]:
    """`metadata.managedFields`: appliers first, then by time and name."""
    out = []
    for m, owned in sorted(managers.items(), key=lambda item: (item[0].operation, item[1].time, item[0])):
        entry = {"manager": m.name, "operation": m.operation, "apiVersion": m.api_version, "time": owned.time,
                 "fieldsType": "FieldsV1", "fieldsV1": to_fields(owned.paths)}
        out.append({**entry, "subresource": m.subresource} if m.subresource else entry)
    return tuple(out)


def followed(old: Json | None, new: Json, managers: Managers, by: Manager, shape: Shape, now: str) -> Managers:
    """Who manages what after this write that is no apply: what it sets is its own, what it removes nobody's."""
    change = compare({} if old is None else _body(old), _body(new), shape)
    gained = _theirs(change.added | change.modified, by.subresource, shape)
    out: Managers = {}
    for manager, owned in managers.items():
        left = owned.paths - change.removed - (frozenset() if manager == by else gained)
        if left:
            out[manager] = Owned(left, owned.time)
    if gained:
        before = out[by].paths if by in out else frozenset()
        out[by] = Owned(before | gained, now)
    return out


def applied(live: Json, config: Json, managers: Managers, by: Manager, shape: Shape, now: str, *,
            force: bool = False) -> tuple[Json, Managers]:
    """The object after applying `config` to it, and its managers. The very `live` and `managers` if nothing changes.

    Raises: Conflict, when others manage fields that would change and `force` is off.
    """
    body, wanted = _body(live), _body(config)
    if not managers:
        everything = frozenset(_theirs(compare({}, body, shape).added, "", shape))
        managers = {Manager(UPDATE, BEFORE_FIRST_APPLY, by.api_version): Owned(everything, now)} if everything else {}
    last = managers[by].paths if by in managers else frozenset()
    mine = frozenset(_theirs(paths_of(wanted, shape), by.subresource, shape))
    others = {m: o for m, o in managers.items() if m != by}
    merged = merge(body, _only(wanted, by.subresource, shape), shape)
    merged = _pruned(merged, last, mine.union(*(o.paths for o in others.values())), shape)
    change = compare(body, merged, shape)
    touched = change.added | change.modified
    conflicts = {m: sorted(o.paths & touched) for m, o in others.items() if o.paths & touched}
    if conflicts and not force:
        raise _conflict(conflicts)
    after = {m: Owned(left, o.time) for m, o in others.items() if (left := o.paths - touched - change.removed)}
    same = merged == body and mine == last and all(after.get(m) == o for m, o in others.items())
    if same:
        return live, managers
    if mine:
        after[by] = Owned(mine, now)
    merged = _decoded(merged, shape)
    return {**merged, "metadata": {**merged.get("metadata", {}), **_server_part(live)}}, after


def same_owners(one: Managers, other: Managers) -> bool:
    """Do they own the same, whenever they took it?"""
    return {m: o.paths for m, o in one.items()} == {m: o.paths for m, o in other.items()}


def _pruned(merged: Any, last: frozenset[tuple[str, ...]], kept: frozenset[tuple[str, ...]], shape: Shape) -> Any:
    """Without what the manager applied last time and nobody claims now."""
    gone = with_parents(set(last), shape) - with_parents(set(kept), shape) - _UNOWNED
    return without(merged, gone, shape)


def _decoded(merged: Json, shape: Shape) -> Json:
    """As Go reads it: a null is absent, except that a custom resource's schema sees it."""
    result: Json = _filled(merged) if shape.core else {**merged, "metadata": _filled(merged.get("metadata", {}))}
    return result


def _filled(value: Any) -> Any:
    return {k: _filled(v) for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


def _body(manifest: Json) -> Json:
    """Without what the server alone writes."""
    meta = {k: v for k, v in manifest.get("metadata", {}).items() if k not in _SERVERS}
    return {**manifest, "metadata": meta}


def _server_part(live: Json) -> Json:
    return {k: v for k, v in live.get("metadata", {}).items() if k in _SERVERS and k != "managedFields"}


def _only(config: Json, subresource: str, shape: Shape) -> Json:
    """What a write to this subresource can change."""
    if not shape.status:
        return config
    if subresource == "status":
        return {"status": config["status"]} if "status" in config else {}
    return {k: v for k, v in config.items() if k != "status"}


def _theirs(paths: Paths, subresource: str, shape: Shape) -> Paths:
    """Without what nobody owns, and what this (sub)resource does not write."""
    if not shape.status:
        return paths - _UNOWNED
    wanted = subresource == "status"
    return {p for p in paths - _UNOWNED if (p[0] == "f:status") is wanted}


def _conflict(conflicts: Mapping[Manager, list[tuple[str, ...]]]) -> Conflict:
    ordered = sorted(conflicts.items(), key=lambda item: str(item[0]))
    causes = [{"reason": "FieldManagerConflict", "message": f"conflict with {m}", "field": path_text(path)}
              for m, paths in ordered for path in paths]
    if len(causes) == 1:
        text = f"1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        text = f"{len(causes)} conflicts: " + "\n".join(
            line for m, paths in ordered for line in (f"conflicts with {m}:", *(f"- {path_text(p)}" for p in paths)))
    return Conflict(f"Apply failed with {text}", details={"causes": causes})


# --- what a server refuses before it looks


def check_request(manifest: Mapping[str, Any], manager: str) -> None:
    """Raises: Invalid without a manager, ApiError 400 when the manifest brings managedFields."""
    if not manager:
        text = "Required value: is required for apply patch"
        raise Invalid(f'PatchOptions.meta.k8s.io "" is invalid: fieldManager: {text}', details={
            "group": "meta.k8s.io", "kind": "PatchOptions",
            "causes": [{"reason": "FieldValueRequired", "message": text, "field": "fieldManager"}]})
    if (manifest.get("metadata") or {}).get("managedFields") is not None:
        raise ApiError("metadata.managedFields must be nil", code=400, reason="BadRequest")


def check_typed(manifest: Mapping[str, Any], shape: Shape) -> None:
    """Raises: ApiError 500 as the real server, when the manifest has fields that its schema does not."""
    problems = list(_undeclared(manifest, shape, ()))
    if problems:
        meta = manifest.get("metadata") or {}
        group, _, version = str(manifest.get("apiVersion", "")).rpartition("/")
        what = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {group}/{version}, Kind={manifest.get('kind')}"
        text = problems[0] if len(problems) == 1 else "errors:\n" + "\n".join(f"  {p}" for p in problems)
        raise ApiError(f"failed to create typed patch object ({what}): {text}", reason="")


def _undeclared(value: Any, shape: Shape, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        closed = "properties" in shape.schema and not shape.schema.get("x-kubernetes-preserve-unknown-fields")
        for name, part in value.items():
            inner, declared = shape.field(name)
            here = (*path, f"f:{name}")
            if closed and not declared and "additionalProperties" not in shape.schema:
                yield f"{path_text(here)}: field not declared in schema"
            else:
                yield from _undeclared(part, inner, here)
    elif isinstance(value, list):
        for item in value:
            element = shape.element(item)
            yield from _undeclared(item, shape.items(), path if element is None else (*path, element))
