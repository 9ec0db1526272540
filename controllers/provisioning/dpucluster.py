"""DPUCluster, the provisioning side: phases and the health check (provisioning.md 7.1).

What a DPUCluster is made of, and its condition Created, is the business of its cluster manager.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from controllers.provisioning.allocator import Allocator
from controllers.provisioning.dpu_cluster_client import cluster_client
from twin.backends.base import ApiError
from twin.model.meta import Key, condition_status, replace, set_condition, strip_finalizer
from twin.model.names import Finalizer
from twin.model.provisioning import DpuCluster, DpuClusterStatus
from twin.runtime.backends import Backends
from twin.runtime.reconcile import DONE, Context, Result, Watch

HEALTH_POLL: Final = "dpucluster-health-poll"
HEALTH_POLL_S: Final = 30.0


@dataclass(frozen=True)
class DpuClusterReconciler:
    backends: Backends

    name: ClassVar[str] = "dpucluster"
    watches: ClassVar[tuple[Watch, ...]] = (Watch(DpuCluster),)

    @classmethod
    def make(cls, backends: Backends) -> DpuClusterReconciler:
        return cls(backends)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        kube = self.backends.kube
        cluster = kube.get(DpuCluster, key)
        if cluster is None:
            return DONE
        if cluster.deleting:
            return self._release(cluster)
        if Finalizer.CLUSTER not in cluster.metadata.finalizers:
            finalizers = (*cluster.metadata.finalizers, Finalizer.CLUSTER)
            try:
                kube.update(replace(cluster, metadata=replace(cluster.metadata, finalizers=finalizers)))
            except ApiError as error:
                return Result(error=f"failed to add finalizer {error}")
            return DONE
        status = cluster.status or DpuClusterStatus()
        if status.phase in ("", "Pending"):
            return self._store(cluster, replace(status, phase="Creating"), "failed to set Creating phase")
        if is_made(status):
            return self._check(ctx, cluster, status)
        if status.phase == "Ready":
            return self._store(cluster, replace(status, phase="NotReady"))
        return DONE

    def _release(self, cluster: DpuCluster) -> Result:
        """upstream: dpucluster-deletion-unguarded. It goes at once, with DPUs on it or not."""
        memory = self.backends.memory
        memory.get(Allocator).forget_cluster(cluster.key, memory)
        if Finalizer.CLUSTER in cluster.metadata.finalizers:
            try:
                self.backends.kube.update(
                    replace(cluster, metadata=strip_finalizer(cluster.metadata, Finalizer.CLUSTER)))
            except ApiError as error:
                return Result(error=f"failed to remove finalizer {error}")
        return DONE

    def _check(self, ctx: Context, cluster: DpuCluster, status: DpuClusterStatus) -> Result:
        """Ask the cluster's API server for its version."""
        try:
            client = cluster_client(self.backends, self.backends.kube, cluster, self.name)
        except ValueError as error:
            # upstream: dpucluster-silent-without-kubeconfig. Nothing on the object tells; only the log does.
            return Result(error=f"failed to get admin client {error}")
        try:
            client.version()
        except ApiError as error:
            conditions = set_condition(status.conditions, "Ready", "False", "HealthCheckFailed", str(error), ctx.now)
            stored = self._store(cluster, replace(status, phase="NotReady", conditions=conditions))
            return stored if stored.error else Result(error=f"health check failed, err: {error}")
        conditions = set_condition(status.conditions, "Ready", "True", "HealthCheckPassed", "", ctx.now)
        stored = self._store(cluster, replace(status, phase="Ready", conditions=conditions))
        if stored.error:
            return stored
        # upstream: dpucluster-no-periodic-health-check. An outage shows at the next watch event or resync.
        return Result(requeue_after_s=HEALTH_POLL_S) if HEALTH_POLL in self.backends.policies else DONE

    def _store(self, cluster: DpuCluster, status: DpuClusterStatus, failure: str = "failed to update status, err:",
               ) -> Result:
        if status != cluster.status:
            try:
                self.backends.kube.update_status(replace(cluster, status=status))
            except ApiError as error:
                return Result(error=f"{failure} {error}")
        return DONE


def is_made(status: DpuClusterStatus) -> bool:
    """Has the cluster manager finished: Created, and every other condition but Ready, True."""
    return (condition_status(status.conditions, "Created") == "True"
            and all(c.status == "True" for c in status.conditions if c.type != "Ready"))
