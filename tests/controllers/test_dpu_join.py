"""Host Network Configuration, DPU Cluster Config and Ready (provisioning.md 2.2, phases 9 to 11)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from dpu_bench import NS, Bench, meta, true

from twin.model.core import DpfOperatorConfig, DpfOperatorConfigSpec, Node, ProvisioningController, Secret
from twin.model.meta import Key
from twin.model.provisioning import (
    Dpu,
    DpuCluster,
    DpuClusterRef,
    DpuFlavor,
    DpuFlavorSpec,
    NodeAddress,
    NvConfig,
    Phase,
)
from twin.sim.dms_servers import Attempts

LABELS = {"example.com/pool": "a"}


def at(phase: str, *, labels: dict[str, str] | None = None, policies: tuple[str, ...] = (), **spec: Any) -> Bench:
    bench = Bench(policies=policies)
    bench.at(phase, cluster=DpuClusterRef(name="c1", namespace=NS, node_labels=labels or {}), **spec)
    return bench


# --- Host Network Configuration


def network(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("HostNetworkReady")


def test_the_script_gives_the_host_its_vfs_and_the_bridge_its_member() -> None:
    bench = at(Phase.HOST_NETWORK_CONFIGURATION).run(1)
    assert network(bench) == ("False", "HostNetworkSetupInProgress", "operation in progress")
    bench.until(Phase.DPU_CLUSTER_CONFIG)
    assert network(bench) == ("True", "HostNetworkReady", "")
    assert bench.card.host.vfs == {"0000:2b:00": 46}
    assert "0000:2b:00" in bench.card.host.bridged


def test_a_flavor_that_names_no_vfs_gets_sixteen() -> None:
    bench = Bench()
    bench.create(DpuFlavor(metadata=meta("plain"), spec=DpuFlavorSpec(nvconfig=(NvConfig(parameters=("X=1",)),))))
    bench.at(Phase.HOST_NETWORK_CONFIGURATION, dpu_flavor="plain")
    bench.until(Phase.DPU_CLUSTER_CONFIG)
    assert bench.card.host.vfs == {"0000:2b:00": 16}


def test_eleven_failures_of_the_script_end_in_error() -> None:
    bench = at(Phase.HOST_NETWORK_CONFIGURATION)
    bench.dms.fail_network(bench.name, Attempts())
    bench.until(Phase.ERROR)
    assert bench.writes.count("dms network") == 11
    assert network(bench) == ("False", "HostNetworkSetupFailed", "failed after multiple retries")


def test_a_flavor_without_vfs_leaves_nothing_to_bridge() -> None:
    bench = Bench()
    bench.create(DpuFlavor(metadata=meta("none"), spec=DpuFlavorSpec(
        nvconfig=(NvConfig(parameters=("NUM_OF_VFS=0",)),))))
    bench.at(Phase.HOST_NETWORK_CONFIGURATION, dpu_flavor="none")
    bench.until(Phase.ERROR)
    assert bench.writes.count("dms network") == 11
    assert network(bench) == ("False", "HostNetworkSetupFailed", "failed after multiple retries")
    assert (bench.card.host.vfs, bench.card.host.bridged, bench.card.host.saved) == ({}, {}, {})


def test_a_failure_that_heals_in_time_is_not_told() -> None:
    bench = at(Phase.HOST_NETWORK_CONFIGURATION)
    bench.dms.fail_network(bench.name, Attempts(range(1, 11)))
    bench.until(Phase.DPU_CLUSTER_CONFIG)
    assert bench.reasons() == ["HostNetworkSetupInProgress", "HostNetworkReady"]


@pytest.mark.parametrize(("trouble", "reason", "message"), [
    ("flavor", "DPUFlavorNotFound", 'DPUFlavor.provisioning.dpu.nvidia.com "flavor" not found'),
    ("pci", "GetPCIAddrFromDPUError", ""),
    ("none", "DPFOperatorConfigCountError", "exactly one DPFOperatorConfig necessary"),
    ("two", "DPFOperatorConfigCountError", "exactly one DPFOperatorConfig necessary"),
    ("vfs", "GetDPUFlavorError", 'strconv.Atoi: parsing "many": invalid syntax'),
])
def test_what_the_script_needs_is_waited_for(trouble: str, reason: str, message: str) -> None:
    bench = Bench()
    spec: dict[str, Any] = {}
    if trouble == "flavor":
        bench.delete(DpuFlavor, "flavor")
    if trouble == "pci":
        spec["pci_address"] = None
    if trouble == "none":
        bench.delete(DpfOperatorConfig, "dpfoperatorconfig")
    if trouble == "two":
        bench.create(DpfOperatorConfig(metadata=meta("second"), spec=DpfOperatorConfigSpec(
            provisioning_controller=ProvisioningController(bfb_pvc_name="pvc"))))
    if trouble == "vfs":
        bench.create(DpuFlavor(metadata=meta("bad"), spec=DpuFlavorSpec(
            nvconfig=(NvConfig(parameters=("NUM_OF_VFS=many",)),))))
        spec["dpu_flavor"] = "bad"
    bench.at(Phase.HOST_NETWORK_CONFIGURATION, **spec)
    bench.run(60)
    assert network(bench)[:2] == ("False", reason)
    assert network(bench)[2].startswith(message)
    assert bench.phase() == Phase.HOST_NETWORK_CONFIGURATION
    assert "dms network" not in bench.writes


def test_the_task_is_lost_with_the_controller_and_starts_again() -> None:
    bench = at(Phase.HOST_NETWORK_CONFIGURATION).run(2)
    bench.restart()
    bench.until(Phase.DPU_CLUSTER_CONFIG)
    assert bench.writes.count("dms network") == 2


def test_a_dpu_of_the_same_name_does_not_inherit_the_task() -> None:
    bench = at(Phase.HOST_NETWORK_CONFIGURATION)
    bench.until(Phase.DPU_CLUSTER_CONFIG)
    bench.delete(Dpu, bench.name)
    bench.run(1)
    assert bench.gone(Dpu, bench.name)
    bench.at(Phase.HOST_NETWORK_CONFIGURATION)
    bench.until(Phase.DPU_CLUSTER_CONFIG)
    assert bench.writes.count("dms network") == 2


# --- DPU Cluster Config


def joined(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("DPUClusterReady")


def test_the_node_is_waited_for_without_end_then_until_it_is_ready_then_labelled() -> None:
    bench = at(Phase.DPU_CLUSTER_CONFIG, labels=LABELS)
    bench.run(24 * 3600)
    assert joined(bench) == ("False", "NodeNotFound", f"node {bench.name} not found")
    bench.node(ready=False)
    bench.run(6)
    assert joined(bench) == ("False", "NodeNotReady", "node is not ready")
    bench.node_ready(bench.name)
    bench.until(Phase.READY)
    assert joined(bench) == ("True", "DPUClusterReady", "cluster configured")
    assert bench.server.get(Node, Key("", bench.name)).metadata.labels == LABELS


@pytest.mark.parametrize(("trouble", "reason", "message"), [
    ("cluster", "DPUClusterNotFound", 'DPUCluster.provisioning.dpu.nvidia.com "c1" not found'),
    ("secret", "NewConfigError", 'Secret "c1-admin-kubeconfig" not found'),
    ("key", "NewConfigError", "secret dpf-operator-system/c1-admin-kubeconfig not in the expected format"),
    ("useless", "NewConfigError", "invalid configuration"),
    ("down", "GetNodeError", 'Get "https://c1.example:6443/api/v1/nodes/'),
])
def test_what_the_join_needs_is_waited_for(trouble: str, reason: str, message: str) -> None:
    bench = at(Phase.DPU_CLUSTER_CONFIG)
    secret = "c1-admin-kubeconfig"
    if trouble == "cluster":
        bench.delete(DpuCluster, "c1")
    if trouble == "secret":
        bench.delete(Secret, secret)
    if trouble == "key":
        bench.patch(Secret, secret, {"data": {"admin.conf": None}})
    if trouble == "useless":
        rotate(bench)
    bench.server.down = trouble == "down"
    bench.run(30)
    assert joined(bench)[:2] == ("False", reason)
    assert joined(bench)[2].startswith(message)
    assert bench.phase() == Phase.DPU_CLUSTER_CONFIG


def test_a_kubeconfig_that_is_not_set_is_told() -> None:
    bench = Bench()
    bench.patch(DpuCluster, "c1", {"spec": {"kubeconfig": None}})
    bench.at(Phase.DPU_CLUSTER_CONFIG)
    assert joined(bench.run(1)) == ("False", "NewConfigError", f"kubeconfig of DPUCluster {NS}/c1 is not set")


def test_labels_that_cannot_be_added_are_told() -> None:
    bench = at(Phase.DPU_CLUSTER_CONFIG, labels={"bad label": "x"})
    bench.node()
    bench.run(20)
    assert joined(bench)[:2] == ("False", "AddLabelsToObjectError")


def test_the_policy_gives_up_after_half_an_hour() -> None:
    bench = Bench(policies=["join-timeout"])
    bench.at(Phase.DPU_CLUSTER_CONFIG, true("HostNetworkReady", since="2025-05-01T00:00:00Z"))
    bench.run(1795)
    assert bench.phase() == Phase.DPU_CLUSTER_CONFIG
    bench.run(12)
    assert bench.phase() == Phase.ERROR
    assert joined(bench)[:2] == ("False", "JoinTimeout")


# --- Ready


def ready(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("Ready")


def test_a_ready_dpu_mirrors_its_node() -> None:
    bench = at(Phase.READY)
    bench.node()
    bench.run(0.1)
    assert ready(bench) == ("True", "DPUReady", "")
    assert bench.status().addresses == (NodeAddress(type="InternalIP", address="10.0.9.1"),)


def test_trouble_with_the_node_shows_at_the_next_poll_and_the_phase_stays() -> None:
    bench = at(Phase.READY)
    bench.node()
    bench.run(7)
    bench.node_ready(bench.name, ready=False)
    bench.run(0.5)
    assert ready(bench)[0] == "True"  # no watch on the DPU cluster
    bench.run(5)
    assert ready(bench) == ("False", "NodeNotReady", f"DPU Node {bench.name} is not Ready")
    bench.server.delete(Node, Key("", bench.name), "test", bench.env.now)
    bench.run(6)
    assert ready(bench) == ("False", "NodeNotFound", f'nodes "{bench.name}" not found')
    bench.cluster_down()
    bench.run(6)
    assert ready(bench)[:2] == ("False", "GetNodeError")
    assert ready(bench)[2].endswith("connect: connection refused")
    assert bench.phase() == Phase.READY


def test_without_its_dpucluster_a_ready_dpu_says_so() -> None:
    bench = at(Phase.READY)
    bench.node()
    bench.delete(DpuCluster, "c1")
    assert ready(bench.run(1)) == (
        "False", "DPUClusterNotFound", 'DPUCluster.provisioning.dpu.nvidia.com "c1" not found')
    assert bench.phase() == Phase.READY


def test_without_kubeconfig_a_ready_dpu_says_so() -> None:
    bench = at(Phase.READY)
    bench.delete(Secret, "c1-admin-kubeconfig")
    assert ready(bench.run(1))[:2] == ("False", "DPUClusterClientGetError")


def test_a_lost_label_is_put_back_through_dpu_cluster_config_while_ready_stays_true() -> None:
    bench = at(Phase.READY, labels=LABELS)
    bench.node(labels=LABELS)
    bench.run(6)
    told = len(bench.told)
    bench.server.patch(Node, Key("", bench.name), {"metadata": {"labels": {"example.com/pool": None}}}, "test",
                       bench.env.now)
    bench.run(6)
    assert bench.server.get(Node, Key("", bench.name)).metadata.labels == LABELS
    assert bench.told[told:] == [("True", "DPUClusterReady", "cluster configured")]
    assert bench.phase() == Phase.READY


def test_a_new_label_of_the_dpu_reaches_its_node() -> None:
    bench = at(Phase.READY, labels=LABELS)
    bench.node(labels={**LABELS, "own": "kept"})
    bench.run(6)
    labels = {"example.com/new": "b", "example.com/pool": None}
    bench.patch(Dpu, bench.name, {"spec": {"cluster": {"nodeLabels": labels}}})
    bench.run(0.1)
    assert bench.server.get(Node, Key("", bench.name)).metadata.labels == {
        **LABELS, "own": "kept", "example.com/new": "b"}  # nothing is ever taken away


def test_a_stale_node_makes_a_dpu_ready_that_never_joined() -> None:
    bench = Bench()
    bench.node()
    bench.at(Phase.DPU_CLUSTER_CONFIG)
    assert bench.run(0.1).phase() == Phase.READY


# --- the client of the DPU cluster


def rotate(bench: Bench) -> None:
    """The DPU cluster's kubeconfig is replaced by one that leads nowhere."""
    bench.patch(Secret, "c1-admin-kubeconfig", {"data": {"admin.conf": base64.b64encode(b"new").decode()}})


def test_a_rotated_kubeconfig_is_not_noticed_before_a_restart() -> None:
    bench = at(Phase.READY)
    bench.node()
    bench.run(6)
    rotate(bench)
    bench.run(600)
    assert ready(bench)[0] == "True"
    bench.restart()
    bench.run(6)
    assert ready(bench)[:2] == ("False", "DPUClusterClientGetError")


def test_the_policy_follows_a_rotated_kubeconfig() -> None:
    bench = at(Phase.READY, policies=("follow-kubeconfig-rotation",))
    bench.node()
    bench.run(6)
    rotate(bench)
    bench.run(6)
    assert ready(bench)[:2] == ("False", "DPUClusterClientGetError")
