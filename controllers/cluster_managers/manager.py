"""What every cluster manager does with the DPUClusters of its type (provisioning.md 7.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twin.backends.base import KubeApi
from twin.model.meta import Condition, Key, replace, set_condition, strip_finalizer
from twin.model.names import Finalizer
from twin.model.provisioning import DpuCluster, DpuClusterStatus
from twin.runtime.memory import Memory
from twin.runtime.reconcile import DONE, Context, Result


@dataclass(frozen=True, slots=True)
class Finding:
    """What a manager made of a cluster: the kubeconfig Secret's name ('' = none yet) and its conditions.

    `error` ends the pass; it is tried again with back-off.
    """

    kubeconfig: str = ""
    conditions: tuple[Condition, ...] = ()
    error: str = ""


class LastSeen:
    """Process memory: the newest version of each DPUCluster this manager has written."""

    def __init__(self) -> None:
        self.versions: dict[Key, int] = {}


def manage(kube: KubeApi, memory: Memory, ctx: Context, key: Key, type_: str, ensure: Callable[[DpuCluster], Finding],
           ) -> Result:
    """One pass over a DPUCluster: finalizer, then the manager's own work, kubeconfig, conditions."""
    cluster = kube.get(DpuCluster, key)
    if cluster is None or cluster.spec.type != type_:
        return DONE
    written = memory.get(LastSeen).versions
    if int(cluster.metadata.resource_version) < written.get(key, 0):
        return DONE  # The cache is behind our own last write; the watch event for that one comes.
    if cluster.deleting:
        if Finalizer.CLUSTER_MANAGER in cluster.metadata.finalizers:
            kube.update(replace(cluster, metadata=strip_finalizer(cluster.metadata, Finalizer.CLUSTER_MANAGER)))
            written.pop(key, None)
        return DONE
    if Finalizer.CLUSTER_MANAGER not in cluster.metadata.finalizers:
        finalizers = (*cluster.metadata.finalizers, Finalizer.CLUSTER_MANAGER)
        stored = kube.update(replace(cluster, metadata=replace(cluster.metadata, finalizers=finalizers)))
        written[key] = int(stored.metadata.resource_version)
        return DONE
    status = cluster.status or DpuClusterStatus()
    if status.phase not in ("Creating", "Ready", "NotReady"):
        return DONE
    found = ensure(cluster)
    if found.error:
        return Result(error=found.error)
    if found.kubeconfig and not cluster.spec.kubeconfig:
        cluster = kube.update(replace(cluster, spec=replace(cluster.spec, kubeconfig=found.kubeconfig)))
        written[key] = int(cluster.metadata.resource_version)
    conditions = status.conditions
    for c in found.conditions:
        conditions = set_condition(conditions, c.type, c.status, c.reason, c.message, ctx.now)
    if conditions is not status.conditions:
        stored = kube.update_status(replace(cluster, status=replace(status, conditions=conditions)))
        written[key] = int(stored.metadata.resource_version)
    return DONE
