"""What is compared of each kind of object: its view, and a timeline as the sequence of changes of views.

Both timelines, the recorded one and ours, become the same nested mappings first (conditions keyed by type), so one set
of view functions serves both. A view is flat text: `phase` -> `Ready`, `cond Ready` -> `True/DPUReady/`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.golden.recording import Change
from twin.model.kinds import to_manifest
from twin.sim.trace import Version

Json = dict[str, Any]
View = dict[str, str]
GONE: Final = "-"
"""What a fact says of a field that was there and is not any more."""


class Subject(NamedTuple):
    """An object of a timeline. `kind` of a DPU cluster's object is prefixed: `dpu:Node`. Events: what they say."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Write:
    """One write that changed the view: facts in order of their names. `op` is +, ~ or - (appeared, changed, gone)."""

    t_s: float
    op: str
    facts: tuple[tuple[str, str], ...]


@dataclass
class History:
    """All that happened to one object of this name, through deletions and re-creations."""

    writes: list[Write] = field(default_factory=list)
    states: list[tuple[float, View | None]] = field(default_factory=list)

    def view_at(self, t_s: float) -> View | None:
        """The view that was in force, None: no such object."""
        return next((v for t, v in reversed(self.states) if t <= t_s), None)


# --- views


def _conditions(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for type_, c in (status.get("conditions") or {}).items():
        yield f"cond {type_}", f"{c.get('status', '')}/{c.get('reason', '')}/{c.get('message', '')}"


def _meta(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in meta.get("finalizers") or ():
        yield f"finalizer {name}", "yes"
    if meta.get("deletionTimestamp"):
        yield "deleting", "yes"
    for ref in meta.get("ownerReferences") or ():
        flags = "".join(f" {f}" for f in ("controller", "blockOwnerDeletion") if ref.get(f))
        yield f"owner {ref['kind']}", f"{ref['name']}{flags}"


def _named(what: str, items: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for name, value in (items or {}).items():
        yield f"{what} {name}", str(value)


FIRST_PHASE: Final = {"DPU": "Initializing", "BFB": "Initializing", "DPUCluster": "Pending"}
"""The CRDs' default of status.phase, which our encoding leaves out."""


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _dpu(o: Json) -> Iterator[tuple[str, str]]:
    spec, status = o.get("spec", {}), o.get("status", {})
    yield "phase", status.get("phase") or FIRST_PHASE["DPU"]
    yield from _conditions(status)
    yield from _named("label", o.get("metadata", {}).get("labels"))
    yield from _named("annotation", o.get("metadata", {}).get("annotations"))
    for name in ("bfb", "dpuFlavor"):
        yield f"spec.{name}", str(spec.get(name, ""))
    yield "spec.nodeEffect", _compact(spec.get("nodeEffect"))
    cluster = spec.get("cluster") or {}
    if cluster.get("name"):
        yield "spec.cluster", f"{cluster.get('namespace')}/{cluster['name']}"
    yield from _named("nodeLabel", cluster.get("nodeLabels"))
    if status.get("bfbFile"):
        yield "bfbFile", status["bfbFile"]
    if status.get("addresses"):
        yield "addresses", " ".join(sorted(a["type"] for a in status["addresses"]))


def _bfb(o: Json) -> Iterator[tuple[str, str]]:
    status = o.get("status", {})
    yield "phase", status.get("phase") or FIRST_PHASE["BFB"]
    yield "spec.url", str((o.get("spec") or {}).get("url", ""))
    if status.get("fileName"):
        yield "fileName", status["fileName"]
    yield from _named("version", status.get("versions"))


def _dpuset(o: Json) -> Iterator[tuple[str, str]]:
    spec = o.get("spec", {})
    template = spec.get("dpuTemplate") or {}
    inner = template.get("spec") or {}
    yield "spec.strategy", _compact(spec.get("strategy"))
    yield "spec.nodeEffect", _compact(inner.get("nodeEffect"))
    yield "spec.bfb", str((inner.get("bfb") or {}).get("name", ""))
    yield "spec.dpuFlavor", str(inner.get("dpuFlavor", ""))
    yield from _named("nodeLabel", (inner.get("cluster") or {}).get("nodeLabels"))
    yield from _named("statistics", (o.get("status") or {}).get("dpuStatistics"))


def _dpucluster(o: Json) -> Iterator[tuple[str, str]]:
    spec, status = o.get("spec", {}), o.get("status", {})
    yield "phase", status.get("phase") or FIRST_PHASE["DPUCluster"]
    yield from _conditions(status)
    for name in ("kubeconfig", "maxNodes", "type"):
        if spec.get(name) is not None:
            yield f"spec.{name}", str(spec[name])


def _maintenance(o: Json) -> Iterator[tuple[str, str]]:
    spec = o.get("spec", {})
    yield from _conditions(o.get("status") or {})
    for name in ("requestorID", "nodeName", "cordon"):
        yield f"spec.{name}", str(spec.get(name))
    yield "requestors", " ".join(spec.get("additionalRequestors") or ())
    for name, value in (spec.get("drainSpec") or {}).items():
        yield f"drain {name}", str(value)


OURS_TO_TAINT: Final = ("node.kubernetes.io/", "node-role.kubernetes.io/", "node.cloudprovider.kubernetes.io/")


def _host_node(o: Json) -> Iterator[tuple[str, str]]:
    """What a node effect leaves on the host's Node; Kubernetes' own taints are not looked at."""
    spec = o.get("spec", {})
    taints = [t for t in spec.get("taints") or () if not t["key"].startswith(OURS_TO_TAINT)]
    if taints:
        yield "taints", " ".join(f"{t['key']}={t.get('value', '')}:{t['effect']}" for t in taints)
    if spec.get("unschedulable"):
        yield "unschedulable", "yes"


def _dpu_node(o: Json) -> Iterator[tuple[str, str]]:
    status = o.get("status", {})
    ready = (status.get("conditions") or {}).get("Ready", {}).get("status", "")
    yield "ready", "yes" if ready == "True" else "no"
    yield from _named("label", o.get("metadata", {}).get("labels"))


def _plain(o: Json) -> Iterator[tuple[str, str]]:
    yield from _named("label", o.get("metadata", {}).get("labels"))


def _event(o: Json) -> Iterator[tuple[str, str]]:
    yield "count", str(o.get("count", 1))


VIEWS: Final[Mapping[str, Callable[[Json], Iterator[tuple[str, str]]]]] = {
    "DPU": _dpu, "BFB": _bfb, "DPUSet": _dpuset, "DPUCluster": _dpucluster, "NodeMaintenance": _maintenance,
    "Node": _host_node, "dpu:Node": _dpu_node, "TenantControlPlane": _plain, "ConfigMap": _plain, "DaemonSet": _plain,
    "Service": _plain, "Event": _event,
}
EVENTS_OF: Final = ("DPUSet/", "BFB/", "DPU/", "DPUCluster/")


def view(kind: str, o: Json) -> View:
    found = dict(VIEWS[kind](o))
    if kind not in ("Event", "Node", "dpu:Node"):
        found |= dict(_meta(o.get("metadata", {})))
    return found


# --- timelines


class _Book:
    def __init__(self) -> None:
        self.histories: dict[Subject, History] = {}
        self._views: dict[Subject, View] = {}

    def note(self, t_s: float, op: str, subject: Subject, now: View) -> None:
        history = self.histories.setdefault(subject, History())
        before = self._views.get(subject)
        facts = diff(before or {}, now)
        if op == "DELETED":
            history.writes.append(Write(t_s, "-", ()))  # the last state adds nothing but the finalizer's end
            history.states.append((t_s, None))
            self._views.pop(subject, None)
            return
        if before is None:
            history.writes.append(Write(t_s, "+", facts))
        elif facts:
            history.writes.append(Write(t_s, "~", facts))
        history.states.append((t_s, now))
        self._views[subject] = now


def diff(before: View, now: View) -> tuple[tuple[str, str], ...]:
    changed = [(k, v) for k, v in now.items() if before.get(k) != v]
    changed += [(k, GONE) for k in before if k not in now]
    return tuple(sorted(changed))


def recorded(changes: Iterable[Change]) -> dict[Subject, History]:
    book = _Book()
    states: dict[tuple[str, str, str, str], Json] = {}
    for change in changes:
        kind = f"{change.cluster}:{change.kind}" if change.cluster else change.kind
        if kind not in VIEWS:
            continue
        key = (change.cluster, change.kind, change.namespace, change.name)
        if change.op == "ADDED" or key not in states:
            states[key] = {"metadata": {}}
        state = states[key]
        for path, value in change.changed.items():
            _put(state, path, value)
        subject = _subject(kind, change.namespace, change.name, state, state.get("involvedObject", ""))
        if subject is not None:
            book.note(change.t_s, change.op, subject, view(kind, state))
    return book.histories


_DOT: Final = re.compile(r"(?<!\\)\.")
_KEYED: Final = re.compile(r"(\w+)\[([^\]]+)\]")


def _put(state: Json, path: str, value: Any) -> None:
    """Set what stands at a dotted path; None removes it, and parents that are empty then."""
    words: list[str] = []
    for word in _DOT.split(path):
        keyed = _KEYED.fullmatch(word)
        words += keyed.groups() if keyed else [word.replace("\\.", ".")]
    parents = [state]
    for word in words[:-1]:
        inner = parents[-1].get(word)
        if not isinstance(inner, dict):
            inner = parents[-1][word] = {}
        parents.append(inner)
    if value is not None:
        if value != {} or words[-1] not in parents[-1]:
            parents[-1][words[-1]] = copy.deepcopy(value)
        return
    parents[-1].pop(words[-1], None)
    for parent, word in zip(parents[-2::-1], words[-2::-1], strict=True):
        if parent[word] == {}:
            del parent[word]


def played(versions: Iterable[Version]) -> dict[Subject, History]:
    book = _Book()
    for version in versions:  # in the order of their resourceVersions, as the recordings
        kind = f"dpu:{version.object.KIND}" if version.cluster else version.object.KIND
        if kind not in VIEWS:
            continue
        o = _keyed_conditions(to_manifest(version.object))
        involved = o.get("involvedObject") or {}
        meta = o["metadata"]
        subject = _subject(kind, meta.get("namespace", ""), meta["name"], o,
                           f"{involved['kind']}/{involved['name']}" if involved else "")
        if subject is not None:
            book.note(version.t_s, version.op, subject, view(kind, o))
    return book.histories


def _keyed_conditions(o: Json) -> Json:
    status = o.get("status")
    if isinstance(status, dict) and isinstance(status.get("conditions"), list):
        keyed = {c["type"]: c for c in status["conditions"]}
        return {**o, "status": {**status, "conditions": keyed}}
    return o


def _subject(kind: str, namespace: str, name: str, o: Json, involved: str) -> Subject | None:
    if kind != "Event":
        return Subject(kind, namespace, name)
    if not involved.startswith(EVENTS_OF):
        return None
    return Subject(kind, namespace, f"{involved} {o.get('type')} {o.get('reason')}: {o.get('message')}")
