"""The seven kinds of `provisioning.dpu.nvidia.com/v1alpha1` as DPF v25.4 has them (provisioning.md 1).

`None` means absent; defaults that the CRD fills in are not attribute defaults here but live in the schema
(`twin.model.schema`), because the API server, not the reader, applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from msgspec import field

from twin.model.meta import Conditions, Object, Part

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


class _Provisioning(Object):
    GROUP: ClassVar[str] = GROUP
    VERSION: ClassVar[str] = "v1alpha1"


# --- shared parts


class Taint(Part):
    key: str
    effect: str
    value: str = ""
    time_added: str = ""


class NodeEffect(Part):
    """Exactly one field is present (provisioning.md 1.8). Presence counts, not truth."""

    taint: Taint | None = None
    no_effect: bool | None = None
    custom_label: Mapping[str, str] | None = None
    drain: bool | None = None
    custom_action: str | None = None
    hold: bool | None = None


class LabelSelectorRequirement(Part):
    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(Part):
    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


# --- BFB (1.1)


class BfbSpec(Part):
    url: str = ""
    file_name: str | None = None


class BfbVersions(Part):
    bsp: str = ""
    doca: str = ""
    uefi: str = ""
    atf: str = ""


class BfbStatus(Part):
    phase: str = "Initializing"
    file_name: str = ""
    versions: BfbVersions | None = None


class Bfb(_Provisioning):
    KIND: ClassVar[str] = "BFB"
    PLURAL: ClassVar[str] = "bfbs"
    HAS_STATUS: ClassVar[bool] = True

    spec: BfbSpec | None = None
    status: BfbStatus | None = None


# --- DPU (1.2)


class DpuClusterRef(Part):
    """`DPU.spec.cluster`: empty name = not allocated yet."""

    name: str = ""
    namespace: str = ""
    node_labels: Mapping[str, str] = {}


class DpuSpec(Part):
    dpu_node_name: str
    dpu_device_name: str
    bfb: str
    pci_address: str | None = None
    node_effect: NodeEffect | None = None
    cluster: DpuClusterRef = DpuClusterRef()
    dpu_flavor: str = ""
    bmc_ip: str = field(name="bmcIP", default="")


class NodeAddress(Part):
    type: str
    address: str


class Firmware(Part):
    bmc: str = ""
    nic: str = ""
    uefi: str = ""


class DpuStatus(Part):
    phase: str = Phase.INITIALIZING
    conditions: Conditions = ()
    bfb_file: str = ""
    bf_cfg_file: str = field(name="bfCFGFile", default="")
    bfb_version: str = ""
    pci_device: str = ""
    required_reset: bool | None = None
    firmware: Firmware | None = None
    addresses: tuple[NodeAddress, ...] = ()
    dpu_install_interface: str = ""


class Dpu(_Provisioning):
    KIND: ClassVar[str] = "DPU"
    PLURAL: ClassVar[str] = "dpus"
    HAS_STATUS: ClassVar[bool] = True

    spec: DpuSpec
    status: DpuStatus | None = None


# --- DPUCluster (1.3)


class Keepalived(Part):
    vip: str
    virtual_router_id: int = field(name="virtualRouterID")
    interface: str
    node_selector: Mapping[str, str] = {}


class ClusterEndpoint(Part):
    keepalived: Keepalived | None = None


class DpuClusterSpec(Part):
    type: str
    version: str = ""
    max_nodes: int | None = None
    kubeconfig: str = ""
    cluster_endpoint: ClusterEndpoint | None = None


class DpuClusterStatus(Part):
    phase: str = "Pending"
    conditions: Conditions = ()


class DpuCluster(_Provisioning):
    KIND: ClassVar[str] = "DPUCluster"
    PLURAL: ClassVar[str] = "dpuclusters"
    HAS_STATUS: ClassVar[bool] = True

    spec: DpuClusterSpec
    status: DpuClusterStatus | None = None


# --- DPUDevice (1.4)


class DpuDeviceSpec(Part):
    pci_address: str | None = None
    psid: str | None = None
    opn: str | None = None
    bmc_ip: str | None = None
    number_of_pfs: int | None = field(name="numberOfPFs", default=None)
    pf0_name: str | None = field(name="pf0Name", default=None)


class DpuDevice(_Provisioning):
    KIND: ClassVar[str] = "DPUDevice"
    PLURAL: ClassVar[str] = "dpudevices"

    spec: DpuDeviceSpec = DpuDeviceSpec()


# --- DPUFlavor (1.5)


class Grub(Part):
    kernel_parameters: tuple[str, ...] = ()


class Sysctl(Part):
    parameters: tuple[str, ...] = ()


class NvConfig(Part):
    device: str | None = None
    parameters: tuple[str, ...] = ()
    host_power_cycle_required: bool | None = None


class OvsConfig(Part):
    raw_config_script: str = ""


class ConfigFile(Part):
    path: str = ""
    operation: str = ""
    raw: str = ""
    permissions: str = ""


class ContainerdConfig(Part):
    registry_endpoint: str = ""


class DpuFlavorSpec(Part):
    grub: Grub | None = None
    sysctl: Sysctl | None = None
    nvconfig: tuple[NvConfig, ...] = ()
    ovs: OvsConfig | None = None
    bfcfg_parameters: tuple[str, ...] = ()
    config_files: tuple[ConfigFile, ...] = ()
    containerd_config: ContainerdConfig | None = None
    dpu_resources: Mapping[str, str | int | float] | None = None
    system_reserved_resources: Mapping[str, str | int | float] | None = None
    dpu_mode: str = ""


class DpuFlavor(_Provisioning):
    KIND: ClassVar[str] = "DPUFlavor"
    PLURAL: ClassVar[str] = "dpuflavors"

    spec: DpuFlavorSpec = DpuFlavorSpec()


# --- DPUNode (1.6)


class ScriptReboot(Part):
    name: str


class NodeRebootMethod(Part):
    """Exactly one of the three is present; the schema's default is `{gNOI: {}}`."""

    gnoi: dict[str, Any] | None = field(name="gNOI", default=None)
    external: dict[str, Any] | None = None
    script: ScriptReboot | None = None


class DmsAddress(Part):
    ip: str
    port: int


class DpuRef(Part):
    name: str


class DpuNodeSpec(Part):
    node_reboot_method: NodeRebootMethod | None = None
    node_dms_address: DmsAddress | None = field(name="nodeDMSAddress", default=None)
    dpus: tuple[DpuRef, ...] = ()


class DpuNodeStatus(Part):
    conditions: Conditions = ()
    dpu_install_interface: str = ""
    kube_node_ref: str | None = None


class DpuNode(_Provisioning):
    KIND: ClassVar[str] = "DPUNode"
    PLURAL: ClassVar[str] = "dpunodes"
    HAS_STATUS: ClassVar[bool] = True

    spec: DpuNodeSpec = DpuNodeSpec()
    status: DpuNodeStatus | None = None


# --- DPUSet (1.7)


class RollingUpdate(Part):
    max_unavailable: int | str | None = None


class DpuSetStrategy(Part):
    type: str = ""
    rolling_update: RollingUpdate | None = None


class BfbRef(Part):
    name: str = ""


class TemplateCluster(Part):
    node_labels: Mapping[str, str] = {}


class DpuTemplateSpec(Part):
    bfb: BfbRef = BfbRef()
    dpu_flavor: str = ""
    node_effect: NodeEffect | None = None
    cluster: TemplateCluster | None = None


class DpuTemplate(Part):
    annotations: Mapping[str, str] = {}
    spec: DpuTemplateSpec = DpuTemplateSpec()


class DpuSetSpec(Part):
    strategy: DpuSetStrategy | None = None
    dpu_node_selector: LabelSelector | None = None
    dpu_selector: Mapping[str, str] = {}
    dpu_template: DpuTemplate = DpuTemplate()


class DpuSetStatus(Part):
    dpu_statistics: Mapping[str, int] = {}


class DpuSet(_Provisioning):
    KIND: ClassVar[str] = "DPUSet"
    PLURAL: ClassVar[str] = "dpusets"
    HAS_STATUS: ClassVar[bool] = True

    spec: DpuSetSpec = DpuSetSpec()
    status: DpuSetStatus | None = None


KINDS: Final[tuple[type[Object], ...]] = (Bfb, Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuSet)
