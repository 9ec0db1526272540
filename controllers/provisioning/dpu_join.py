"""DPU Cluster Config and Ready: the DPU as a Node of its DPU cluster (provisioning.md 2.2 phases 10 and 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from controllers.provisioning import node_effect
from controllers.provisioning.dpu_cluster_client import cluster_client
from controllers.provisioning.dpu_pass import Pass, Unmet, fatal
from twin.backends.base import ApiError, KubeApi, NotFound
from twin.model.core import Node
from twin.model.meta import Key, condition, condition_status, parse_time, replace, set_condition
from twin.model.provisioning import DpuCluster, DpuStatus, Phase

JOIN_TIMEOUT: Final = "join-timeout"
"""Policy: a DPU that has not joined `JOIN_TIMEOUT_S` after its host network was ready goes to Error."""

JOIN_TIMEOUT_S: Final = 1800.0
"""As long as upstream's own end-to-end tests wait for DPU Nodes (provisioning.md 11)."""

HOST_NETWORK_READY: Final = "HostNetworkReady"


def dpu_cluster_config(p: Pass) -> DpuStatus:
    """Wait for the Node, then put the DPU's labels on it.

    upstream: no-join-timeout. A DPU that never joins stays here.
    """
    try:
        client = _client(p, "NewConfigError")
        node = _joined(p, client)
    except Unmet as no:
        raise (_timed_out(p) or no) from no
    missing = _missing_labels(node, p.dpu.spec.cluster.node_labels)
    if missing:
        try:
            client.patch(Node, node.key, {"metadata": {"labels": missing}})
        except ApiError as error:
            raise Unmet("AddLabelsToObjectError", str(error)) from error
    return p.passed(Phase.READY, message="cluster configured")


def _client(p: Pass, failed: str) -> KubeApi:
    ref = p.dpu.spec.cluster
    cluster = p.find(DpuCluster, Key(ref.namespace, ref.name), "DPUClusterNotFound", "GetDPUClusterError")
    try:
        return cluster_client(p.b, p.kube, cluster, "dpu")
    except ValueError as error:
        raise Unmet(failed, str(error)) from error


def _joined(p: Pass, client: KubeApi) -> Node:
    """The DPU's Node, joined and Ready."""
    name = p.key.name
    try:
        node = client.read_live(Node, Key("", name))
    except NotFound as error:
        raise Unmet("NodeNotFound", f"node {name} not found") from error
    except ApiError as error:
        raise Unmet("GetNodeError", str(error)) from error
    if condition_status(node.status.conditions, "Ready") != "True":
        raise Unmet("NodeNotReady", "node is not ready")
    return node


def _missing_labels(node: Node, wanted: Mapping[str, str]) -> dict[str, str]:
    have = node.metadata.labels
    return {name: value for name, value in wanted.items() if have.get(name) != value}


def _timed_out(p: Pass) -> Unmet | None:
    if JOIN_TIMEOUT not in p.b.policies:
        return None
    since = condition(p.status.conditions, HOST_NETWORK_READY)
    if since is None or not p.ctx.reached(parse_time(since.last_transition_time) + JOIN_TIMEOUT_S):
        return None
    return fatal("JoinTimeout", f"node {p.key.name} did not become ready within {JOIN_TIMEOUT_S:.0f} s")


def ready(p: Pass) -> DpuStatus:
    """Undo the node effect, mirror the Node. Trouble with the Node turns the condition False, the phase stays.

    upstream: ready-never-leaves. Only lost labels lead back, to DPU Cluster Config.
    """
    try:
        node_effect.lift_in_ready(p)
    except (node_effect.LiftFailed, ApiError) as error:
        raise fatal("NodeEffectError", str(error)) from error
    client = _client(p, "DPUClusterClientGetError")
    try:
        # upstream: joined-by-stale-node. Any Node of this name will do, whoever joined it.
        node = client.read_live(Node, Key("", p.key.name))
    except NotFound as error:
        raise Unmet("NodeNotFound", str(error)) from error
    except ApiError as error:
        raise Unmet("GetNodeError", str(error)) from error
    status = p.status
    addresses = node.status.addresses
    if addresses != status.addresses:
        status = replace(status, addresses=addresses)
    up = condition_status(node.status.conditions, "Ready") == "True"
    reason, message = ("DPUReady", "") if up else ("NodeNotReady", f"DPU Node {p.key.name} is not Ready")
    conditions = set_condition(status.conditions, p.condition, "True" if up else "False", reason, message, p.ctx.now)
    if conditions is not status.conditions:
        status = replace(status, conditions=conditions)
    if up and _missing_labels(node, p.dpu.spec.cluster.node_labels):
        status = replace(status, phase=Phase.DPU_CLUSTER_CONFIG)
    return status
