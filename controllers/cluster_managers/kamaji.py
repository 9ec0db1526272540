"""The Kamaji cluster manager: a control plane of pods in the host cluster, behind a virtual IP (provisioning.md 7.3).

It asks Kamaji for a TenantControlPlane; Kamaji makes the control plane and the admin kubeconfig Secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from controllers.cluster_managers import control_plane_nodes
from controllers.cluster_managers.keepalived import config_map, daemon_set, owner
from controllers.cluster_managers.manager import Finding, manage
from twin.backends.base import KubeApi
from twin.model.core import ConfigMap, DaemonSet, Service, ServicePort, ServiceSpec, TenantControlPlane
from twin.model.meta import Condition, Key, Object, ObjectMeta
from twin.model.names import Label, admin_kubeconfig
from twin.model.provisioning import DpuCluster
from twin.runtime.backends import Backends
from twin.runtime.memory import Memory
from twin.runtime.reconcile import Context, Result, Watch

APISERVER_PORT: Final = 6443
REPLICAS: Final = 3
OWNED_SERVICE: Final = "kamaji-service-goes-with-its-cluster"


def _owners(_: KamajiReconciler, changed: Object) -> Iterable[Key]:
    """The DPUClusters a child belongs to. The references are not controlling ones."""
    return [Key(changed.metadata.namespace, ref.name) for ref in changed.metadata.owner_references
            if ref.kind == DpuCluster.KIND]


@dataclass(frozen=True)
class KamajiReconciler:
    kube: KubeApi
    memory: Memory
    policies: frozenset[str]

    name: ClassVar[str] = "kamaji-cluster-manager"
    watches: ClassVar[tuple[Watch, ...]] = (Watch(DpuCluster), Watch(TenantControlPlane, _owners))

    @classmethod
    def make(cls, backends: Backends) -> KamajiReconciler:
        return cls(backends.kube, backends.memory, backends.policies)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        return manage(self.kube, self.memory, ctx, key, "kamaji", self._ensure)

    def _ensure(self, cluster: DpuCluster) -> Finding:
        """Service, TenantControlPlane, keepalived, in this order; each needs the one before."""
        service = self.kube.get(Service, cluster.key)
        if service is None:
            self.kube.create(new_service(cluster, owned=OWNED_SERVICE in self.policies))
        port = next((p.node_port for p in service.spec.ports), 0) if service is not None else 0
        if not port:
            # The copy in hand was read before the API server chose a port: the next pass sees it.
            return Finding(error=f"service {cluster.key} has no node port")
        plane = self.kube.get(TenantControlPlane, cluster.key)
        if plane is None:
            plane = self.kube.create(new_control_plane(cluster, port))
        conditions = [_created(plane)]
        endpoint = cluster.spec.cluster_endpoint
        if endpoint is not None and endpoint.keepalived is not None:
            for obj in (config_map(cluster), daemon_set(cluster, endpoint.keepalived, port)):
                kind: type[ConfigMap | DaemonSet] = type(obj)
                if self.kube.get(kind, obj.key) is None:
                    self.kube.create(obj)
            # upstream: keepalived-ready-without-pods
            conditions.append(Condition(type="KeepalivedReady", status="True", reason="Deployed"))
        ready = conditions[0].status == "True"
        return Finding(kubeconfig=admin_kubeconfig(cluster.metadata.name) if ready else "",
                       conditions=tuple(conditions))


def _created(plane: TenantControlPlane) -> Condition:
    version = plane.status.get("kubernetesResources", {}).get("version", {})
    if version.get("status") == "Ready":
        return Condition(type="Created", status="True", reason="Created")
    return Condition(type="Created", status="False", reason="ClusterNotReady", message="creating cluster")


def new_service(cluster: DpuCluster, *, owned: bool) -> Service:
    """upstream: kamaji-service-has-no-owner. It outlives the DPUCluster unless Kamaji adopts it."""
    meta = cluster.metadata
    return Service(
        metadata=ObjectMeta(name=meta.name, namespace=meta.namespace,
                            owner_references=owner(cluster) if owned else ()),
        spec=ServiceSpec(
            type="NodePort", selector={"kamaji.clastix.io/name": meta.name},
            ports=(ServicePort(name="kube-apiserver", protocol="TCP", port=APISERVER_PORT,
                               target_port=APISERVER_PORT),)))


def new_control_plane(cluster: DpuCluster, node_port: int) -> TenantControlPlane:
    meta = cluster.metadata
    tenant = {Label.TENANT: meta.name}
    network: dict[str, Any] = {"podCidr": "10.244.0.0/14", "port": node_port}
    endpoint = cluster.spec.cluster_endpoint
    if endpoint is not None and endpoint.keepalived is not None:
        network["address"] = endpoint.keepalived.vip
    return TenantControlPlane(
        metadata=ObjectMeta(name=meta.name, namespace=meta.namespace, labels={Label.CLUSTER: meta.name, **tenant},
                            owner_references=owner(cluster)),
        spec={
            "dataStore": "default",
            "controlPlane": {
                "deployment": {
                    "replicas": REPLICAS,
                    "additionalMetadata": {"labels": tenant},
                    "affinity": control_plane_nodes.affinity(),
                    "tolerations": control_plane_nodes.tolerations(),
                    "extraArgs": {"apiServer": ["--kubelet-preferred-address-types=InternalIP,Hostname,ExternalIP"]},
                    "resources": {
                        "apiServer": {"requests": {"cpu": "250m", "memory": "512Mi"}},
                        "controllerManager": {"requests": {"cpu": "125m", "memory": "256Mi"}},
                        "scheduler": {"requests": {"cpu": "125m", "memory": "256Mi"}},
                    },
                },
                "service": {"serviceType": "NodePort", "additionalMetadata": {"labels": tenant}},
            },
            "kubernetes": {
                "version": cluster.spec.version,
                "kubelet": {"cgroupfs": "systemd"},
                "admissionControllers": ["ResourceQuota", "LimitRanger"],
            },
            "networkProfile": network,
            "addons": {"coreDNS": {}, "kubeProxy": {}},
        })
