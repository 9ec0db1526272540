"""DPUCluster phases and the static cluster manager (provisioning.md 7.1-7.3), in the order upstream writes them."""

from __future__ import annotations

import base64
from typing import Any

from tests.controllers.stage import SPACE, Stage, meta
from twin.model.core import Secret
from twin.model.meta import Key, condition
from twin.model.names import Finalizer
from twin.model.provisioning import DpuCluster, DpuClusterSpec, DpuClusterStatus

BOTH = ("dpucluster", "static-cluster-manager")


def stage(*controllers: str, **more: Any) -> Stage:
    return Stage(*(controllers or BOTH), **more)


def cluster(name: str = "c", kubeconfig: str = "kc", type_: str = "static") -> DpuCluster:
    return DpuCluster(metadata=meta(name), spec=DpuClusterSpec(
        type=type_, version="v1.30.2", max_nodes=1000, kubeconfig=kubeconfig))


def secret(s: Stage, name: str = "kc", key: str = "admin.conf", of: str = "c") -> Secret:
    text = s.world.create_dpu_cluster(Key(SPACE, of))
    return Secret(metadata=meta(name), data={key: base64.b64encode(text.encode()).decode()})


def seen(s: Stage, name: str = "c") -> tuple[str, dict[str, tuple[str, str, str]]]:
    status = s.the(DpuCluster, name).status or DpuClusterStatus()
    return status.phase, {c.type: (c.status, c.reason, c.message) for c in status.conditions}


def test_a_cluster_with_a_kubeconfig_passes_from_pending_to_ready() -> None:
    s = stage()
    s.create(secret(s))
    s.create(cluster())
    s.run(1)
    assert seen(s) == ("Ready", {"Created": ("True", "Created", ""), "Ready": ("True", "HealthCheckPassed", "")})
    assert set(s.the(DpuCluster, "c").metadata.finalizers) == {Finalizer.CLUSTER_MANAGER, Finalizer.CLUSTER}


def test_without_a_kubeconfig_it_stays_creating_and_says_why() -> None:
    s = stage()
    s.create(cluster(kubeconfig=""))
    s.run(60)
    assert seen(s) == ("Creating", {"Created": ("False", "EmptyKubeconfig", "spec.kubeconfig is empty")})
    s.create(secret(s))
    s.respec(DpuCluster, "c", kubeconfig="kc")
    s.run(1)
    assert seen(s)[0] == "Ready"


def test_a_missing_secret_or_key_shows_only_in_the_log_and_is_retried_with_back_off() -> None:
    s = stage()
    s.create(secret(s, "other", key="super-admin.conf"))
    s.create(cluster("c"))
    s.create(cluster("d", kubeconfig="other"))
    s.run(23)
    for name in ("c", "d"):
        assert seen(s, name) == ("Creating", {"Created": ("True", "Created", "")})
    assert s.error_of("dpucluster", f"{SPACE}/c") == 'failed to get admin client Secret "kc" not found'
    assert s.error_of("dpucluster", f"{SPACE}/d") == (
        f"failed to get admin client secret {SPACE}/other not in the expected format: data.admin.conf not found")
    s.create(secret(s))
    s.run(1)
    assert seen(s)[0] == "Creating", "the Secret is not watched"
    s.run(30)
    assert seen(s)[0] == "Ready"


def test_an_unreachable_server_is_not_ready_and_recovery_shows_with_the_next_retry() -> None:
    s = stage()
    s.create(secret(s))
    server = s.world.dpu_clusters[Key(SPACE, "c")]
    s.dpu_cluster_down("c", True)
    s.create(cluster())
    s.run(10)
    phase, conditions = seen(s)
    assert phase == "NotReady"
    address = server.url.removeprefix("https://")
    message = f'Get "{server.url}/version": dial tcp {address}: connect: connection refused'
    assert conditions["Ready"] == ("False", "HealthCheckFailed", message)
    assert s.error_of("dpucluster", f"{SPACE}/c") == f"health check failed, err: {message}"
    s.dpu_cluster_down("c", False)
    s.run(20)
    assert seen(s)[0] == "Ready"


def test_an_outage_of_a_ready_cluster_shows_at_the_resync_or_within_30_s_with_the_policy() -> None:
    for policies, phase in (((), "Ready"), (("dpucluster-health-poll",), "NotReady")):
        s = stage(policies=policies)
        s.create(secret(s))
        s.create(cluster())
        s.run(1)
        s.dpu_cluster_down("c", True)
        s.run(40)
        assert seen(s)[0] == phase
        s.run(610)
        assert seen(s)[0] == "NotReady"


def test_a_ready_cluster_costs_no_writes() -> None:
    s = stage()
    s.create(secret(s))
    s.create(cluster())
    s.run(1)
    before = s.writes("dpucluster")
    s.run(1300)
    assert s.writes("dpucluster") == before


def test_a_cluster_whose_kubeconfig_is_taken_away_turns_not_ready() -> None:
    s = stage()
    s.create(secret(s))
    s.create(cluster())
    s.run(1)
    s.respec(DpuCluster, "c", kubeconfig="")
    s.run(1)
    phase, conditions = seen(s)
    assert phase == "NotReady"
    assert conditions["Created"][:2] == ("False", "EmptyKubeconfig")


def test_a_type_that_nobody_manages_stays_creating_without_conditions() -> None:
    s = stage()
    s.create(cluster(type_="vendor/other"))
    s.run(60)
    assert seen(s) == ("Creating", {})
    assert s.the(DpuCluster, "c").metadata.finalizers == (Finalizer.CLUSTER,)


def test_a_deleted_cluster_is_gone_at_once() -> None:
    s = stage()
    s.create(secret(s))
    s.create(cluster())
    s.run(1)
    s.delete(DpuCluster, "c")
    s.run(1)
    assert s.names(DpuCluster) == []


def test_the_condition_keeps_its_transition_time_while_its_status_stays() -> None:
    s = stage()
    s.create(cluster(kubeconfig=""))
    s.run(1)
    first = condition(s.the(DpuCluster, "c").status.conditions, "Created")  # type: ignore[union-attr]
    s.run(5)
    s.relabel(DpuCluster, "c", {"touched": "1"})
    s.run(1)
    assert condition(s.the(DpuCluster, "c").status.conditions, "Created") == first  # type: ignore[union-attr]


def test_the_static_manager_leaves_other_types_and_young_clusters_alone() -> None:
    s = stage("static-cluster-manager")
    s.create(cluster("k", type_="kamaji"))
    s.create(cluster("p"))
    s.run(10)
    assert s.the(DpuCluster, "k").metadata.finalizers == ()
    assert seen(s, "p") == ("Pending", {}), "the phase is the provisioning controller's to begin"
