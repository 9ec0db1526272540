"""Where two runs differ: phase sequences, conditions, final objects, durations. Pure functions on run folders.

What differs by nature between two worlds is left out: uid, resourceVersion, times, generated names' endings, addresses
that a world hands out. Durations are compared, never judged: `same` speaks of what happened, not of how long it took.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from reports.folder import FolderError, RunFolder

Json = dict[str, Any]

KINDS: Final = ("BFB", "DPUCluster", "DPUDevice", "DPUFlavor", "DPUNode", "DPUSet", "DPU", "DPUDeployment",
                "DPFOperatorConfig")
"""Whose final objects are compared: what DPF itself makes and keeps."""
NEIGHBOURS: Final = ("Node", "NodeMaintenance")
"""What it asks of others: labels, taints and cordons in every cluster. How they are is the others' matter."""
GONE: Final = "(gone)"
CONFLICT: Final = " (conflict)"
"""What follows a reason when the write that failed met another one."""
_CONFLICT: Final = ("the object has been modified", "already exists")
_FIRST: Final = {"BFB": "Initializing", "DPU": "Initializing", "DPUCluster": "Pending"}
"""Kinds with phases, and the first one, which files leave out because it is a default."""
_META: Final = ("name", "namespace", "labels", "annotations", "finalizers")
_TIMES: Final = frozenset({"lastTransitionTime", "lastHeartbeatTime", "creationTimestamp", "observedGeneration",
                           "deletionTimestamp", "timeAdded"})
_NOISE: Final = ((re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
                 (re.compile(r"\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b"), "ADDRESS"),
                 (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UID"))
_MIRRORED: Final = ("beta.kubernetes.io/arch", "beta.kubernetes.io/os")
"""Deprecated labels that a real node-lifecycle controller keeps beside those of today."""
_PRIVATE: Final = ("kubectl.kubernetes.io/last-applied-configuration",)
_ADDRESSES: Final = frozenset({"nodeDMSAddress", "addresses", "kubeconfig"})


@dataclass(slots=True)
class Difference:
    """What differs. Each entry is a line for people."""

    phases: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    durations: list[Json] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.phases or self.conditions or self.objects)

    def document(self) -> Json:
        return {"same": self.same, "phases": self.phases, "conditions": self.conditions, "objects": self.objects,
                "durations": self.durations}


@dataclass(slots=True)
class History:
    """What one run did, by DPU, and how it ended."""

    phases: dict[str, list[str]] = field(default_factory=dict)
    conditions: dict[str, list[str]] = field(default_factory=dict)
    entered: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    final: dict[str, Json] = field(default_factory=dict)
    told: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """Of DPUs (by name), BFBs and DPUClusters: phases (`-> Ready`) and conditions (`Ready=True DPUReady`) in one order,
    each with its time."""
    _known: dict[str, dict[str, str]] = field(default_factory=dict)

    def see(self, name: str, phase: str, conditions: Iterable[tuple[str, str, str, str]], t_s: float) -> None:
        """The next version of a DPU: its phase (GONE when deleted), conditions as (type, status, reason, message)."""
        sequence = self.phases.setdefault(name, [])
        if not sequence or sequence[-1] != phase:
            sequence.append(phase)
            self.entered.setdefault(name, []).append((phase, t_s))
        self.conditions.setdefault(name, []).extend(self.hear(name, phase, conditions, t_s))

    def hear(self, name: str, phase: str, conditions: Iterable[tuple[str, str, str, str]], t_s: float) -> list[str]:
        """The next version of an object that has phases; returns the conditions that are new in it."""
        known, told = self._known.setdefault(name, {}), self.told.setdefault(name, [])
        texts = {} if phase == GONE else {
            type_: f"{type_}={status} {reason}" + (CONFLICT if any(text in message for text in _CONFLICT) else "")
            for type_, status, reason, message in conditions}
        changed = [text for type_, text in texts.items() if known.get(type_) != text]
        new = [f"-> {phase}"] if known.get("") != phase else []
        told += [(t_s, text) for text in (*new, *changed)]
        self._known[name] = {} if phase == GONE else {**known, **texts, "": phase}
        return changed


def history(folder: RunFolder) -> History:
    """Raises: FolderError when objects were not recorded, or what was is damaged."""
    out = History()
    for line in folder.object_lines():
        try:
            _note(out, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FolderError(f"{folder.path / 'objects'}: damaged: not an object version ({error!r})") from error
    return out


def _note(out: History, record: Json) -> None:
    manifest = record["object"]
    if manifest["kind"] not in (NEIGHBOURS if record["cluster"] else (*KINDS, *NEIGHBOURS)):
        return
    meta = manifest["metadata"]
    name = f"{manifest['kind']} {meta.get('namespace', '')}/{meta['name']}"
    if record["cluster"]:
        name += f" of {record['cluster']}"
    if record["op"] == "DELETED":
        out.final.pop(name, None)
    else:
        out.final[name] = plain(manifest)
    if manifest["kind"] in _FIRST:
        status = manifest.get("status") or {}
        phase = GONE if record["op"] == "DELETED" else status.get("phase") or _FIRST[manifest["kind"]]
        conditions = [(c["type"], c["status"], c.get("reason", ""), c.get("message", ""))
                      for c in status.get("conditions") or ()]
        if manifest["kind"] == "DPU":
            out.see(meta["name"], phase, conditions, float(record["t_s"]))
        else:
            out.hear(name, phase, conditions, float(record["t_s"]))


def plain(manifest: Json) -> Json:
    """The manifest without what differs by nature between worlds."""
    meta = {k: v for k, v in manifest["metadata"].items() if k in _META and v}
    if "annotations" in meta:
        meta["annotations"] = {k: v for k, v in meta["annotations"].items() if k not in _PRIVATE}
        if not meta["annotations"]:
            del meta["annotations"]
    if "finalizers" in meta:  # two managers add theirs at the same moment: their order is an accident
        meta["finalizers"] = sorted(meta["finalizers"])
    if "labels" in meta:
        meta["labels"] = {k: v for k, v in meta["labels"].items() if k not in _MIRRORED}
    rest = {k: v for k, v in manifest.items() if k not in ("metadata", "apiVersion")}
    if manifest["kind"] in NEIGHBOURS:
        rest.pop("status", None)
    cleaned = _clean({**rest, "metadata": meta})
    assert isinstance(cleaned, dict)
    return cleaned


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        out = {k: _clean(v) for k, v in value.items() if k not in _TIMES and k not in _ADDRESSES}
        return {k: v for k, v in out.items() if v not in ({}, [], None, "")}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    if isinstance(value, str):
        for pattern, word in _NOISE:
            value = pattern.sub(word, value)
    return value


def diff(a: RunFolder, b: RunFolder) -> Difference:
    """Raises: FolderError when a run's objects were not recorded."""
    one, two = history(a), history(b)
    out = Difference()
    for name in _either(one.phases, two.phases):
        out.phases += _sequence(name, one.phases.get(name), two.phases.get(name))
    for name in _either(one.conditions, two.conditions):
        out.conditions += _sequence(name, one.conditions.get(name), two.conditions.get(name))
    for name in _either(one.final, two.final):
        out.objects += _object(name, one.final.get(name), two.final.get(name))
    out.durations = list(_durations(one, two, (a.virtual_s, b.virtual_s)))
    return out


def _either(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    return sorted({**one, **two})


def _sequence(name: str, one: list[str] | None, two: list[str] | None) -> Iterator[str]:
    if one is None or two is None:
        yield f"{name}: only in {'B' if one is None else 'A'}"
    elif one != two:
        at = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
        yield (f"{name}: step {at + 1}: A {one[at] if at < len(one) else '(ends)'}, "
               f"B {two[at] if at < len(two) else '(ends)'}" + (f", after {one[at - 1]}" if at else ""))


def _object(name: str, one: Json | None, two: Json | None) -> Iterator[str]:
    if one is None or two is None:
        yield f"{name}: only in {'B' if one is None else 'A'}"
        return
    for path, x, y in _fields(one, two, ""):
        yield f"{name}: {path}: A {_short(x)}, B {_short(y)}"


def _fields(one: Any, two: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({**one, **two}):
            yield from _fields(one.get(key), two.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for i, (x, y) in enumerate(zip(one, two, strict=True)):
            yield from _fields(x, y, f"{path}[{i}]")
    elif one != two:
        yield path, one, two


def _short(value: Any) -> str:
    text = "(absent)" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "..."


def _durations(one: History, two: History, ends: tuple[float, float]) -> Iterator[Json]:
    """Median seconds in each phase, A and B."""
    a, b = _stays(one, ends[0]), _stays(two, ends[1])
    for phase in dict.fromkeys((*a, *b)):
        x, y = sorted(a.get(phase, [])), sorted(b.get(phase, []))
        yield {"phase": phase, "a": {"n": len(x), "p50_s": x[len(x) // 2] if x else None},
               "b": {"n": len(y), "p50_s": y[len(y) // 2] if y else None}}


def _stays(of: History, end_s: float) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {}
    for sequence in of.entered.values():
        for (phase, at), (_, after) in zip(sequence, [*sequence[1:], ("", end_s)], strict=True):
            if phase not in ("Ready", GONE, "Error"):
                out.setdefault(phase, []).append(after - at)
    return out


def text(found: Difference, a: str, b: str) -> str:
    """For people."""
    lines = [f"A {a}", f"B {b}", ""]
    for heading, entries in (("phases", found.phases), ("conditions", found.conditions),
                             ("final objects", found.objects)):
        lines.append(f"{heading}: " + ("same" if not entries else f"{len(entries)} differ"))
        lines += [f"  {entry}" for entry in entries]
    rows = [(d["phase"], _seconds(d["a"]), _seconds(d["b"])) for d in found.durations]
    if rows:
        width = max(len(r[0]) for r in rows)
        lines += ["", f"{'phase':<{width}}  {'A p50':>10}  {'B p50':>10}"]
        lines += [f"{p:<{width}}  {x:>10}  {y:>10}" for p, x, y in rows]
    return "\n".join(lines) + "\n"


def _seconds(of: Json) -> str:
    return "-" if of["p50_s"] is None else f"{of['p50_s']:.1f} s"
