"""Expectations: CEL over the summary and the final state (what a scenario's `expect` may say).

Names: `dpus`, `dpusets`, `bfbs`, `clusters`, `nodes` (lists of plain records), every key of the summary that is known
before expectations (`unavailable`, `reboots`, `pending`, `converged`, `warnings`, ...), `completion_s` (a list of
seconds per DPU), and the functions `p50`, `p90`, `p95`, `max_of`, `min_of`, `count`. `second`, `minute`, `hour` are 1,
60 and 3600.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cel

from scenarios.result import Expectation, Run
from twin.model.core import Node
from twin.model.meta import Object, condition, condition_status
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuSet


def judge(expressions: Sequence[str], run: Run) -> list[Expectation]:
    """Evaluate each expression at the end of a run. One that cannot be evaluated does not hold; `value` says why."""
    if not expressions:
        return []
    variables = facts(run)
    return [_judged(e, variables) for e in expressions]


def _judged(expression: str, variables: dict[str, Any]) -> Expectation:
    context = cel.Context(variables=variables, functions=FUNCTIONS)
    try:
        value = cel.evaluate(expression, context)
    except Exception as error:
        return Expectation(expr=expression, holds=False, value=f"cannot be evaluated: {error}")
    return Expectation(expr=expression, holds=value is True, value=_plain(value))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else repr(value)


def facts(run: Run) -> dict[str, Any]:
    """What expressions see."""
    host = run.objects.get("", ())
    completions = {d: p.completion_s for d, p in run.completions().items()}
    unavailable = run.unavailability()
    return {
        "second": 1.0, "minute": 60.0, "hour": 3600.0,
        "dpus": [_dpu(o, completions) for o in host if isinstance(o, Dpu)],
        "dpusets": [_set(o) for o in host if isinstance(o, DpuSet)],
        "bfbs": [{"name": o.metadata.name, "namespace": o.metadata.namespace, "phase": o.status.phase if o.status else ""}
                 for o in host if isinstance(o, Bfb)],
        "clusters": [_cluster(o) for o in host if isinstance(o, DpuCluster)],
        "nodes": [_node(o) for o in host if isinstance(o, Node)],
        "objects": {cluster or "host": [o.metadata.name for o in objects] for cluster, objects in run.objects.items()},
        "completion_s": [s for s in completions.values() if math.isfinite(s)],
        "unavailable": {"max": unavailable.max, "max_per_rack": unavailable.max_per_rack, "dpu_s": unavailable.dpu_s},
        "reboots": {"host": _changes(run, ("host-reboot", "host-power-cycle")), "dpu": _changes(run, ("dpu-reboot",))},
        "device_changes": dict(run.trace.device_changes),
        "converged": run.converged, "pending": list(run.pending), "warnings": list(run.warnings),
        "known_issues": list(run.known_issues), "virtual_s": run.virtual_s, "events": _events(host),
        "waits": sorted({w.label for w in run.waits()}),
        "phases": [{"dpu": p.dpu, "phase": p.phase, "start_s": p.start_s, "end_s": p.end_s, "outcome": p.outcome,
                    "attempt": p.attempt} for p in run.phases()],
    }


def _changes(run: Run, what: tuple[str, ...]) -> int:
    return sum(run.trace.device_changes.get(w, 0) for w in what)


def _dpu(dpu: Dpu, completions: dict[str, float]) -> dict[str, Any]:
    status = dpu.status
    conditions = status.conditions if status else ()
    return {
        "name": dpu.metadata.name, "namespace": dpu.metadata.namespace, "host": dpu.spec.dpu_node_name,
        "phase": status.phase if status else "", "ready": condition_status(conditions, "Ready") == "True",
        "bfb": dpu.spec.bfb, "flavor": dpu.spec.dpu_flavor, "cluster": dpu.spec.cluster.name, "deleting": dpu.deleting,
        "node_labels": dict(dpu.spec.cluster.node_labels),
        "conditions": {c.type: {"status": c.status, "reason": c.reason, "message": c.message} for c in conditions},
        "completion_s": completions.get(dpu.metadata.name, -1.0),
    }


def _set(dpuset: DpuSet) -> dict[str, Any]:
    return {"name": dpuset.metadata.name, "namespace": dpuset.metadata.namespace,
            "statistics": dict(dpuset.status.dpu_statistics) if dpuset.status else {}}


def _cluster(cluster: DpuCluster) -> dict[str, Any]:
    conditions = cluster.status.conditions if cluster.status else ()
    ready = condition(conditions, "Ready")
    return {"name": cluster.metadata.name, "namespace": cluster.metadata.namespace,
            "phase": cluster.status.phase if cluster.status else "", "reason": ready.reason if ready else ""}


def _node(node: Node) -> dict[str, Any]:
    return {"name": node.metadata.name, "cordoned": node.spec.unschedulable, "labels": dict(node.metadata.labels),
            "taints": [t.key for t in node.spec.taints],
            "ready": condition_status(node.status.conditions, "Ready") == "True"}


def _events(objects: Sequence[Object]) -> list[dict[str, Any]]:
    from twin.model.core import Event

    return [{"about": f"{o.involved_object.kind}/{o.involved_object.name}", "type": o.type, "reason": o.reason,
             "message": o.message, "count": o.count} for o in objects if isinstance(o, Event)]


def _quantile(q: float) -> Any:
    def of(values: Sequence[float]) -> float:
        ordered = sorted(float(v) for v in values)
        if not ordered:
            return math.inf
        return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1 if q > 0 else 0)]

    return of


FUNCTIONS: dict[str, Any] = {
    "p50": _quantile(0.5), "p90": _quantile(0.9), "p95": _quantile(0.95),
    "max_of": lambda values: max((float(v) for v in values), default=0.0),
    "min_of": lambda values: min((float(v) for v in values), default=0.0),
    "count": lambda values: len(values),
}
