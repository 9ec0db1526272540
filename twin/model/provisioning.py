"""The seven kinds of `provisioning.dpu.nvidia.com/v1alpha1` as DPF v25.4 has them (provisioning.md 1).

`None` means absent. What the API server enforces or fills in stands in the `Rule`s: the server, not the reader, applies
it, so a CRD default is not an attribute default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from msgspec import field

from twin.model.meta import Conditions, Object, Part
from twin.model.rules import (
    AGE_COLUMN,
    ATOMIC_LIST,
    IMMUTABLE,
    PHASE_COLUMN,
    QUANTITY,
    READY_COLUMN,
    Cel,
    Column,
    Rule,
    immutable,
)

GROUP: Final = "provisioning.dpu.nvidia.com"


class Phase:
    """`DPU.status.phase`, as upstream spells it (provisioning.md 2.1)."""

    INITIALIZING: Final = "Initializing"
    PENDING: Final = "Pending"
    NODE_EFFECT: Final = "Node Effect"
    INITIALIZE_INTERFACE: Final = "Initialize Interface"
    CONFIG_FW_PARAMETERS: Final = "Config FW Parameters"
    PREPARE_BFB: Final = "Prepare BFB"
    OS_INSTALLING: Final = "OS Installing"
    CHECKING_HOST_REBOOT_REQUIRED: Final = "Checking Host Reboot Required"
    REBOOTING: Final = "Rebooting"
    HOST_NETWORK_CONFIGURATION: Final = "Host Network Configuration"
    DPU_CLUSTER_CONFIG: Final = "DPU Cluster Config"
    READY: Final = "Ready"
    ERROR: Final = "Error"
    DELETING: Final = "Deleting"


PHASES: Final = (
    Phase.INITIALIZING, Phase.PENDING, Phase.NODE_EFFECT, Phase.INITIALIZE_INTERFACE, Phase.CONFIG_FW_PARAMETERS,
    Phase.PREPARE_BFB, Phase.OS_INSTALLING, Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.REBOOTING,
    Phase.HOST_NETWORK_CONFIGURATION, Phase.DPU_CLUSTER_CONFIG, Phase.READY, Phase.ERROR, Phase.DELETING,
)

# The order of the CRD's enum, which its error text repeats; not the order of a DPU's life.
PHASE_ENUM: Final = (
    Phase.INITIALIZING, Phase.NODE_EFFECT, Phase.PENDING, Phase.CONFIG_FW_PARAMETERS, Phase.PREPARE_BFB,
    Phase.OS_INSTALLING, Phase.DPU_CLUSTER_CONFIG, Phase.HOST_NETWORK_CONFIGURATION, Phase.READY, Phase.ERROR,
    Phase.DELETING, Phase.REBOOTING, Phase.INITIALIZE_INTERFACE, Phase.CHECKING_HOST_REBOOT_REQUIRED,
)


class _Provisioning(Object, frozen=True):
    GROUP: ClassVar[str] = GROUP
    VERSION: ClassVar[str] = "v1alpha1"


# --- shared parts

PCI_PATTERN: Final = "^([0-9a-fA-F]{4}[-])?[0-9a-fA-F]{2}[-][0-9a-fA-F]{2}$"
INSTALL_INTERFACE: Final = Rule(enum=("gNOI", "redfish"))
OPERATION: Final = Rule(enum=("override", "append"))
KUBECONFIG: Final = Rule(cel=(Cel("oldSelf == '' || self == oldSelf", "kubeconfig is immutable"),))
Value = Annotated[str, Rule(cel=(IMMUTABLE,))]
Quantities = Mapping[str, Annotated[str | int | float, QUANTITY]]


def one_of(*fields: str) -> str:
    """CEL: exactly one of these keys is present."""
    return " + ".join(f"(has(self.{f}) ? 1 : 0)" for f in fields) + " == 1"


class Taint(Part, frozen=True):
    key: str
    effect: str
    value: str = ""
    time_added: Annotated[str, Rule(format="date-time")] = ""


class NodeEffect(Part, frozen=True):
    """Exactly one field is present (provisioning.md 1.8). Presence counts, not truth."""

    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        one_of("taint", "noEffect", "drain", "customLabel", "customAction", "hold"),
        "only one of taint, noEffect, drain, customLabel, customAction, hold can be set",
    ),))

    taint: Taint | None = None
    no_effect: bool | None = None
    custom_label: Mapping[str, str] | None = None
    drain: bool | None = None
    custom_action: str | None = None
    hold: bool | None = None


DRAIN: Final = Rule(default={"drain": True})


class LabelSelectorRequirement(Part, frozen=True):
    key: str
    operator: str
    values: Annotated[tuple[str, ...], ATOMIC_LIST] = ()


class LabelSelector(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(map_type="atomic")

    match_labels: Mapping[str, str] = {}
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], ATOMIC_LIST] = ()


# --- BFB (1.1)


class BfbSpec(Part, frozen=True):
    url: Annotated[str, Rule(required=True, pattern=r"^(http|https)://.+\.bfb$", cel=(IMMUTABLE,))] = ""
    file_name: Annotated[str | None, Rule(pattern=r"^[A-Za-z0-9\_\-\.]+\.bfb$", cel=(IMMUTABLE,))] = None


class BfbVersions(Part, frozen=True):
    bsp: Annotated[str, Rule(cel=(immutable("BSP version"),))] = ""
    doca: Annotated[str, Rule(cel=(immutable("DOCA version"),))] = ""
    uefi: Annotated[str, Rule(cel=(immutable("UEFI version"),))] = ""
    atf: Annotated[str, Rule(cel=(immutable("ATF version"),))] = ""


BFB_PHASES: Final = ("Initializing", "Downloading", "Ready", "Deleting", "Error")


class BfbStatus(Part, frozen=True):
    phase: Annotated[str, Rule(required=True, default="Initializing", enum=BFB_PHASES)] = "Initializing"
    file_name: str = ""
    versions: BfbVersions | None = None


class Bfb(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "BFB"
    PLURAL: ClassVar[str] = "bfbs"
    HAS_STATUS: ClassVar[bool] = True

    spec: Annotated[BfbSpec | None, Rule(sent=True)] = None
    status: Annotated[BfbStatus | None, Rule(default={"phase": "Initializing"})] = None


# --- DPU (1.2)


class DpuClusterRef(Part, frozen=True):
    """`DPU.spec.cluster`: empty name = not allocated yet."""

    name: Value = ""
    namespace: Value = ""
    node_labels: Mapping[str, str] = {}


class DpuSpec(Part, frozen=True):
    dpu_node_name: Value
    dpu_device_name: Annotated[str, Rule(min_length=1, cel=(IMMUTABLE,))]
    bfb: str
    pci_address: Annotated[str | None, Rule(pattern=PCI_PATTERN, cel=(IMMUTABLE,))] = None
    node_effect: Annotated[NodeEffect | None, DRAIN] = None
    cluster: DpuClusterRef = DpuClusterRef()
    dpu_flavor: str = ""
    bmc_ip: Value = field(name="bmcIP", default="")


class NodeAddress(Part, frozen=True):
    type: str
    address: str


class Firmware(Part, frozen=True):
    bmc: str = ""
    nic: str = ""
    uefi: str = ""


class DpuStatus(Part, frozen=True):
    phase: Annotated[str, Rule(required=True, default=Phase.INITIALIZING, enum=PHASE_ENUM)] = Phase.INITIALIZING
    conditions: Conditions = ()
    bfb_file: str = ""
    bf_cfg_file: str = field(name="bfCFGFile", default="")
    bfb_version: str = ""
    pci_device: str = ""
    required_reset: bool | None = None
    firmware: Firmware | None = None
    addresses: tuple[NodeAddress, ...] = ()
    dpu_install_interface: Annotated[str, INSTALL_INTERFACE] = ""


class Dpu(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "DPU"
    PLURAL: ClassVar[str] = "dpus"
    HAS_STATUS: ClassVar[bool] = True
    COLUMNS: ClassVar[tuple[Column, ...]] = (READY_COLUMN, PHASE_COLUMN, AGE_COLUMN)

    # The CRD does not require spec; a DPU without one is stored and useless.
    spec: DpuSpec = DpuSpec(dpu_node_name="", dpu_device_name="", bfb="")
    status: Annotated[DpuStatus | None, Rule(default={"phase": Phase.INITIALIZING})] = None


# --- DPUCluster (1.3)


class Keepalived(Part, frozen=True):
    vip: str
    virtual_router_id: Annotated[int, Rule(minimum=1, maximum=255)] = field(name="virtualRouterID")
    interface: Annotated[str, Rule(min_length=1)]
    node_selector: Mapping[str, str] = {}


class ClusterEndpoint(Part, frozen=True):
    keepalived: Keepalived | None = None


class DpuClusterSpec(Part, frozen=True):
    type: Annotated[str, Rule(pattern="kamaji|static|[^/]+/.*")]  # upstream: not anchored, `mystatic2` passes (1.3)
    version: Annotated[str, Rule(required=True)] = ""
    max_nodes: Annotated[int | None, Rule(default=1000, minimum=1, maximum=1000)] = None
    kubeconfig: Annotated[str, KUBECONFIG] = ""
    cluster_endpoint: ClusterEndpoint | None = None


DPUCLUSTER_PHASES: Final = ("Pending", "Creating", "Ready", "NotReady", "Failed")


class DpuClusterStatus(Part, frozen=True):
    phase: Annotated[str, Rule(required=True, default="Pending", enum=DPUCLUSTER_PHASES)] = "Pending"
    conditions: Conditions = ()


class DpuCluster(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "DPUCluster"
    PLURAL: ClassVar[str] = "dpuclusters"
    HAS_STATUS: ClassVar[bool] = True
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        READY_COLUMN, PHASE_COLUMN, ("Type", ".spec.type", "string"), ("MaxNodes", ".spec.maxNodes", "integer"),
        ("Version", ".spec.version", "string"), AGE_COLUMN,
    )

    spec: DpuClusterSpec
    status: Annotated[DpuClusterStatus | None, Rule(default={"phase": "Pending"})] = None


# --- DPUDevice (1.4)


class DpuDeviceSpec(Part, frozen=True):
    pci_address: Annotated[str | None, Rule(pattern=PCI_PATTERN, cel=(immutable("PCI Address"),))] = None
    psid: Annotated[str | None, Rule(pattern=r"^MT_\d{10}$", cel=(immutable("PSID"),))] = None
    opn: Annotated[str | None, Rule(
        pattern=r"^\d{3}-[A-Z0-9]{5}-[A-Z0-9]{4}-[A-Z0-9]{3}$", cel=(immutable("OPN"),))] = None
    bmc_ip: Annotated[str | None, Rule(format="ipv4", cel=(immutable("BMC IP"),))] = None
    number_of_pfs: Annotated[int | None, Rule(default=1, minimum=1, cel=(immutable("Number of PFs"),))] = field(
        name="numberOfPFs", default=None)
    pf0_name: Annotated[str | None, Rule(cel=(immutable("PF0 Name"),))] = field(name="pf0Name", default=None)


class DpuDevice(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "DPUDevice"
    PLURAL: ClassVar[str] = "dpudevices"

    spec: DpuDeviceSpec = DpuDeviceSpec()


# --- DPUFlavor (1.5)


class Grub(Part, frozen=True):
    kernel_parameters: tuple[str, ...] = ()


class Sysctl(Part, frozen=True):
    parameters: tuple[str, ...] = ()


class NvConfig(Part, frozen=True):
    device: str | None = None
    parameters: tuple[str, ...] = ()
    host_power_cycle_required: bool | None = None


class OvsConfig(Part, frozen=True):
    raw_config_script: str = ""


class ConfigFile(Part, frozen=True):
    path: str = ""
    operation: Annotated[str, OPERATION] = ""
    raw: str = ""
    permissions: str = ""


class ContainerdConfig(Part, frozen=True):
    registry_endpoint: str = ""


class DpuFlavorSpec(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(immutable("DPUFlavor spec"),))

    grub: Grub | None = None
    sysctl: Sysctl | None = None
    nvconfig: tuple[NvConfig, ...] = ()
    ovs: OvsConfig | None = None
    bfcfg_parameters: tuple[str, ...] = ()
    config_files: tuple[ConfigFile, ...] = ()
    containerd_config: ContainerdConfig | None = None
    dpu_resources: Quantities | None = None
    system_reserved_resources: Quantities | None = None
    dpu_mode: Annotated[str, Rule(enum=("dpu", "zero-trust", "nic"))] = ""


class DpuFlavor(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "DPUFlavor"
    PLURAL: ClassVar[str] = "dpuflavors"

    spec: DpuFlavorSpec = DpuFlavorSpec()


# --- DPUNode (1.6)


class ScriptReboot(Part, frozen=True):
    name: Annotated[str, Rule(min_length=1)]


class NodeRebootMethod(Part, frozen=True):
    """Exactly one of the three is present; the schema's default is `{gNOI: {}}`."""

    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        one_of("gNOI", "external", "script"), "only one of gNOI, external, script can be set"),))

    gnoi: dict[str, Any] | None = field(name="gNOI", default=None)
    external: dict[str, Any] | None = None
    script: ScriptReboot | None = None


class DmsAddress(Part, frozen=True):
    ip: Annotated[str, Rule(format="ipv4")]
    port: Annotated[int, Rule(minimum=1)]


class DpuRef(Part, frozen=True):
    name: Annotated[str, Rule(min_length=1)]


class DpuNodeSpec(Part, frozen=True):
    node_reboot_method: Annotated[NodeRebootMethod | None, Rule(default={"gNOI": {}})] = None
    node_dms_address: DmsAddress | None = field(name="nodeDMSAddress", default=None)
    dpus: tuple[DpuRef, ...] = ()


class DpuNodeStatus(Part, frozen=True):
    conditions: Conditions = ()
    dpu_install_interface: Annotated[str, INSTALL_INTERFACE] = ""
    kube_node_ref: Annotated[str | None, Rule(cel=(immutable("KubeNodeRef"),))] = None


class DpuNode(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "DPUNode"
    PLURAL: ClassVar[str] = "dpunodes"
    HAS_STATUS: ClassVar[bool] = True

    spec: DpuNodeSpec = DpuNodeSpec()
    status: DpuNodeStatus | None = None


# --- DPUSet (1.7)


class RollingUpdate(Part, frozen=True):
    max_unavailable: int | str | None = None


class DpuSetStrategy(Part, frozen=True):
    type: Annotated[str, Rule(default="OnDelete", enum=("OnDelete", "RollingUpdate"))] = ""
    rolling_update: RollingUpdate | None = None


class BfbRef(Part, frozen=True):
    name: str = ""


class TemplateCluster(Part, frozen=True):
    node_labels: Mapping[str, str] = {}


class DpuTemplateSpec(Part, frozen=True):
    bfb: Annotated[BfbRef, Rule(sent=True)] = BfbRef()
    dpu_flavor: Annotated[str, Rule(sent=True)] = ""
    node_effect: Annotated[NodeEffect | None, DRAIN] = None
    cluster: TemplateCluster | None = None


class DpuTemplate(Part, frozen=True):
    annotations: Mapping[str, str] = {}
    spec: Annotated[DpuTemplateSpec, Rule(sent=True)] = DpuTemplateSpec()


class DpuSetSpec(Part, frozen=True):
    strategy: DpuSetStrategy | None = None
    dpu_node_selector: LabelSelector | None = None
    dpu_selector: Mapping[str, str] = {}
    dpu_template: Annotated[DpuTemplate, Rule(sent=True)] = DpuTemplate()


class DpuSetStatus(Part, frozen=True):
    dpu_statistics: Mapping[str, int] = {}


class DpuSet(_Provisioning, frozen=True):
    KIND: ClassVar[str] = "DPUSet"
    PLURAL: ClassVar[str] = "dpusets"
    HAS_STATUS: ClassVar[bool] = True

    spec: Annotated[DpuSetSpec, Rule(sent=True)] = DpuSetSpec()
    status: DpuSetStatus | None = None


KINDS: Final[tuple[type[Object], ...]] = (Bfb, Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuSet)
