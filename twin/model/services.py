"""The kinds of `svc.dpu.nvidia.com/v1alpha1` as DPF v25.4 has them (services.md 1 and 5): types, rules, columns.

Their controllers come later, except that a DPUDeployment makes its DPUSets already. CEL rules are in our words where
only their effect is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from msgspec import field

from twin.model.meta import Conditions, Object, Part
from twin.model.provisioning import LabelSelector, NodeEffect, Quantities
from twin.model.rules import (
    AGE_COLUMN,
    ATOMIC_LIST,
    IMMUTABLE,
    READY_COLUMN,
    REASON_COLUMN,
    Cel,
    Column,
    Rule,
)

GROUP: Final = "svc.dpu.nvidia.com"
STANDARD: Final[tuple[Column, ...]] = (READY_COLUMN, REASON_COLUMN, AGE_COLUMN)

FEW: Final = Rule(min_items=1, max_items=50)
Selection = Annotated[Mapping[str, str], Rule(min_properties=1, max_properties=50)]
Labels = Mapping[str, str]
Int32 = Annotated[int, Rule(format="int32")]
Int64 = Annotated[int, Rule(format="int64")]
IntOrString = int | str


class ServiceKind(Object, frozen=True):
    GROUP: ClassVar[str] = GROUP
    VERSION: ClassVar[str] = "v1alpha1"
    HAS_STATUS: ClassVar[bool] = True


class Status(Part, frozen=True):
    """Conditions and the generation they speak of."""

    conditions: Conditions = ()
    observed_generation: Int64 = 0


class Metadata(Part, frozen=True):
    """Labels and annotations for what is made from this object."""

    labels: Labels = {}
    annotations: Labels = {}


class UpgradePolicy(Part, frozen=True):
    """True: an upgrade is disruptive and waits for the node effect."""

    apply_node_effect: Annotated[bool | None, Rule(default=True)] = None


UPGRADE: Final = Rule(default={})


def no_dpf_keys(where: str, prefix: str = "", but: str = "") -> Cel:
    """CEL: no key of this map lies in DPF's domain, except those that `but` allows."""
    exempt = f" && !({but})" if but else ""
    return Cel(
        f"!(has(self.{where}) && self.{where}.exists(key, (key.contains('dpu.nvidia.com/') || "
        f"key.endsWith('dpu.nvidia.com')){exempt}))",
        f"{prefix}should not contain dpu.nvidia.com/ and should not end with dpu.nvidia.com")


# --- core types that appear inside


class NodeSelectorRequirement(Part, frozen=True):
    key: str
    operator: str
    values: Annotated[tuple[str, ...], ATOMIC_LIST] = ()


class NodeSelectorTerm(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(map_type="atomic")

    match_expressions: Annotated[tuple[NodeSelectorRequirement, ...], ATOMIC_LIST] = ()
    match_fields: Annotated[tuple[NodeSelectorRequirement, ...], ATOMIC_LIST] = ()


class NodeSelector(Part, frozen=True):
    """corev1.NodeSelector: the terms are alternatives."""

    RULE: ClassVar[Rule] = Rule(map_type="atomic")

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Rule(required=True, list_type="atomic")] = ()


class RollingUpdateDaemonSet(Part, frozen=True):
    max_unavailable: IntOrString | None = None
    max_surge: IntOrString | None = None


class UpdateStrategy(Part, frozen=True):
    """appsv1.DaemonSetUpdateStrategy."""

    type: str = ""
    rolling_update: RollingUpdateDaemonSet | None = None


# --- DPUService (1.3)

Values = Annotated[dict[str, Any] | None, Rule(preserve_unknown=True)]


class HelmSource(Part, frozen=True):
    repo_url: Annotated[str, Rule(pattern="^(oci://|https://).+$")] = field(name="repoURL")
    version: Annotated[str, Rule(min_length=1)]
    path: str = ""
    chart: str = ""
    release_name: str = ""


class HelmChart(Part, frozen=True):
    source: HelmSource
    values: Values = None


class ConfigPort(Part, frozen=True):
    name: Annotated[str, Rule(min_length=1, pattern="^[a-z0-9-]+$")]
    port: int
    protocol: Annotated[str, Rule(enum=("TCP", "UDP"))]
    node_port: int | None = None


class ConfigPorts(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        "self.serviceType == 'NodePort' || !self.ports.exists(p, has(p.nodePort))",
        "nodePort can only be set when serviceType is NodePort"),))

    service_type: Annotated[str, Rule(
        required=True, default="NodePort", enum=("NodePort", "ClusterIP", "None"), cel=(IMMUTABLE,))] = ""
    ports: Annotated[tuple[ConfigPort, ...], Rule(required=True)] = ()


class ServiceDaemonSet(Part, frozen=True):
    node_selector: NodeSelector | None = None
    update_strategy: UpdateStrategy | None = None
    labels: Labels = {}
    annotations: Labels = {}
    resources: Quantities | None = None


class DpuServiceSpec(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(
        Cel("!has(self.interfaces) || has(self.serviceID)", "serviceID must be provided when interfaces are provided"),
        # upstream: presence counts, `deployInCluster: false` is refused too (services.md 1.3)
        Cel("!(has(self.deployInCluster) && has(self.configPorts))",
            "configPorts cannot be set when deployInCluster is true"),
    ))

    helm_chart: HelmChart
    service_id: str | None = field(name="serviceID", default=None)
    service_daemon_set: ServiceDaemonSet | None = None
    deploy_in_cluster: bool | None = None
    interfaces: Annotated[tuple[str, ...], FEW] = ()
    paused: bool | None = None
    config_ports: ConfigPorts | None = None


class DpuServiceStatus(Part, frozen=True):
    conditions: Conditions = ()
    observed_generation: Int64 = 0
    config_ports: Mapping[str, tuple[ConfigPort, ...]] = {}


class DpuService(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUService"
    PLURAL: ClassVar[str] = "dpuservices"
    COLUMNS: ClassVar[tuple[Column, ...]] = STANDARD

    spec: DpuServiceSpec | None = None
    status: DpuServiceStatus | None = None


# --- chains (1.9)


class Ipam(Part, frozen=True):
    """`set_default_route` is read by nothing (services.md 1.4)."""

    match_labels: Selection
    default_gateway: bool | None = None
    set_default_route: bool | None = None


class ChainInterface(Part, frozen=True):
    """Selects ServiceInterfaces by labels."""

    match_labels: Selection
    ipam: Ipam | None = None


class ChainPort(Part, frozen=True):
    service_interface: ChainInterface


class ChainSwitch(Part, frozen=True):
    ports: Annotated[tuple[ChainPort, ...], FEW]


class ServiceChainSpec(Part, frozen=True):
    switches: Annotated[tuple[ChainSwitch, ...], FEW]
    node: str | None = None


class ServiceChain(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "ServiceChain"
    PLURAL: ClassVar[str] = "servicechains"

    spec: ServiceChainSpec | None = None
    status: Status | None = None


class ServiceChainTemplate(Part, frozen=True):
    spec: ServiceChainSpec
    metadata: Metadata | None = None


class ServiceChainSetSpec(Part, frozen=True):
    template: ServiceChainTemplate
    node_selector: LabelSelector | None = None


class SetStatus(Part, frozen=True):
    """`number_applied` and `number_ready` count what the set made."""

    conditions: Conditions = ()
    observed_generation: Int64 = 0
    number_applied: Int32 = 0
    number_ready: Int32 = 0


class ServiceChainSet(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "ServiceChainSet"
    PLURAL: ClassVar[str] = "servicechainsets"

    spec: ServiceChainSetSpec | None = None
    status: SetStatus | None = None


class ServiceChainSetTemplate(Part, frozen=True):
    spec: ServiceChainSetSpec
    metadata: Metadata | None = None


class DpuServiceChainSpec(Part, frozen=True):
    """`cluster_selector` is read by nothing (services.md 1.9)."""

    template: ServiceChainSetTemplate
    cluster_selector: LabelSelector | None = None


class DpuServiceChain(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceChain"
    PLURAL: ClassVar[str] = "dpuservicechains"
    COLUMNS: ClassVar[tuple[Column, ...]] = STANDARD

    spec: DpuServiceChainSpec | None = None
    status: Status | None = None


# --- interfaces (1.8)

FIXED_NETWORK: Final = Rule(cel=(Cel(
    "has(self.virtualNetwork) == has(oldSelf.virtualNetwork) && "
    "(!has(self.virtualNetwork) || self.virtualNetwork == oldSelf.virtualNetwork)",
    "virtualNetwork is immutable"),))
INTERFACE_TYPES: Final = ("vlan", "physical", "pf", "vf", "ovn", "service")


class Vlan(Part, frozen=True):
    vlan_id: int = field(name="vlanID")
    parent_interface_ref: str


class Physical(Part, frozen=True):
    interface_name: str


class Pf(Part, frozen=True):
    RULE: ClassVar[Rule] = FIXED_NETWORK

    pf_id: int = field(name="pfID")
    virtual_network: str | None = None


class Vf(Part, frozen=True):
    RULE: ClassVar[Rule] = FIXED_NETWORK

    vf_id: int = field(name="vfID")
    pf_id: int = field(name="pfID")
    parent_interface_ref: str
    virtual_network: str | None = None


class ServiceDef(Part, frozen=True):
    RULE: ClassVar[Rule] = FIXED_NETWORK

    service_id: str = field(name="serviceID")
    network: str
    interface_name: str
    virtual_network: str | None = None


class ServiceInterfaceSpec(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        "self.interfaceType == 'ovn' || " + " || ".join(
            f"(self.interfaceType == '{t}' && has(self.{t}))" for t in ("vlan", "pf", "vf", "physical", "service")),
        "`" + "; ".join(f"for interfaceType={t}, {t} must be set" for t in ("vlan", "pf", "vf", "physical", "service"))
        + "`"),))

    interface_type: Annotated[str, Rule(enum=INTERFACE_TYPES)]
    node: str | None = None
    physical: Physical | None = None
    vlan: Vlan | None = None
    vf: Vf | None = None
    pf: Pf | None = None
    service: ServiceDef | None = None


class ServiceInterface(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "ServiceInterface"
    PLURAL: ClassVar[str] = "serviceinterfaces"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        ("IfType", ".spec.interfaceType", "string"), ("IfName", ".spec.interfaceName", "string"), AGE_COLUMN)

    spec: ServiceInterfaceSpec | None = None
    status: Status | None = None


class ServiceInterfaceTemplate(Part, frozen=True):
    spec: ServiceInterfaceSpec
    metadata: Metadata | None = None


class ServiceInterfaceSetSpec(Part, frozen=True):
    template: ServiceInterfaceTemplate
    node_selector: LabelSelector | None = None


class ServiceInterfaceSet(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "ServiceInterfaceSet"
    PLURAL: ClassVar[str] = "serviceinterfacesets"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        ("IfType", ".spec.template.spec.interfaceType", "string"),
        ("IfName", ".spec.template.spec.interfaceName", "string"), AGE_COLUMN)

    spec: ServiceInterfaceSetSpec | None = None
    status: SetStatus | None = None


class ServiceInterfaceSetTemplate(Part, frozen=True):
    spec: ServiceInterfaceSetSpec
    metadata: Metadata | None = None


class DpuServiceInterfaceSpec(Part, frozen=True):
    """`cluster_selector` is read by nothing (services.md 1.8)."""

    template: ServiceInterfaceSetTemplate
    cluster_selector: LabelSelector | None = None


class DpuServiceInterface(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceInterface"
    PLURAL: ClassVar[str] = "dpuserviceinterfaces"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        READY_COLUMN, REASON_COLUMN,
        ("IfType", ".spec.template.spec.template.spec.interfaceType", "string"),
        ("IfName", ".spec.template.spec.template.spec.interfaceName", "string"), AGE_COLUMN)

    spec: DpuServiceInterfaceSpec | None = None
    status: Status | None = None


# --- DPUDeployment (1.4)


class ServiceRef(Part, frozen=True):
    """One service of a DPUDeployment: names of a DPUServiceTemplate and a DPUServiceConfiguration."""

    service_template: str
    service_configuration: str


class DeploymentService(Part, frozen=True):
    """A port of one of the deployment's own services."""

    name: str
    interface: str
    ipam: Ipam | None = None


class DeploymentPort(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        "has(self.service) != has(self.serviceInterface)", "either service or serviceInterface must be specified"),))

    service: DeploymentService | None = None
    service_interface: ChainInterface | None = None


class DeploymentSwitch(Part, frozen=True):
    ports: Annotated[tuple[DeploymentPort, ...], FEW]


class DeploymentChains(Part, frozen=True):
    switches: Annotated[tuple[DeploymentSwitch, ...], FEW]
    upgrade_policy: Annotated[UpgradePolicy | None, UPGRADE] = None


class DeploymentDpuSet(Part, frozen=True):
    """One DPUSet to make. Two equal suffixes are accepted and misbehave (services.md 2.2.4)."""

    RULE: ClassVar[Rule] = Rule(cel=(no_dpf_keys("dpuAnnotations"),))

    name_suffix: Annotated[str, Rule(min_length=1, max_length=63)]
    node_selector: LabelSelector | None = None
    dpu_selector: Labels = {}
    dpu_annotations: Annotated[Labels, Rule(max_properties=50)] = {}


class DeploymentDpus(Part, frozen=True):
    bfb: str
    flavor: str
    dpu_sets: Annotated[tuple[DeploymentDpuSet, ...], FEW] = ()
    node_effect: NodeEffect | None = None


class DpuDeploymentSpec(Part, frozen=True):
    dpus: DeploymentDpus
    services: Mapping[str, ServiceRef]
    service_chains: DeploymentChains
    revision_history_limit: Annotated[int | None, Rule(default=10, format="int32")] = None


class DpuDeployment(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUDeployment"
    PLURAL: ClassVar[str] = "dpudeployments"
    COLUMNS: ClassVar[tuple[Column, ...]] = STANDARD

    spec: DpuDeploymentSpec | None = None
    status: Status | None = None


# --- DPUServiceTemplate and DPUServiceConfiguration (1.5, 1.6)


class DpuServiceTemplateSpec(Part, frozen=True):
    """`resource_requirements` is what one DPU needs for this service."""

    deployment_service_name: str
    helm_chart: HelmChart
    resource_requirements: Quantities | None = None


class DpuServiceTemplateStatus(Part, frozen=True):
    conditions: Conditions = ()
    observed_generation: Int64 = 0
    versions: Mapping[str, str] = {}


class DpuServiceTemplate(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceTemplate"
    PLURAL: ClassVar[str] = "dpuservicetemplates"
    COLUMNS: ClassVar[tuple[Column, ...]] = STANDARD

    spec: DpuServiceTemplateSpec | None = None
    status: DpuServiceTemplateStatus | None = None


class ConfigurationChart(Part, frozen=True):
    values: Values = None


class ConfigurationDaemonSet(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(
        no_dpf_keys("labels", "labels ", but="key == 'svc.dpu.nvidia.com/custom-flows'"),
        no_dpf_keys("annotations", "annotations "),
    ))

    update_strategy: UpdateStrategy | None = None
    labels: Annotated[Labels, Rule(max_properties=50)] = {}
    annotations: Annotated[Labels, Rule(max_properties=50)] = {}
    resources: Quantities | None = None


class ServiceConfiguration(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        "!(has(self.deployInCluster) && has(self.configPorts))",
        "configPorts cannot be set when deployInCluster is true"),))

    helm_chart: ConfigurationChart | None = None
    service_daemon_set: ConfigurationDaemonSet | None = None
    deploy_in_cluster: bool | None = None
    config_ports: ConfigPorts | None = None


class ServiceInterfaceTemplateRef(Part, frozen=True):
    """An interface of the service; `network` is a NAD, `name` or `namespace/name`."""

    name: str
    network: str
    virtual_network: str | None = None


class DpuServiceConfigurationSpec(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(
        # upstream: fails to evaluate, and so refuses, when serviceConfiguration is absent (services.md 1.6)
        Cel("!has(self.interfaces) || self.serviceConfiguration.deployInCluster == false || "
            "!has(self.serviceConfiguration.deployInCluster)",
            "interfaces are not supported when deploying in cluster"),
        Cel("!has(self.serviceConfiguration) || !has(self.serviceConfiguration.deployInCluster) || "
            "!self.serviceConfiguration.deployInCluster || !self.upgradePolicy.applyNodeEffect",
            "upgradePolicy.applyNodeEffect must be false when deploying in cluster"),
    ))

    deployment_service_name: str
    service_configuration: ServiceConfiguration | None = None
    interfaces: Annotated[tuple[ServiceInterfaceTemplateRef, ...], FEW] = ()
    upgrade_policy: Annotated[UpgradePolicy | None, UPGRADE] = None


class DpuServiceConfiguration(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceConfiguration"
    PLURAL: ClassVar[str] = "dpuserviceconfigurations"

    spec: DpuServiceConfigurationSpec | None = None
    status: dict[str, Any] | None = None


# --- DPUServiceCredentialRequest (1.7)


class NamespacedName(Part, frozen=True):
    """An absent namespace is read as `default`."""

    name: str
    namespace: str | None = None


class DpuServiceCredentialRequestSpec(Part, frozen=True):
    service_account: NamespacedName
    secret: NamespacedName
    type: Annotated[str, Rule(enum=("kubeconfig", "tokenFile"))]
    duration: Annotated[str | None, Rule(pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$")] = None
    target_cluster: NamespacedName | None = None
    metadata: Metadata | None = None


class DpuServiceCredentialRequestStatus(Part, frozen=True):
    conditions: Conditions = ()
    observed_generation: Int64 = 0
    service_account: str | None = None
    target_cluster: str | None = None
    secret: str | None = None
    expiration_timestamp: Annotated[str, Rule(format="date-time")] = ""
    issued_at: Annotated[str, Rule(format="date-time")] = ""


class DpuServiceCredentialRequest(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceCredentialRequest"
    PLURAL: ClassVar[str] = "dpuservicecredentialrequests"
    COLUMNS: ClassVar[tuple[Column, ...]] = STANDARD

    spec: DpuServiceCredentialRequestSpec | None = None
    status: DpuServiceCredentialRequestStatus | None = None


# --- DPUServiceIPAM and DPUServiceNAD (1.10, 1.11)


class Route(Part, frozen=True):
    dst: str


class Ipv4Network(Part, frozen=True):
    """A range cut into one prefix per node."""

    network: str
    prefix_size: Int32
    gateway_index: Annotated[int | None, Rule(format="int32")] = None
    exclusions: tuple[str, ...] = ()
    allocations: Mapping[str, str] = {}
    default_gateway: bool | None = None
    routes: tuple[Route, ...] = ()


class Ipv4Subnet(Part, frozen=True):
    """One subnet, shared by blocks of addresses per node."""

    subnet: str
    gateway: str
    per_node_ip_count: int = field(name="perNodeIPCount")
    default_gateway: bool | None = None
    routes: tuple[Route, ...] = ()


class DpuServiceIpamSpec(Part, frozen=True):
    """`cluster_selector` is read by nothing (services.md 1.10)."""

    metadata: Metadata | None = None
    cluster_selector: LabelSelector | None = None
    node_selector: NodeSelector | None = None
    ipv4_network: Ipv4Network | None = field(name="ipv4Network", default=None)
    ipv4_subnet: Ipv4Subnet | None = field(name="ipv4Subnet", default=None)


class DpuServiceIpam(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceIPAM"
    PLURAL: ClassVar[str] = "dpuserviceipams"
    COLUMNS: ClassVar[tuple[Column, ...]] = STANDARD

    spec: DpuServiceIpamSpec | None = None
    status: Status | None = None


class DpuServiceNadSpec(Part, frozen=True):
    resource_type: Annotated[str, Rule(enum=("vf", "sf", "veth"))]
    bridge: str = ""
    mtu: int | None = None
    ipam: bool | None = None
    metadata: Metadata | None = None


class DpuServiceNadStatus(Part, frozen=True):
    """No observedGeneration (services.md 1.11)."""

    conditions: Conditions = ()


class DpuServiceNad(ServiceKind, frozen=True):
    KIND: ClassVar[str] = "DPUServiceNAD"
    PLURAL: ClassVar[str] = "dpuservicenads"

    spec: DpuServiceNadSpec | None = None
    status: DpuServiceNadStatus | None = None


KINDS: Final[tuple[type[Object], ...]] = (
    DpuService, DpuDeployment, DpuServiceTemplate, DpuServiceConfiguration, DpuServiceCredentialRequest,
    DpuServiceInterface, ServiceInterfaceSet, ServiceInterface, DpuServiceChain, ServiceChainSet, ServiceChain,
    DpuServiceIpam, DpuServiceNad,
)
