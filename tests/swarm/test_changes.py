"""People change an installation at any moment, and some things break: it comes to an end, or says what holds it.

Any shape of fleet, any node effect and reboot method, any policies; one DPUSet, two, or a DPUDeployment. Collapsed and
event-by-event polling must agree on each plan. `SWARM_SEEDS=1000:1200 pytest tests/swarm` runs many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stories import ROOT, changed, written

from controllers.warts import POLICIES
from scenarios.base import Scenario
from scenarios.run import run
from twin.sim.world import Options

SAVED = {1051: "two DPUs whose joins were refused joined in one instant, in another order with polling collapsed"}
"""Seeds that once found something, and what."""
SEEDS = range(*map(int, os.environ.get("SWARM_SEEDS", "0:6").split(":")))
NS = "dpf-operator-system"
DAY_S = 4 * 3600.0
"""Everything begins within this time."""
EFFECTS = ("{drain: true}", "{drain: true}", "{noEffect: true}", "{hold: true}", "{customLabel: {a: b}}",
           "{taint: {key: dpu, value: x, effect: NoSchedule}}")
BUDGETS: tuple[int | str, ...] = (1, 2, "10%", "50%", "100%", 0, "abc")
PROPAGATIONS = ("Background", "Foreground", "Orphan")
EVERY_HOST = '[{nameSuffix: all, nodeSelector: {matchLabels: {feature.node.kubernetes.io/dpu-enabled: "true"}}}]'
Steps = list[dict[str, Any]]


class Plan:
    """What one seed comes to."""

    def __init__(self, seed: int) -> None:
        self.r = r = random.Random(f"{seed}/changes")
        racks, hosts, per_host = r.choice([1, 2]), r.choice([1, 2, 3]), r.choice([1, 1, 2])
        self.hosts = [f"worker{n}" for n in range(1, racks * hosts + 1)]
        self.racks = [f"r{n}" for n in range(1, racks + 1)]
        self.dpus = [f"{h}-0000-{slot}-00" for h in self.hosts for slot in ("2b", "a2")[:per_host]]
        self.deployment = r.random() < 0.3
        self.dpusets = ["edge-all"] if self.deployment else ["fleet", "other"]
        self.generate: dict[str, Any] = {
            "racks": racks, "hosts_per_rack": hosts, "dpus_per_host": per_host,
            "host": {"kubernetes": r.random() > 0.15, "reboot": r.choice(["gNOI", "gNOI", "external"])},
            "dpu": {"fw_reset": r.random() < 0.4}}
        self.effect, self.budget = r.choice(EFFECTS), r.choice(BUDGETS[:5])
        self.policies = r.sample(list(POLICIES), r.choice([0, 0, 1, 3, 8, len(POLICIES)]))
        self.timing = r.choice(["fixed", "default"])
        self.steps: Steps = []
        if "hold" in self.effect:
            self.steps.append(looked_after("DPU", "wait-for-external-nodeeffect", "false"))
        if self.generate["host"]["reboot"] == "external":
            self.steps.append(looked_after("DPUNode", "dpunode-external-reboot-required", None))
        for _ in range(r.randint(1, 5)):
            at = round(r.choice([r.uniform(0, DAY_S), r.uniform(0, 600), 7200.0]), 3)
            self.steps += r.choice(CHANGES)(self, at)
        for _ in range(r.choice([0, 0, 1, 3])):
            self.steps.append({"at": round(r.uniform(0, DAY_S), 3), "for": round(r.uniform(1, 3600), 3),
                               "fault": r.choice(FAULTS)(self)})

    def scenario(self, folder: Path, seed: int) -> Scenario:
        manifests = ROOT / "scenarios" / "manifests"
        kind = "deployment" if self.deployment else "fleet-set"
        return written(folder, fleet={"generate": self.generate}, timeline=self.steps, timing=self.timing, seed=seed,
                       manifests=[str(manifests / "common"), str(manifests / kind)], policies=self.policies,
                       horizon="48h", variables={
            "STRATEGY": f"{{type: RollingUpdate, rollingUpdate: {{maxUnavailable: {self.budget}}}}}",
            "NODE_EFFECT": self.effect, "FLAVOR": "plain", "ANNOTATIONS": "{}", "NODE_LABELS": "{z: '1'}",
            "DPU_SETS": EVERY_HOST})


def looked_after(kind: str, annotation: str, value: str | None) -> dict[str, Any]:
    return {"at": 0, "operator": {"kind": kind, "annotation": f"provisioning.dpu.nvidia.com/{annotation}",
                                  "value": value, "after": "5m"}}


def image(plan: Plan, at: float) -> Steps:
    name = plan.r.choice(["bf-bundle-2", "bf-bundle-2", "bf-bundle-1", "nope"])
    apply = {"at": at, "apply": str(ROOT / "scenarios" / "manifests" / "next-bfb")}
    if plan.deployment and plan.r.random() < 0.7:
        return [apply, changed(at, "DPUDeployment", "edge", {"spec": {"dpus": {"bfb": name}}})]
    return [apply, template(plan, at, {"bfb": {"name": name}})]


def template(plan: Plan, at: float, spec: dict[str, Any]) -> dict[str, Any]:
    return changed(at, "DPUSet", plan.dpusets[0], {"spec": {"dpuTemplate": {"spec": spec}}})


def second_set(plan: Plan, at: float) -> Steps:
    selector = plan.r.choice([{}, {"matchLabels": {"kubernetes.io/hostname": plan.hosts[0]}}])
    return [{"at": at, "apply": {
        "apiVersion": "provisioning.dpu.nvidia.com/v1alpha1", "kind": "DPUSet",
        "metadata": {"name": "other", "namespace": NS}, "spec": {
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "dpuNodeSelector": selector, "dpuTemplate": {"spec": {
                "bfb": {"name": "bf-bundle-1"}, "dpuFlavor": "plain", "nodeEffect": {"noEffect": True}}}}}}]


def narrowed(plan: Plan, at: float) -> Steps:
    """The DPUSet selects one host, and maybe all again after a while."""
    def select(at: float, host: str | None) -> dict[str, Any]:
        return changed(at, "DPUSet", plan.dpusets[0], {"spec": {"dpuNodeSelector": {"matchLabels": {
            "kubernetes.io/hostname": host}}}})
    return [select(at, plan.r.choice(plan.hosts)), *([select(at + 1800, None)] if plan.r.random() < 0.5 else [])]


def deleted(kind: str, names: Callable[[Plan], list[str]], namespace: str = NS) -> Callable[[Plan, float], Steps]:
    return lambda plan, at: [{"at": at, "delete": {
        "kind": kind, "namespace": namespace, "name": plan.r.choice(names(plan)),
        "propagation": plan.r.choice(PROPAGATIONS)}}]


CHANGES: tuple[Callable[[Plan, float], Steps], ...] = (
    image, image, narrowed, second_set,
    lambda plan, at: [template(plan, at, {"dpuFlavor": plan.r.choice(["plain", "nope"])})],
    lambda plan, at: [template(plan, at, {"cluster": {"nodeLabels": {"z": plan.r.choice(["1", "2", None])}}})],
    lambda plan, at: [changed(at, "DPUSet", plan.dpusets[0], {"spec": {"strategy": {
        "type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": plan.r.choice(BUDGETS)}}}})],
    lambda plan, at: [changed(at, "DPUCluster", "dpu-cluster", {"spec": {"maxNodes": plan.r.choice([1, 2, 10])}})],
    lambda plan, at: [{"at": at, "restart": "*"}],
    lambda plan, at: [{"at": at, "scale": {"hosts": plan.r.randint(0, len(plan.hosts))}}],
    lambda plan, at: [{"at": at, "cordon": {"node": plan.r.choice(plan.hosts)}, "for": plan.r.choice([10, 3600])}],
    deleted("DPU", lambda plan: plan.dpus), deleted("DPUSet", lambda plan: plan.dpusets),
    deleted("DPUDeployment", lambda plan: ["edge"]), deleted("BFB", lambda plan: ["bf-bundle-1", "bf-bundle-2"]),
    deleted("DPUNode", lambda plan: plan.hosts), deleted("DPUDevice", lambda plan: plan.dpus),
    deleted("DPUCluster", lambda plan: ["dpu-cluster"]), deleted("NodeMaintenance", lambda plan: plan.hosts),
    deleted("Pod", lambda plan: [f"{h}-dms" for h in plan.hosts]), deleted("Node", lambda plan: plan.hosts, ""),
)
FAULTS: tuple[Callable[[Plan], dict[str, Any]], ...] = (
    lambda plan: {"kind": "host-power", "host": plan.r.choice(plan.hosts)},
    lambda plan: {"kind": "rack-power", "rack": plan.r.choice(plan.racks)},
    lambda plan: {"kind": "dms-unreachable", "host": plan.r.choice(plan.hosts), "how": "black-hole"},
    lambda plan: {"kind": "install-fails", "dpu": plan.r.choice(plan.dpus), "attempts": [1, 3]},
    lambda plan: {"kind": "dpu-api-down"}, lambda plan: {"kind": "api-down"}, lambda plan: {"kind": "nfs-down"},
    lambda plan: {"kind": "watch-duplicate"}, lambda plan: {"kind": "webhook-down"},
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*SAVED, *SEEDS])
def test_whatever_people_change_it_converges_or_says_what_holds_it(seed: int, tmp_path: Path) -> None:
    story = Plan(seed).scenario(tmp_path, seed)
    found = run(story)

    assert found.converged == (not found.pending)
    silent = [line for line in found.pending if not any(why in line for why in (
        ": ", " still ", " no DPU ", " no DPU:", "whose DPU belongs", " more"))]
    assert silent == [], Plan(seed).steps
    assert run(story, options=Options(collapse=False)).trace.digest == found.trace.digest, Plan(seed).steps


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert Plan(3).steps == Plan(3).steps
    assert Plan(3).steps != Plan(4).steps
