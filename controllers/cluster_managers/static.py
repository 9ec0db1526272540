"""The static cluster manager: somebody else made the cluster and names its kubeconfig (provisioning.md 7.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from controllers.cluster_managers.manager import Finding, manage
from twin.backends.base import KubeApi
from twin.model.meta import Condition, Key
from twin.model.provisioning import DpuCluster
from twin.runtime.backends import Backends
from twin.runtime.memory import Memory
from twin.runtime.reconcile import Context, Result, Watch


@dataclass(frozen=True)
class StaticReconciler:
    kube: KubeApi
    memory: Memory

    name: ClassVar[str] = "static-cluster-manager"
    watches: ClassVar[tuple[Watch, ...]] = (Watch(DpuCluster),)

    @classmethod
    def make(cls, backends: Backends) -> StaticReconciler:
        return cls(backends.kube, backends.memory)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        return manage(self.kube, self.memory, ctx, key, "static", look)


def look(cluster: DpuCluster) -> Finding:
    if cluster.spec.kubeconfig:
        return Finding(conditions=(Condition(type="Created", status="True", reason="Created"),))
    return Finding(conditions=(
        Condition(type="Created", status="False", reason="EmptyKubeconfig", message="spec.kubeconfig is empty"),))
