"""The Kamaji cluster manager: what it makes, in which order, and what it leaves behind (provisioning.md 7.3)."""

from __future__ import annotations

from typing import Any

from tests.controllers.stage import SPACE, Stage, meta
from twin.model.core import ConfigMap, DaemonSet, Service, TenantControlPlane
from twin.model.meta import condition_status, replace
from twin.model.names import Label
from twin.model.provisioning import ClusterEndpoint, DpuCluster, DpuClusterSpec, DpuClusterStatus, Keepalived

VIP = ClusterEndpoint(keepalived=Keepalived(vip="10.10.10.10", virtual_router_id=126, interface="br-dpu",
                                            node_selector={"zone": "a"}))


def stage(**more: Any) -> Stage:
    return Stage("dpucluster", "kamaji-cluster-manager", **more)


def cluster(endpoint: ClusterEndpoint | None = VIP) -> DpuCluster:
    return DpuCluster(metadata=meta("kam"), spec=DpuClusterSpec(
        type="kamaji", version="v1.30.2", max_nodes=10, cluster_endpoint=endpoint))


def seen(s: Stage) -> tuple[str, list[tuple[str, str, str, str]]]:
    status = s.the(DpuCluster, "kam").status or DpuClusterStatus()
    return status.phase, [(c.type, c.status, c.reason, c.message) for c in status.conditions]


def plane_ready(s: Stage) -> None:
    """Kamaji's word: the control plane runs."""
    plane = s.the(TenantControlPlane, "kam")
    s.world.host_cluster.update(
        replace(plane, status={"kubernetesResources": {"version": {"status": "Ready", "version": "v1.30.2"}}}),
        "kamaji", s.world.env.now, status=True)


def test_service_control_plane_and_keepalived_are_made_in_this_order_after_one_failed_pass() -> None:
    s = stage()
    s.create(cluster())
    s.run(1)
    assert [w for w in s.writes("kamaji-cluster-manager") if w.startswith("create")] == [
        "create Service/kam", "create TenantControlPlane/kam", "create ConfigMap/kam-keepalived",
        "create DaemonSet/kam-keepalived"]
    assert s.error_of("kamaji-cluster-manager", f"{SPACE}/kam") == f"service {SPACE}/kam has no node port"
    assert seen(s) == ("Creating", [
        ("Created", "False", "ClusterNotReady", "creating cluster"), ("KeepalivedReady", "True", "Deployed", "")])


def test_the_control_plane_is_reached_over_the_virtual_ip_and_the_services_node_port() -> None:
    s = stage()
    s.create(cluster())
    s.run(1)
    (port,) = s.the(Service, "kam").spec.ports
    assert (port.name, port.port) == ("kube-apiserver", 6443)
    plane = s.the(TenantControlPlane, "kam")
    assert plane.spec["networkProfile"] == {"address": "10.10.10.10", "port": port.node_port,
                                            "podCidr": "10.244.0.0/14"}
    assert plane.spec["controlPlane"]["deployment"]["replicas"] == 3
    assert plane.spec["kubernetes"]["version"] == "v1.30.2"
    assert plane.metadata.labels == {Label.CLUSTER: "kam", Label.TENANT: "kam"}
    (owner,) = plane.metadata.owner_references
    assert (owner.kind, owner.name, owner.controller) == ("DPUCluster", "kam", None)


def test_two_clusters_get_two_node_ports() -> None:
    s = stage()
    s.create(cluster())
    s.create(replace(cluster(), metadata=meta("two")))
    s.run(1)
    ports = {s.the(Service, n).spec.ports[0].node_port for n in ("kam", "two")}
    assert len(ports) == 2
    assert min(ports) >= 30000


def test_keepalived_runs_on_the_chosen_control_plane_nodes_with_the_clusters_address() -> None:
    s = stage()
    s.create(cluster())
    s.run(1)
    pod = s.the(DaemonSet, "kam-keepalived").spec["template"]["spec"]
    (init,) = pod["initContainers"]
    values = {e["name"]: e.get("value") for e in init["env"]}
    port = s.the(Service, "kam").spec.ports[0].node_port
    assert values == {"NODE_IP": None, "INTERFACE": "br-dpu", "VIRTUAL_ROUTER_ID": "126", "VIRTUAL_IP": "10.10.10.10",
                      "NODE_PORT": str(port)}
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [t["matchExpressions"][1] for t in terms] == [{"key": "zone", "operator": "In", "values": ["a"]}] * 2
    assert pod["hostNetwork"] is True
    template = s.the(ConfigMap, "kam-keepalived").data["keepalived.conf.tmpl"]
    assert all(f"${name}" in template for name in ("INTERFACE", "VIRTUAL_ROUTER_ID", "VIRTUAL_IP", "NODE_PORT"))
    assert "interval 2" in template
    assert "rise 3" in template
    assert "fall 2" in template


def test_without_keepalived_there_is_no_condition_and_no_daemon_set() -> None:
    s = stage()
    s.create(cluster(endpoint=None))
    s.run(1)
    assert seen(s)[1] == [("Created", "False", "ClusterNotReady", "creating cluster")]
    assert s.names(DaemonSet) == []
    assert "address" not in s.the(TenantControlPlane, "kam").spec["networkProfile"]


def test_a_ready_control_plane_sets_the_kubeconfig_first_then_created() -> None:
    s = stage()
    s.create(cluster())
    s.run(1)
    before = len(s.writes("kamaji-cluster-manager"))
    plane_ready(s)
    s.run(1)
    assert s.writes("kamaji-cluster-manager")[before:][:2] == ["update DPUCluster/kam", "status DPUCluster/kam"]
    found = s.the(DpuCluster, "kam")
    assert found.spec.kubeconfig == "kam-admin-kubeconfig"
    assert condition_status(found.status.conditions, "Created") == "True"  # type: ignore[union-attr]


def test_a_settled_cluster_costs_no_writes() -> None:
    s = stage()
    s.create(cluster())
    s.run(1)
    plane_ready(s)
    s.run(30)
    before = s.writes("kamaji-cluster-manager")
    s.run(1300)
    assert s.writes("kamaji-cluster-manager") == before


def test_everything_but_the_service_goes_with_the_cluster_unless_the_policy_owns_it() -> None:
    for policies, left in (((), ["kam"]), (("kamaji-service-goes-with-its-cluster",), [])):
        s = stage(policies=policies)
        s.create(cluster())
        s.run(1)
        s.delete(DpuCluster, "kam")
        s.run(5)
        assert s.names(DpuCluster) == s.names(TenantControlPlane) == s.names(DaemonSet) == []
        assert s.names(ConfigMap) == []
        assert s.names(Service) == left
