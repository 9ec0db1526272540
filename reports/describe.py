"""`dpf-twin describe`: one object at a virtual time, its Kubernetes Events, and for a DPU its way so far."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from reports.columns import age, table
from reports.folder import FolderError, RunFolder
from reports.look import Answer, Json, Query, at_seconds, check_query, matching, objects_at, resolve, resource_name
from twin.model.units import duration

_HIDDEN: Final = frozenset({"managedFields", "name", "namespace", "labels", "annotations"})
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")


def describe(folder: RunFolder, query: Query) -> Answer:
    """What `kubectl describe` would have said at that time, with phases and waits added for a DPU.

    Raises:
        FolderError: objects were not recorded.  QueryError: bad usage.
    """
    query = check_query(query)
    at_s = at_seconds(folder, query.at_s)
    resolved = resolve(folder, query.kind)
    wanted = {resolved, ("v1", "Event")}
    found = objects_at(folder, at_s, lambda a, k: (a, k) in wanted, query.cluster)
    chosen = list(matching([o for o in found if (o["apiVersion"], o["kind"]) == resolved], query))
    if not chosen:
        text = f'Error from server (NotFound): {resource_name(*resolved)} "{query.name}" not found\n'
        return Answer("", text, 1) if query.name else Answer("", "No resources found\n")
    kube_events = [o for o in found if o["kind"] == "Event"]
    now = folder.epoch_s + at_s
    return Answer("\n\n".join(_one(folder, obj, kube_events, now, at_s) for obj in chosen))


def _one(folder: RunFolder, obj: Json, kube_events: Sequence[Json], now: float, at_s: float) -> str:
    meta = obj["metadata"]
    lines = _fields([("Name", meta["name"]), ("Namespace", meta.get("namespace", "")),
                     ("Labels", _pairs(meta.get("labels", {}), "=")),
                     ("Annotations", _pairs(meta.get("annotations", {}), ": ")),
                     ("API Version", obj["apiVersion"]), ("Kind", obj["kind"])])
    lines += _section("Metadata", {k: v for k, v in meta.items() if k not in _HIDDEN})
    status = dict(obj.get("status", {}))
    conditions = status.pop("conditions", ())
    rest = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind", "metadata", "status")}
    for key in sorted(rest):
        lines += _section(_title(key), _shown(obj["kind"], key, rest[key]))
    lines += _section("Status", status) if status else []
    if conditions:
        lines += ["Conditions:", *_indented(_conditions(conditions, now))]
    if obj["kind"] == "DPU":
        lines += _way(folder, obj, at_s)
    lines += _events(obj, kube_events, now)
    return "\n".join(lines) + "\n"


def _shown(kind: str, key: str, value: Any) -> Any:
    """Secrets show names only: their values are not recorded."""
    if kind == "Secret" and key in ("data", "stringData") and isinstance(value, Mapping):
        return dict.fromkeys(value, "<not recorded>")
    return value


def _fields(pairs: Iterable[tuple[str, str | list[str]]]) -> list[str]:
    out = []
    for name, value in pairs:
        first, *more = value if isinstance(value, list) else [value]
        out.append(f"{name + ':':<14}{first}".rstrip())
        out += [" " * 14 + text for text in more]
    return out


def _pairs(of: Mapping[str, str], sign: str) -> list[str]:
    return [f"{k}{sign}{v}" for k, v in sorted(of.items())] or ["<none>"]


def _title(key: str) -> str:
    """`dpuNodeName` -> `Dpu Node Name`, as kubectl titles fields."""
    words = _WORD.findall(key)
    return " ".join(w[:1].upper() + w[1:] for w in words) or key


def _section(title: str, value: Any) -> list[str]:
    if isinstance(value, Mapping | list | tuple):
        return [f"{title}:", *_tree(value, 2)] if value else [f"{title}:  <none>"]
    return [f"{title}:  {_scalar(value)}"]


def _tree(value: Any, depth: int) -> list[str]:
    """Nested fields two spaces deeper each; the fields of one level have their values in one column."""
    pad = " " * depth
    if isinstance(value, Mapping):
        plain = [k for k in value if not isinstance(value[k], Mapping | list | tuple)]
        width = max((len(_title(k)) for k in plain), default=0) + 3
        out = []
        for key in sorted(value):
            inner = value[key]
            if isinstance(inner, Mapping | list | tuple):
                out += [f"{pad}{_title(key)}:", *_tree(inner, depth + 2)] if inner else []
            else:
                text = _scalar(inner)
                if "\n" in text:
                    out += [f"{pad}{_title(key)}:", *(pad + "  " + line for line in text.splitlines())]
                else:
                    out.append(f"{pad}{_title(key) + ':':<{width}}{text}".rstrip())
        return out
    out = []
    for item in value:
        out += _tree(item, depth) if isinstance(item, Mapping | list | tuple) else [pad + _scalar(item)]
    return out


def _scalar(value: Any) -> str:
    if value is None:
        return "<nil>"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _indented(text: str) -> list[str]:
    return ["  " + line for line in text.splitlines()]


def _conditions(conditions: Sequence[Mapping[str, str]], now: float) -> str:
    return table(["Type", "Status", "Since", "Reason", "Message"],
                 [[c.get("type", ""), c.get("status", ""), age(now, c.get("lastTransitionTime", "")),
                   c.get("reason", ""), c.get("message", "")] for c in conditions], ruled=True)


def _way(folder: RunFolder, obj: Json, at_s: float) -> list[str]:
    """The phases and waits of a DPU up to `at_s`; a line instead when the tables were not written."""
    name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
    try:
        phases = _rows_of(folder, "phases", (name, f"{namespace}/{name}"), at_s)
        waits = _rows_of(folder, "waits", (name, f"{namespace}/{name}"), at_s)
    except FolderError:
        return ["Phases:  <not recorded>"]
    rows = [[r["phase"], duration(r["start_s"]), duration(min(r["end_s"], at_s) - r["start_s"]),
             str(r["attempt"]), r["outcome"] if r["end_s"] <= at_s else "open"] for r in phases]
    out = ["Phases:", *_indented(table(["Phase", "From", "For", "Provisioning", "Outcome"], rows, ruled=True))]
    if waits:
        out += ["Waits:", *_indented(table(["Constraint", "From", "For"], [
            [r["constraint"], duration(r["start_s"]), duration(min(r["end_s"], at_s) - r["start_s"])
             + (" so far" if r["end_s"] > at_s else "")] for r in waits], ruled=True))]
    return out


def _rows_of(folder: RunFolder, table_name: str, names: tuple[str, str], at_s: float) -> list[dict[str, Any]]:
    from pyarrow import compute

    rows = folder.table(table_name)
    mine = compute.and_(compute.equal(rows["replication"], 0), compute.or_(
        compute.equal(rows["dpu"], names[0]), compute.equal(rows["dpu"], names[1])))
    found: list[dict[str, Any]] = rows.filter(mine).to_pylist()
    return sorted((r for r in found if r["start_s"] <= at_s), key=lambda r: float(r["start_s"]))


def _events(obj: Json, kube_events: Sequence[Json], now: float) -> list[str]:
    meta = obj["metadata"]
    mine = []
    for event in kube_events:
        about = event.get("involvedObject", {})
        if about.get("kind") == obj["kind"] and about.get("name") == meta["name"] and \
                about.get("namespace", "") == meta.get("namespace", ""):
            mine.append(event)
    if not mine:
        return ["Events:  <none>"]
    mine.sort(key=lambda e: (e.get("lastTimestamp", ""), e["metadata"]["name"]))
    rows = []
    for e in mine:
        count, last = e.get("count", 1), age(now, e.get("lastTimestamp", ""))
        seen = f"{last} (x{count} over {age(now, e.get('firstTimestamp', ''))})" if count > 1 else last
        source = e.get("reportingComponent") or e.get("source", {}).get("component", "")
        rows.append([e.get("type", ""), e.get("reason", ""), seen, source, e.get("message", "")])
    return ["Events:", *_indented(table(["Type", "Reason", "Age", "From", "Message"], rows, ruled=True))]
