"""Deleting and Error: order, hard dependencies, what is left behind (provisioning.md 8.6, 2.2)."""

from __future__ import annotations

from typing import Any

import pytest
from dpu_bench import NS, Bench, meta

from controllers.provisioning.allocator import Allocator
from twin.model.core import Certificate, CertificateRequest, Node, NodeMaintenance, Secret
from twin.model.meta import Key, replace
from twin.model.names import Finalizer
from twin.model.provisioning import Dpu, DpuCluster, DpuClusterRef, DpuNode, DpuStatus, NodeEffect, Phase, Taint
from twin.sim.volume import File


def deleting(*, phase: str = Phase.READY, joined: bool = True, **more: Any) -> Bench:
    """A DPU with everything that a life leaves behind, just deleted."""
    spec = more.pop("spec", {})
    bench = Bench(**more)
    bench.patch(DpuNode, bench.host, {"metadata": {"finalizers": [Finalizer.DPUNODE]}})
    dpu = bench.at(phase, **spec)
    bench.volume.put(cfg(dpu), File("cfg", 1, content=b"x"))
    bench.hosts.attach(bench.card, 16, 1500)
    if joined:
        bench.node()
    bench.delete(Dpu, bench.name)
    return bench


def cfg(dpu: Dpu) -> str:
    return f"/bfb/{dpu.metadata.name}-{dpu.metadata.uid}.cfg"


def why(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("Deleting")


def test_a_deletion_undoes_everything_within_a_second() -> None:
    bench = deleting()
    path = cfg(bench.get(Dpu, bench.name))
    bench.run(5)
    assert bench.gone(Dpu, bench.name)
    assert path not in bench.volume.files
    assert bench.server.find(Node, Key("", bench.name)) is None
    assert bench.card.host.bridged == {}
    assert bench.card.host.vfs == {"0000:2b:00": 16}  # the VFs stay
    assert bench.get(DpuNode, bench.host).metadata.finalizers == ()
    assert bench.card.host.boots == 0


def test_the_order_is_upstreams() -> None:
    bench = deleting().run(5)
    assert bench.writes == ["status", "volume remove", "delete", "dms network-delete", "update", "update"]


def test_leftovers_named_after_the_dpu_cost_one_more_pass() -> None:
    bench = deleting()
    for kind, name in ((Certificate, f"{bench.name}-dms-server-cert"), (Secret, f"{bench.name}-server-secret"),
                       (CertificateRequest, bench.name)):
        bench.create(kind(metadata=meta(name)))
    bench.run(4)
    assert not bench.gone(Dpu, bench.name)
    assert bench.gone(Certificate, f"{bench.name}-dms-server-cert")
    assert bench.gone(Secret, f"{bench.name}-server-secret")
    assert bench.gone(CertificateRequest, bench.name)
    bench.run(4)
    assert bench.gone(Dpu, bench.name)


@pytest.mark.parametrize(("trouble", "reason", "message"), [
    ("nfs", "DeleteBFBCFGFileError", "stat /bfb/"),
    ("cluster", "DeleteNodeError",
     'failed to delete node, err: Delete "https://c1.example:6443/api/v1/nodes/worker1-0000-2b-00": dial tcp'),
    ("kubeconfig", "DeleteNodeError", "failed to delete node, err: Secret"),
    ("secret", "CreateGRPCConnectionError", "client secret not found"),
    ("dms", "ExecuteDMSDebugCmdError", "rpc error: code = Unavailable"),
    ("pci", "GetPCIAddrFromDPUError", "PCI address"),
    ("node", "CreateGRPCConnectionError", 'DPUNode.provisioning.dpu.nvidia.com "worker1" not found'),
])
def test_each_hard_dependency_blocks_until_it_is_back(trouble: str, reason: str, message: str) -> None:
    bench = deleting(spec={"pci_address": None} if trouble == "pci" else {})
    if trouble == "nfs":
        bench.volume.outage(True)
    if trouble == "cluster":
        bench.cluster_down()
    if trouble == "kubeconfig":
        bench.delete(Secret, "c1-admin-kubeconfig")
    if trouble == "secret":
        bench.delete(Secret, "dpf-provisioning-client-secret")
    if trouble == "dms":
        bench.dms.stop(bench.host)
    if trouble == "node":
        bench.patch(DpuNode, bench.host, {"metadata": {"finalizers": None}})
        bench.delete(DpuNode, bench.host)
    bench.run(600)
    assert why(bench)[:2] == ("False", reason)
    assert why(bench)[2].startswith(message)
    assert bench.phase() == Phase.DELETING
    if trouble == "nfs":
        bench.volume.outage(False)
    if trouble == "cluster":
        bench.cluster_down(False)
    if trouble == "dms":
        bench.dms.start(bench.host)
    if trouble in ("nfs", "cluster", "dms"):
        bench.run(6)
        assert bench.gone(Dpu, bench.name)


def test_a_blocked_deletion_costs_nothing_while_nothing_changes() -> None:
    bench = deleting()
    bench.dms.stop(bench.host)
    bench.run(60)
    before = bench.passes
    bench.run(3600)
    assert bench.passes == before


@pytest.mark.parametrize(("verb", "reason"), [
    ("update", "RemoveDPUNodeFinalizerError"), ("delete", "DeleteObjectsError")])
def test_writes_that_fail_are_told_and_tried_again(verb: str, reason: str) -> None:
    bench = deleting(joined=False)
    bench.create(Secret(metadata=meta(f"{bench.name}-server-secret")))
    bench.refuse(verb)
    bench.run(20)
    assert why(bench)[:2] == ("False", reason)
    bench.heal()
    bench.run(11)
    assert bench.gone(Dpu, bench.name)


def test_the_last_write_may_fail_too() -> None:
    bench = deleting(joined=False)
    bench.patch(DpuNode, bench.host, {"metadata": {"finalizers": None}})
    bench.refuse("update")
    bench.run(20)
    assert why(bench)[:2] == ("False", "UpdateError")


def test_a_dpu_that_never_had_an_interface_needs_no_dms() -> None:
    bench = deleting(phase=Phase.INITIALIZING, joined=False, spec={"cluster": DpuClusterRef()})
    bench.stored(bench.name, DpuStatus(phase=Phase.INITIALIZING))
    bench.dms.stop(bench.host)
    bench.run(1)
    assert bench.gone(Dpu, bench.name)


def test_without_its_dpucluster_the_node_is_left_behind() -> None:
    bench = deleting()
    bench.delete(DpuCluster, "c1")
    bench.run(5)
    assert bench.gone(Dpu, bench.name)
    assert bench.server.find(Node, Key("", bench.name)) is not None


def test_its_place_in_the_cluster_is_free_as_soon_as_it_is_deleting() -> None:
    bench = deleting()
    bench.dms.stop(bench.host)
    bench.run(5)
    allocator = bench.manager.memory.get(Allocator)
    assert allocator.count(Key(NS, "c1")) == 0
    assert not bench.gone(Dpu, bench.name)


def test_the_first_dpu_of_a_host_takes_the_dpunodes_finalizer() -> None:
    bench = deleting(dpus_per_host=2)
    bench.at(Phase.READY, name=bench.fleet.cards[1].name)
    bench.run(5)
    assert bench.get(DpuNode, bench.host).metadata.finalizers == ()


def test_the_policy_leaves_the_finalizer_to_the_last_dpu() -> None:
    bench = deleting(dpus_per_host=2, policies=["dpunode-finalizer-ref-count"])
    second = bench.fleet.cards[1].name
    bench.at(Phase.READY, name=second)
    bench.run(5)
    assert bench.get(DpuNode, bench.host).metadata.finalizers == (Finalizer.DPUNODE,)
    bench.delete(Dpu, second)
    bench.run(5)
    assert bench.get(DpuNode, bench.host).metadata.finalizers == ()


def test_an_effect_that_cannot_be_lifted_blocks_first() -> None:
    taint = Taint(key="dpu", effect="NoSchedule")
    bench = deleting(spec={"node_effect": NodeEffect(taint=taint)})
    worker = bench.get(Node, bench.host, "")
    bench.kube.update(replace(worker, spec=replace(worker.spec, taints=(taint,))), "test", bench.env.now)
    bench.refuse("update")
    bench.run(20)
    assert why(bench)[:2] == ("False", "RemoveNodeEffectError")
    assert "volume remove" not in bench.writes


def test_a_deletion_during_a_drain_ends_the_maintenance() -> None:
    bench = Bench()
    bench.at(Phase.NODE_EFFECT, node_effect=NodeEffect(drain=True))
    bench.run(1)
    assert not bench.gone(NodeMaintenance, bench.host)
    bench.delete(Dpu, bench.name)
    bench.run(5)
    assert bench.gone(NodeMaintenance, bench.host)


# --- Error


def test_error_gives_the_worker_back_and_says_nothing() -> None:
    taint = Taint(key="dpu", effect="NoSchedule")
    bench = Bench()
    worker = bench.get(Node, bench.host, "")
    bench.kube.update(replace(worker, spec=replace(worker.spec, taints=(taint,))), "test", bench.env.now)
    bench.at(Phase.ERROR, node_effect=NodeEffect(taint=taint))
    bench.run(1)
    assert bench.get(Node, bench.host, "").spec.taints == ()
    assert bench.status().conditions == ()


def test_error_tells_when_the_worker_cannot_be_given_back_and_backs_off() -> None:
    taint = Taint(key="dpu", effect="NoSchedule")
    bench = Bench()
    worker = bench.get(Node, bench.host, "")
    bench.kube.update(replace(worker, spec=replace(worker.spec, taints=(taint,))), "test", bench.env.now)
    bench.at(Phase.ERROR, node_effect=NodeEffect(taint=taint))
    bench.refuse("update")
    bench.run(60)
    assert bench.is_("Error")[:2] == ("False", "RemoveNodeEffectError")
    assert bench.runner.stats.errors > 5
    bench.heal()
    bench.run(60)
    assert bench.get(Node, bench.host, "").spec.taints == ()


def test_a_dpu_in_error_leaves_only_by_deletion() -> None:
    bench = Bench()
    bench.at(Phase.ERROR)
    bench.run(3600)
    assert bench.phase() == Phase.ERROR
    bench.delete(Dpu, bench.name)
    bench.run(5)
    assert bench.gone(Dpu, bench.name)

