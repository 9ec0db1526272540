"""Neighbours' kinds that provisioning touches: Kubernetes core, the maintenance operator, Kamaji, cert-manager.

Only what our controllers and actors read or write has a class of its own; the rest of a Pod or a Job stays a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from msgspec import field

from twin.model.meta import Conditions, Object, Part
from twin.model.operator import DpfOperatorConfig as DpfOperatorConfig
from twin.model.operator import DpfOperatorConfigSpec as DpfOperatorConfigSpec
from twin.model.operator import InstallInterface as InstallInterface
from twin.model.operator import InstallViaRedfish as InstallViaRedfish
from twin.model.operator import Networking as Networking
from twin.model.operator import ProvisioningController as ProvisioningController
from twin.model.provisioning import LabelSelector, NodeAddress, Taint

Json = Mapping[str, Any]


class Namespace(Object, frozen=True):
    KIND: ClassVar[str] = "Namespace"
    PLURAL: ClassVar[str] = "namespaces"
    NAMESPACED: ClassVar[bool] = False


class NodeSpec(Part, frozen=True):
    pod_cidr: str = field(name="podCIDR", default="")
    provider_id: str = field(name="providerID", default="")
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeStatus(Part, frozen=True):
    addresses: tuple[NodeAddress, ...] = ()
    conditions: Conditions = ()
    capacity: Mapping[str, str] = {}
    allocatable: Mapping[str, str] = {}
    node_info: Json = {}


class Node(Object, frozen=True):
    KIND: ClassVar[str] = "Node"
    PLURAL: ClassVar[str] = "nodes"
    NAMESPACED: ClassVar[bool] = False
    HAS_STATUS: ClassVar[bool] = True

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ContainerStatus(Part, frozen=True):
    name: str
    ready: bool = False
    restart_count: int = 0
    state: Json = {}
    last_state: Json = {}


class PodSpec(Part, frozen=True):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False
    restart_policy: str = ""
    termination_grace_period_seconds: int | None = None
    init_containers: tuple[Json, ...] = ()
    containers: tuple[Json, ...] = ()
    volumes: tuple[Json, ...] = ()
    tolerations: tuple[Json, ...] = ()
    affinity: Json | None = None
    node_selector: Mapping[str, str] = {}
    image_pull_secrets: tuple[Json, ...] = ()


class PodStatus(Part, frozen=True):
    phase: str = ""
    reason: str = ""
    message: str = ""
    pod_ip: str = field(name="podIP", default="")
    host_ip: str = field(name="hostIP", default="")
    conditions: Conditions = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Object, frozen=True):
    KIND: ClassVar[str] = "Pod"
    PLURAL: ClassVar[str] = "pods"
    HAS_STATUS: ClassVar[bool] = True

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class JobSpec(Part, frozen=True):
    backoff_limit: int | None = None
    parallelism: int | None = None
    completions: int | None = None
    template: Json = {}


class JobStatus(Part, frozen=True):
    conditions: Conditions = ()
    start_time: str = ""
    completion_time: str = ""
    active: int = 0
    succeeded: int = 0
    failed: int = 0


class Job(Object, frozen=True):
    KIND: ClassVar[str] = "Job"
    GROUP: ClassVar[str] = "batch"
    PLURAL: ClassVar[str] = "jobs"
    HAS_STATUS: ClassVar[bool] = True

    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()


class Secret(Object, frozen=True):
    """`data` values are base64 text, as on the wire; `string_data` is write-only: the API server folds it into data."""

    KIND: ClassVar[str] = "Secret"
    PLURAL: ClassVar[str] = "secrets"

    type: str = ""
    data: Mapping[str, str] = {}
    string_data: Mapping[str, str] = {}
    immutable: bool | None = None


class ConfigMap(Object, frozen=True):
    KIND: ClassVar[str] = "ConfigMap"
    PLURAL: ClassVar[str] = "configmaps"

    data: Mapping[str, str] = {}
    binary_data: Mapping[str, str] = {}
    immutable: bool | None = None


class ObjectReference(Part, frozen=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    resource_version: str = ""
    field_path: str = ""


class Event(Object, frozen=True):
    """A Kubernetes Event (never bare "event": HOUSE words)."""

    KIND: ClassVar[str] = "Event"
    PLURAL: ClassVar[str] = "events"

    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: str = ""
    count: int = 0
    first_timestamp: str = ""
    last_timestamp: str = ""
    source: Json = {}
    reporting_component: str = ""
    reporting_instance: str = ""


class ServicePort(Part, frozen=True):
    port: int
    name: str = ""
    node_port: int = 0
    protocol: str = ""
    target_port: int | str | None = None


class ServiceSpec(Part, frozen=True):
    type: str = ""
    selector: Mapping[str, str] = {}
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str = field(name="clusterIP", default="")


class Service(Object, frozen=True):
    """A Kubernetes Service."""

    KIND: ClassVar[str] = "Service"
    PLURAL: ClassVar[str] = "services"
    HAS_STATUS: ClassVar[bool] = True

    spec: ServiceSpec = ServiceSpec()
    status: Json = {}


class DaemonSet(Object, frozen=True):
    KIND: ClassVar[str] = "DaemonSet"
    GROUP: ClassVar[str] = "apps"
    PLURAL: ClassVar[str] = "daemonsets"
    HAS_STATUS: ClassVar[bool] = True

    spec: Json = {}
    status: Json = {}


class ReplicaSetSpec(Part, frozen=True):
    replicas: int | None = None
    selector: LabelSelector | None = None
    template: Json = {}


class ReplicaSet(Object, frozen=True):
    KIND: ClassVar[str] = "ReplicaSet"
    GROUP: ClassVar[str] = "apps"
    PLURAL: ClassVar[str] = "replicasets"
    HAS_STATUS: ClassVar[bool] = True

    spec: ReplicaSetSpec = ReplicaSetSpec()
    status: Json = {}


class PodDisruptionBudgetSpec(Part, frozen=True):
    min_available: int | str | None = None
    max_unavailable: int | str | None = None
    selector: LabelSelector | None = None
    unhealthy_pod_eviction_policy: str = ""


class PodDisruptionBudgetStatus(Part, frozen=True):
    disruptions_allowed: int = 0
    current_healthy: int = 0
    desired_healthy: int = 0
    expected_pods: int = 0
    disrupted_pods: Mapping[str, str] = {}
    observed_generation: int = 0
    conditions: Conditions = ()


class PodDisruptionBudget(Object, frozen=True):
    KIND: ClassVar[str] = "PodDisruptionBudget"
    GROUP: ClassVar[str] = "policy"
    PLURAL: ClassVar[str] = "poddisruptionbudgets"
    HAS_STATUS: ClassVar[bool] = True

    spec: PodDisruptionBudgetSpec = PodDisruptionBudgetSpec()
    status: PodDisruptionBudgetStatus = PodDisruptionBudgetStatus()


class LeaseSpec(Part, frozen=True):
    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str = ""
    renew_time: str = ""
    lease_transitions: int = 0


class Lease(Object, frozen=True):
    KIND: ClassVar[str] = "Lease"
    GROUP: ClassVar[str] = "coordination.k8s.io"
    PLURAL: ClassVar[str] = "leases"

    spec: LeaseSpec = LeaseSpec()


# --- the maintenance operator (provisioning.md 6)


class PodSelectorEntry(Part, frozen=True):
    """One entry of drainSpec.podEvictionFilters."""

    by_resource_name_regex: str | None = None


class DrainSpec(Part, frozen=True):
    force: bool = False
    pod_selector: str = ""
    timeout_seconds: int | None = None
    delete_empty_dir: bool = False
    pod_eviction_filters: tuple[PodSelectorEntry, ...] = ()


class NodeMaintenanceSpec(Part, frozen=True):
    requestor_id: str = field(name="requestorID", default="")
    additional_requestors: tuple[str, ...] = ()
    node_name: str = ""
    cordon: bool | None = None
    wait_for_pod_completion: Json | None = None
    drain_spec: DrainSpec | None = None


class DrainStatus(Part, frozen=True):
    total_pods: int = 0
    eviction_pods: int = 0
    drain_progress: int = 0
    wait_for_eviction: tuple[str, ...] = ()


class NodeMaintenanceStatus(Part, frozen=True):
    conditions: Conditions = ()
    wait_for_completion: tuple[str, ...] = ()
    drain: DrainStatus | None = None


class NodeMaintenance(Object, frozen=True):
    KIND: ClassVar[str] = "NodeMaintenance"
    GROUP: ClassVar[str] = "maintenance.nvidia.com"
    VERSION: ClassVar[str] = "v1alpha1"
    PLURAL: ClassVar[str] = "nodemaintenances"
    HAS_STATUS: ClassVar[bool] = True

    spec: NodeMaintenanceSpec = NodeMaintenanceSpec()
    status: NodeMaintenanceStatus | None = None


# --- Kamaji and cert-manager


class TenantControlPlane(Object, frozen=True):
    KIND: ClassVar[str] = "TenantControlPlane"
    GROUP: ClassVar[str] = "kamaji.clastix.io"
    VERSION: ClassVar[str] = "v1alpha1"
    PLURAL: ClassVar[str] = "tenantcontrolplanes"
    HAS_STATUS: ClassVar[bool] = True

    spec: Json = {}
    status: Json = {}


class CertificateStatus(Part, frozen=True):
    conditions: Conditions = ()
    not_before: str = ""
    not_after: str = ""
    renewal_time: str = ""
    revision: int = 0


class Certificate(Object, frozen=True):
    KIND: ClassVar[str] = "Certificate"
    GROUP: ClassVar[str] = "cert-manager.io"
    PLURAL: ClassVar[str] = "certificates"
    HAS_STATUS: ClassVar[bool] = True

    spec: Json = {}
    status: CertificateStatus = CertificateStatus()


class CertificateRequest(Object, frozen=True):
    KIND: ClassVar[str] = "CertificateRequest"
    GROUP: ClassVar[str] = "cert-manager.io"
    PLURAL: ClassVar[str] = "certificaterequests"
    HAS_STATUS: ClassVar[bool] = True

    spec: Json = {}
    status: Json = {}


KINDS: Final[tuple[type[Object], ...]] = (
    Namespace, Node, Pod, Job, Secret, ConfigMap, Event, Service, DaemonSet, ReplicaSet, PodDisruptionBudget, Lease,
    NodeMaintenance, TenantControlPlane, Certificate, CertificateRequest, DpfOperatorConfig,
)
