"""Expectations: CEL over the summary and the final state (what a scenario's `expect` may say).

Lists of plain records, each described by the function that makes it: `dpus`, `dpusets`, `bfbs`, `clusters`, `dpunodes`,
`devices`, `nodes` (of the host cluster), `dpu_nodes` (of DPU clusters), `pods`, `maintenances`, `objects` (everything
else, by cluster), `events` (Kubernetes Events), `cards` (hardware), `phases`, `outages`, `waits`, `faults`.

Values: every key of the summary that is known before expectations (`unavailable`, `reboots`, `pending`, `converged`,
`warnings`, `virtual_s`, ...), `completion_s` (seconds per DPU, `inf` for one that never got Ready), `device_changes`
and `reasons` (how often), `known_issues`, `controllers` (passes by controller).

Functions: `p50`, `p90`, `p95`, `max_of`, `min_of`, `count`; `peak(outages)`: how many DPUs are out at once at most;
`seconds(spans)`: the sum of their lengths. `second`, `minute`, `hour` are 1, 60 and 3600.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from scenarios.measure import unavailability
from scenarios.result import Expectation, Run
from twin.model.cel import native
from twin.model.core import Event, Node, NodeMaintenance, Pod
from twin.model.meta import Conditions, Object, condition, condition_status
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuNode, DpuSet
from twin.model.units import duration
from twin.sim.trace import SpanRow


def judge(expressions: Sequence[str], run: Run) -> list[Expectation]:
    """Evaluate each expression at the end of a run. One that cannot be evaluated does not hold; `value` says why."""
    if not expressions:
        return []
    variables = facts(run)
    return [_judged(e, variables) for e in expressions]


def unknown(expression: str) -> str:
    """Why this CEL expression can never be evaluated: it names what there is not; else ''. Raises ValueError."""
    program = native().compile(expression)
    bound = {name for _, name in _BOUND.findall(expression)}
    for kind, used, known in (("value", program.variables(), {*RECORDS, *VALUES, *_TYPES, *bound}),
                              ("function", program.functions(), {*FUNCTIONS, *_STANDARD})):
        for name in used:
            if name[0].isalpha() and name not in known:
                near = difflib.get_close_matches(name, known - _TYPES, n=1)
                return f"unknown {kind} {name}" + (f", did you mean {near[0]}?" if near else "")
    return ""


_BOUND: Final = re.compile(r"\.\s*(all|exists|exists_one|filter|map)\s*\(\s*(\w+)\s*,")
_TYPES: Final = frozenset(("bool", "bytes", "double", "duration", "int", "list", "map", "null_type", "string",
                           "timestamp", "type", "uint"))
_STANDARD: Final = frozenset((
    "bool", "bytes", "contains", "double", "duration", "dyn", "endsWith", "getDate", "getDayOfMonth", "getDayOfWeek",
    "getDayOfYear", "getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "has", "int",
    "matches", "max", "min", "size", "startsWith", "string", "timestamp", "type", "uint"))
"""CEL's own functions, and two that the library adds."""


def _judged(expression: str, variables: dict[str, Any]) -> Expectation:
    cel = native()  # loads on use
    stops: list[BaseException] = []
    context = cel.Context(variables=variables, functions={n: _stoppable(f, stops) for n, f in FUNCTIONS.items()})
    try:
        value = cel.evaluate(expression, context)
    except KeyError as error:
        value, told = None, f"cannot be evaluated: no such key: {error.args[0]}"
    except Exception as error:
        value, told = None, f"cannot be evaluated: {error}"
    else:
        told = ""
    if stops:
        raise stops[0]
    if told:
        return Expectation(expr=expression, holds=False, value=told)
    return Expectation(expr=expression, holds=value is True, value=_plain(value))


def _stoppable(function: Callable[..., Any], stops: list[BaseException]) -> Callable[..., Any]:
    """The interpreter turns what its functions raise into an error of the expression: Ctrl-C is none."""
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except KeyboardInterrupt as stop:
            stops.append(stop)
            return 0.0

    return call


def _plain(value: Any) -> Any:
    """What JSON holds as it is; lists, maps and null as JSON text."""
    value = _json(value)
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)


def _json(value: Any) -> Any:
    """A CEL value with the keys of maps in order: the interpreter gives them in another one each time."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case timedelta():
            return duration(value.total_seconds())
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case dict():
            texts = ((k if isinstance(k, str) else json.dumps(k), _json(v)) for k, v in value.items())
            return dict(sorted(texts, key=lambda item: item[0]))
        case list() | tuple():
            return [_json(v) for v in value]
        case _:
            return repr(value)


def facts(run: Run) -> dict[str, Any]:
    """What expressions see."""
    host = run.objects.get("", ())
    completions = {d: p.completion_s for d, p in run.completions().items()}
    unavailable = run.unavailability()
    found: dict[str, Any] = {
        name: [record(o) for o in host if isinstance(o, kind)] for name, (kind, record) in RECORDS.items()}
    for dpu in found["dpus"]:
        dpu["completion_s"] = completions.get(dpu["name"], -1.0)
    return found | {
        "second": 1.0, "minute": 60.0, "hour": 3600.0,
        "dpu_nodes": [{**_node(o), "cluster": name} for name, objects in run.objects.items() if name for o in objects
                      if isinstance(o, Node)],
        "objects": {name or "host": [f"{o.KIND}/{o.metadata.name}" for o in objects]
                    for name, objects in run.objects.items()},
        "cards": [dict(c) for c in run.cards],
        "completion_s": list(completions.values()),
        "unavailable": {"max": unavailable.max, "max_per_rack": unavailable.max_per_rack, "dpu_s": unavailable.dpu_s},
        "reboots": {"host": _changes(run, ("host-reboot", "host-power-cycle")), "dpu": _changes(run, ("dpu-reboot",))},
        "device_changes": dict(run.trace.device_changes), "reasons": dict(run.reasons),
        "converged": run.converged, "pending": list(run.pending), "warnings": list(run.warnings),
        "known_issues": list(run.known_issues), "virtual_s": run.virtual_s,
        "controllers": {r.controller: asdict(r) for r in run.reconciles},
        "outages": [_span(o, "cause") for o in run.outages()], "waits": [_span(w, "constraint") for w in run.waits()],
        "faults": [{"kind": f.kind, "target": f.target, "at_s": f.t_s, "began": f.began} for f in run.trace.faults],
        "phases": [{"dpu": p.dpu, "phase": p.phase, "start_s": p.start_s, "end_s": p.end_s, "s": p.end_s - p.start_s,
                    "outcome": p.outcome, "attempt": p.attempt} for p in run.phases()],
    }


def _changes(run: Run, what: tuple[str, ...]) -> int:
    return sum(run.trace.device_changes.get(w, 0) for w in what)


def _span(span: SpanRow, label: str) -> dict[str, Any]:
    return {"dpu": span.dpu, "start_s": span.start_s, "end_s": span.end_s, "s": span.end_s - span.start_s,
            label: span.label}


# --- records


def _meta(obj: Object) -> dict[str, Any]:
    meta = obj.metadata
    return {"name": meta.name, "namespace": meta.namespace, "labels": dict(meta.labels),
            "annotations": dict(meta.annotations), "deleting": obj.deleting, "finalizers": list(meta.finalizers)}


def _conditions(conditions: Conditions) -> dict[str, Any]:
    return {c.type: {"status": c.status, "reason": c.reason, "message": c.message} for c in conditions}


def _dpu(dpu: Dpu) -> dict[str, Any]:
    """`completion_s` is -1 for a DPU that nobody asked for, `inf` for one that never got Ready."""
    status = dpu.status
    conditions = status.conditions if status else ()
    return {
        **_meta(dpu), "host": dpu.spec.dpu_node_name, "phase": status.phase if status else "",
        "ready": condition_status(conditions, "Ready") == "True", "bfb": dpu.spec.bfb, "flavor": dpu.spec.dpu_flavor,
        "cluster": dpu.spec.cluster.name, "node_labels": dict(dpu.spec.cluster.node_labels),
        "conditions": _conditions(conditions),
    }


def _set(dpuset: DpuSet) -> dict[str, Any]:
    spec = dpuset.spec.dpu_template.spec
    return {**_meta(dpuset), "bfb": spec.bfb.name, "flavor": spec.dpu_flavor,
            "statistics": dict(dpuset.status.dpu_statistics) if dpuset.status else {}}


def _bfb(bfb: Bfb) -> dict[str, Any]:
    """`bsp` is the version read from the file, '' before that."""
    status = bfb.status
    versions = status.versions if status else None
    return {**_meta(bfb), "phase": status.phase if status else "", "file": (status.file_name if status else "") or "",
            "bsp": (versions.bsp if versions else "") or ""}


def _cluster(cluster: DpuCluster) -> dict[str, Any]:
    status = cluster.status
    conditions = status.conditions if status else ()
    ready = condition(conditions, "Ready")
    return {**_meta(cluster), "phase": status.phase if status else "", "reason": ready.reason if ready else "",
            "conditions": _conditions(conditions)}


def _dpunode(node: DpuNode) -> dict[str, Any]:
    status = node.status
    conditions = status.conditions if status else ()
    return {**_meta(node), "ready": condition_status(conditions, "Ready") == "True",
            "conditions": _conditions(conditions)}


def _node(node: Node) -> dict[str, Any]:
    return {**_meta(node), "cordoned": node.spec.unschedulable, "taints": [t.key for t in node.spec.taints],
            "ready": condition_status(node.status.conditions, "Ready") == "True"}


def _pod(pod: Pod) -> dict[str, Any]:
    return {**_meta(pod), "host": pod.spec.node_name, "phase": pod.status.phase}


def _maintenance(m: NodeMaintenance) -> dict[str, Any]:
    return {**_meta(m), "host": m.spec.node_name, "requestors": list(m.spec.additional_requestors),
            "conditions": _conditions(m.status.conditions if m.status else ())}


def _event(event: Event) -> dict[str, Any]:
    about = event.involved_object
    return {"about": f"{about.kind}/{about.name}", "type": event.type, "reason": event.reason,
            "message": event.message, "count": event.count}


RECORDS: dict[str, tuple[type[Object], Callable[[Any], dict[str, Any]]]] = {
    "dpus": (Dpu, _dpu), "dpusets": (DpuSet, _set), "bfbs": (Bfb, _bfb), "clusters": (DpuCluster, _cluster),
    "dpunodes": (DpuNode, _dpunode), "devices": (DpuDevice, _meta), "nodes": (Node, _node), "pods": (Pod, _pod),
    "maintenances": (NodeMaintenance, _maintenance), "events": (Event, _event),
}


# --- functions


def _quantile(q: float) -> Callable[[Sequence[float]], float]:
    def of(values: Sequence[float]) -> float:
        ordered = sorted(float(v) for v in values)
        if not ordered:
            return math.inf
        return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1 if q > 0 else 0)]

    return of


def _spans(records: Iterable[Mapping[str, Any]]) -> list[SpanRow]:
    return [SpanRow(r["dpu"], r["start_s"], r["end_s"], "") for r in records]


VALUES: Final = (
    "second", "minute", "hour", "dpu_nodes", "objects", "cards", "completion_s", "unavailable", "reboots",
    "device_changes", "reasons", "converged", "pending", "warnings", "known_issues", "virtual_s", "controllers",
    "outages", "waits", "faults", "phases")
"""What `facts` has beside RECORDS."""

FUNCTIONS: dict[str, Any] = {
    "p50": _quantile(0.5), "p90": _quantile(0.9), "p95": _quantile(0.95),
    "max_of": lambda values: max((float(v) for v in values), default=0.0),
    "min_of": lambda values: min((float(v) for v in values), default=0.0),
    "count": lambda values: len(values),
    "peak": lambda records: unavailability(_spans(records), {}).max,
    "seconds": lambda records: math.fsum(r["end_s"] - r["start_s"] for r in records),
}
