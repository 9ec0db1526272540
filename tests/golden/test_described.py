"""Runs upstream's tree was put through whose recordings are not at hand, as provisioning.md tells them ([run 2025-02]).

The same stand-ins' times as for the recordings (`stage.times`), in our world.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.golden.recording import Recording, Step
from tests.golden.stage import Play
from tests.golden.translate import NAMESPACE
from twin.model.core import Event, Node
from twin.model.meta import Key, condition_status
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuSet
from twin.sim.clock import ns
from twin.sim.neighbours import bring_up

PROVISIONING = "provisioning.dpu.nvidia.com/v1alpha1"
FEATURE = "feature.node.kubernetes.io/"
OLD, NEW = "bf-bundle-2.9.1-40.bfb", "bf-bundle-3.0.0-135.bfb"
FAST = {"install_delay": "0.5", "activate_delay": "0.5", "reboot_active": "0.5", "host_down": "3", "join_delay": "1.0"}


def manifest(kind: str, name: str, spec: dict[str, Any], version: str = PROVISIONING) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def worker(i: int, reboot: str) -> dict[str, Any]:
    labels = {FEATURE + "dpu-enabled": "true", FEATURE + "dpu-oob-bridge-configured": "",
              FEATURE + "dpu-0-pci-address": "0000-2b-00", FEATURE + "dpu-0-pf0-name": "ens1f0np0"}
    return {"kind": "Node", "metadata": {"name": f"worker{i}", "labels": labels, "annotations": {
        "provisioning.dpu.nvidia.com/reboot-command": reboot}}}


class Fleet:
    """Workers with a DPU each, a static DPUCluster, two BFBs; a DPUSet when asked for."""

    def __init__(self, workers: int = 2, reboot: str = "skip", **settings: str) -> None:
        secret = {"kind": "Secret", "metadata": {"name": "kc", "namespace": NAMESPACE},
                  "stringData": {"admin.conf": ""}}
        documents = [
            *(worker(i + 1, reboot) for i in range(workers)),
            manifest("DPFOperatorConfig", "dpfoperatorconfig", {
                "provisioningController": {"bfbPVCName": "bfb-pvc"}}, "operator.dpu.nvidia.com/v1alpha1"),
            manifest("DPUFlavor", "flavor-1", {"nvconfig": [{"device": "*", "parameters": ["PF_TOTAL_SF=20"]}]}),
            secret, manifest("DPUCluster", "c", {"type": "static", "version": "v1.30.2", "kubeconfig": "kc"}),
            bfb("old", OLD), bfb("new", NEW)]
        steps = tuple(Step(0.0, "create", 201, "", d) for d in documents)
        self.play = Play(Recording("described", steps, (), {**FAST, **settings}))
        self.world = self.play.world
        self.kube = self.world.host_cluster
        self.world.start(bring_up)  # with all hosts in service
        for step in steps:
            self.play._create(step)
        self.run(20)

    def run(self, seconds: float) -> None:
        self.world.env.run(until=self.world.env.now + ns(seconds))

    def until(self, there: Callable[[], bool], limit_s: float = 300.0, step_s: float = 0.02) -> float:
        """Run until this is so; returns the time in seconds."""
        end = self.world.env.now + ns(limit_s)
        while not there():
            assert self.world.env.now < end, f"not within {limit_s} s: {self.phases()}"
            self.run(step_s)
        return self.world.env.now_s

    def create(self, document: dict[str, Any]) -> None:
        self.kube.create_manifest(document, "kubectl", self.world.env.now)

    def dpuset(self, max_unavailable: int | str = 1, bfb_name: str = "old") -> None:
        self.create(manifest("DPUSet", "s", {
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": max_unavailable}},
            "dpuTemplate": {"spec": {"bfb": {"name": bfb_name}, "dpuFlavor": "flavor-1",
                                     "nodeEffect": {"noEffect": True}}}}))
        self.until(self.all_ready)

    def template(self, bfb_name: str) -> None:
        self.kube.patch_resource(DpuSet, Key(NAMESPACE, "s"), {"spec": {"dpuTemplate": {"spec": {
            "bfb": {"name": bfb_name}}}}}, "kubectl", self.world.env.now)

    def dpus(self) -> list[Dpu]:
        return sorted(self.world.dpus(), key=lambda d: d.metadata.name)

    def phases(self) -> list[str]:
        return [d.status.phase if d.status else "" for d in self.dpus()]

    def ready(self) -> list[str]:
        return [d.metadata.name for d in self.dpus() if not d.deleting
                and condition_status(d.status.conditions if d.status else (), "Ready") == "True"]

    def all_ready(self) -> bool:
        return len(self.ready()) == len(self.world.fleet.hosts)

    def on(self, bfb_name: str) -> list[str]:
        return [d.metadata.name for d in self.dpus() if d.spec.bfb == bfb_name]

    def events(self, reason: str) -> dict[str, int]:
        return {e.message: e.count for e in self.kube.table(Event).values()
                if isinstance(e, Event) and e.reason == reason}


def bfb(name: str, file: str, **spec: Any) -> dict[str, Any]:
    return manifest("BFB", name, {"url": f"http://127.0.0.1:8000/{file}", **spec})


# --- roll-outs (5.2)


def test_half_of_four_is_two_and_the_third_starts_when_the_first_is_ready() -> None:
    """d2."""
    fleet = Fleet(workers=4)
    fleet.dpuset("50%")
    fleet.template("new")
    fleet.until(lambda: len(fleet.ready()) == 2)
    fleet.run(0.5)
    first = set(fleet.ready())
    assert len(first) == 2, "two at once"
    # the two go through their installs together; as soon as one is Ready a third goes
    fleet.until(lambda: bool(set(fleet.ready()) - first))
    fleet.run(0.3)
    assert len(first & set(fleet.ready())) < 2
    fleet.until(lambda: fleet.all_ready() and len(fleet.on("new")) == 4)


def test_an_outdated_dpu_that_is_not_ready_goes_first_and_alone() -> None:
    """d5: outside the budget; nothing else goes until it is Ready again."""
    fleet = Fleet(workers=3)
    fleet.dpuset(1)
    sick = fleet.dpus()[1].metadata.name
    fleet.world.hosts.set_p0(fleet.world.hosts.dpus[sick], False)
    fleet.until(lambda: sick not in fleet.ready())
    fleet.run(1)
    fleet.template("new")
    fleet.run(1)
    assert [d.metadata.name for d in fleet.dpus() if d.deleting or d.spec.bfb == "new"] == [sick]
    fleet.world.hosts.set_p0(fleet.world.hosts.dpus[sick], True)
    fleet.until(lambda: sick in fleet.ready() or len(fleet.on("new")) > 1)
    assert fleet.on("new") == [sick]
    fleet.until(lambda: fleet.all_ready() and len(fleet.on("new")) == 3)


def test_a_template_with_a_missing_bfb_costs_one_dpu_until_it_is_corrected() -> None:
    """d7: one lost to Pending, then stalled; the correction sweeps it at once and goes on."""
    fleet = Fleet(workers=3)
    fleet.dpuset(1)
    fleet.template("missing")
    fleet.run(120)
    assert sorted(fleet.phases()) == ["Pending", "Ready", "Ready"]
    lost = fleet.on("missing")
    fleet.template("new")
    fleet.run(1)
    assert not fleet.on("missing"), "swept at once"
    assert fleet.on("new") == lost
    fleet.until(lambda: fleet.all_ready() and len(fleet.on("new")) == 3)


# --- BFBs that share a file (4.1)


def test_a_bfb_with_the_file_of_another_is_ready_with_its_content_and_stuck_when_that_goes() -> None:
    """a5: the download is skipped; with the file gone its own download brings other versions, which are refused."""
    fleet = Fleet()
    fleet.create(bfb("first", OLD, fileName="shared.bfb"))
    fleet.until(lambda: phase_of(fleet, "first") == "Ready")
    fleet.create(bfb("second", NEW, fileName="shared.bfb"))
    fleet.run(1)
    assert phase_of(fleet, "second") == "Ready"
    first, second = (fleet.kube.get(Bfb, Key(NAMESPACE, n)).status for n in ("first", "second"))
    assert first is not None
    assert second is not None
    assert second.versions == first.versions
    fleet.kube.delete(Bfb, Key(NAMESPACE, "first"), "kubectl", fleet.world.env.now)
    fleet.run(60)
    assert phase_of(fleet, "second") == "Downloading"
    assert fleet.events("SuccessfulDownload")[f"Download BFB: ({NAMESPACE}/second) successful"] > 3
    assert any("BSP version is immutable" in look.error for look in fleet.play.looked)


def phase_of(fleet: Fleet, name: str) -> str:
    status = fleet.kube.get(Bfb, Key(NAMESPACE, name)).status
    return status.phase if status is not None else ""


# --- a DPUCluster that goes, and its Nodes (7.1, 8.6)


def test_a_dpucluster_with_dpus_goes_at_once_and_its_node_makes_the_next_dpu_ready_unjoined() -> None:
    """e5."""
    fleet = Fleet(workers=1)
    fleet.dpuset()
    name = fleet.dpus()[0].metadata.name
    server = next(iter(fleet.world.dpu_clusters.values()))
    fleet.kube.delete(DpuCluster, Key(NAMESPACE, "c"), "kubectl", fleet.world.env.now)
    fleet.run(0.2)
    assert fleet.kube.find(DpuCluster, Key(NAMESPACE, "c")) is None
    fleet.kube.delete(Dpu, Key(NAMESPACE, name), "kubectl", fleet.world.env.now)
    fleet.run(10)
    assert server.find(Node, Key("", name)) is not None, "the Node of the lost cluster stays"
    fleet.create(manifest("DPUCluster", "c", {"type": "static", "version": "v1.30.2", "kubeconfig": "kc"}))
    fleet.world.hosts.allow_join(fleet.world.hosts.dpus[name], False)
    fleet.until(lambda: fleet.phases() == ["DPU Cluster Config"])
    fleet.run(0.1)
    assert fleet.phases() == ["Ready"]


# --- the controller is killed (2.0)


def test_a_controller_killed_during_an_install_starts_it_again() -> None:
    """g1: the task is lost, its successor begins at once, counting from 0."""
    fleet = Fleet(workers=1, activate_delay="20")
    fleet.create(manifest("DPUSet", "s", {"dpuTemplate": {"spec": {
        "bfb": {"name": "old"}, "dpuFlavor": "flavor-1", "nodeEffect": {"noEffect": True}}}}))
    fleet.until(lambda: fleet.phases() == ["OS Installing"])
    fleet.run(5)
    assert fleet.play.trace.device_changes["installing"] == 1
    fleet.world.restart("provisioning")
    fleet.until(lambda: fleet.play.trace.device_changes["installing"] == 2, limit_s=40)
    fleet.until(fleet.all_ready)


def test_a_controller_killed_while_the_host_reboots_does_not_reboot_it_again() -> None:
    """g2: the uptime tells."""
    fleet = Fleet(workers=1, reboot="reset", host_down="40")
    fleet.create(manifest("DPUSet", "s", {"dpuTemplate": {"spec": {
        "bfb": {"name": "old"}, "dpuFlavor": "flavor-1", "nodeEffect": {"noEffect": True}}}}))
    fleet.until(lambda: fleet.play.trace.device_changes.get("host-reboot", 0) == 1)
    fleet.world.restart("provisioning")
    fleet.until(fleet.all_ready)
    assert fleet.play.trace.device_changes["host-reboot"] == 1
