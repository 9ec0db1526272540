"""What the proofs over whole scenarios share: the library, generated fleets, and what a run comes to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fleets import fleet
from scenarios.base import Scenario
from scenarios.load import load_scenario
from scenarios.result import Run
from twin.model.meta import Condition
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuNode, DpuSet

ROOT = Path(__file__).parents[2]
LIBRARY = tuple(sorted(p.stem for p in (ROOT / "scenarios" / "library").glob("*.yaml")))


@cache
def story(name: str) -> Scenario:
    return load_scenario(ROOT / "scenarios" / "library" / f"{name}.yaml")


def generated(hosts: int, dpus_per_host: int = 1, *, update: bool = False) -> Scenario:
    """A first install of a generated fleet; `update`: and a new BFB once it is over."""
    return fleet(hosts, dpus_per_host, update=update)


def written(folder: Path, **changes: Any) -> Scenario:
    """The basic manifests on one host with one DPU and fixed times; `changes` replace parts of the scenario file."""
    file: dict[str, Any] = {
        "apiVersion": "dpf-twin/v1", "name": "written", "fleet": {"generate": {"racks": 1, "hosts_per_rack": 1}},
        "manifests": [str(ROOT / "scenarios" / "manifests" / "basic")], "timing": "fixed", "horizon": "24h"}
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(file | changes))
    return load_scenario(path)


def changed(at: float, kind: str, name: str, merge: dict[str, Any]) -> dict[str, Any]:
    """An entry of the timeline: a merge patch of an object in the operator's namespace."""
    return {"at": at, "patch": {"kind": kind, "namespace": "dpf-operator-system", "name": name, "merge": merge}}


def outcome(run: Run) -> dict[str, object]:
    """What the run came to: phases, conditions with their reasons, expectations; no times, no messages, no versions."""
    found: dict[str, object] = {"converged": run.converged}
    for o in run.objects[""]:
        if isinstance(o, Dpu | Bfb | DpuCluster | DpuNode | DpuSet | DpuDevice):
            status = getattr(o, "status", None)
            conditions: tuple[Condition, ...] = getattr(status, "conditions", ())
            found[f"{o.KIND}/{o.metadata.namespace}/{o.metadata.name}"] = (
                getattr(status, "phase", ""), sorted((c.type, c.status, c.reason) for c in conditions))
    return found | {e.expr: e.holds for e in run.expectations}
