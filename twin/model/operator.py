"""DPFOperatorConfig of `operator.dpu.nvidia.com/v1alpha1` (provisioning.md 9.1, services.md 1.12)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from msgspec import field

from twin.model.meta import Conditions, Object, Part
from twin.model.provisioning import one_of
from twin.model.rules import AGE_COLUMN, READY_COLUMN, REASON_COLUMN, Cel, Column, Rule

_HOST: Final = (r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
                r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[(?:[a-fA-F0-9:]+)\])")
_WORD: Final = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
IMAGE: Final = Rule(pattern=(
    rf"^((?:{_HOST}(?::[0-9]+)?/)?{_WORD}(?:/{_WORD})*)(?::([\w][\w.-]{{0,127}}))?"
    r"(?:@([A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*[:][[:xdigit:]]{32,}))?$"))
"""An image reference; the tag may be missing here, which fails later (services.md 1.12)."""
HELM_CHART: Final = Rule(pattern="^(oci://|https://).+$")
MTU: Final = Rule(default=1500, minimum=1000, maximum=9216)

Image = Annotated[str | None, IMAGE]


class Networking(Part, frozen=True):
    control_plane_mtu: Annotated[int | None, MTU] = field(name="controlPlaneMTU", default=None)
    high_speed_mtu: Annotated[int | None, MTU] = field(name="highSpeedMTU", default=None)


class BfbRegistry(Part, frozen=True):
    disable: bool | None = None
    port: int | None = None


class InstallViaRedfish(Part, frozen=True):
    bfb_registry_address: Annotated[str, Rule(min_length=1)] = ""
    bfb_registry: BfbRegistry | None = None


class InstallInterface(Part, frozen=True):
    RULE: ClassVar[Rule] = Rule(cel=(Cel(
        one_of("installViaGNOI", "installViaRedfish"),
        "exactly one of installViaGNOI or installViaRedfish must be set"),))

    install_via_gnoi: dict[str, Any] | None = field(name="installViaGNOI", default=None)
    install_via_redfish: InstallViaRedfish | None = None


class ProvisioningController(Part, frozen=True):
    bfb_pvc_name: Annotated[str, Rule(required=True, min_length=1)] = field(name="bfbPVCName", default="")
    dms_timeout: Annotated[int | None, Rule(minimum=1)] = None
    bf_cfg_template_config_map: str = field(name="bfCFGTemplateConfigMap", default="")
    custom_ca_secret_name: str = field(name="customCASecretName", default="")
    install_interface: InstallInterface | None = None
    disable: bool | None = None
    image: Image = None


class Collectors(Part, frozen=True):
    ps_id: bool | None = field(name="psID", default=None)


class HostComponent(Part, frozen=True):
    """A component that runs in the host cluster."""

    disable: bool | None = None
    image: Image = None


class DpuDetector(Part, frozen=True):
    disable: bool | None = None
    image: Image = None
    collectors: Collectors | None = None


class DpuComponent(Part, frozen=True):
    """A component that a DPUService brings to the DPU clusters."""

    disable: bool | None = None
    image: Image = None
    deploy_in_target_cluster: bool | None = None
    helm_chart: Annotated[str | None, HELM_CHART] = None


class SfcController(Part, frozen=True):
    disable: bool | None = None
    image: Image = None
    deploy_in_target_cluster: bool | None = None
    helm_chart: Annotated[str | None, HELM_CHART] = None
    secure_flow_deletion_timeout: str | None = None


class FlannelImages(Part, frozen=True):
    flannel_cni: Annotated[str, Rule(required=True, min_length=1)] = field(name="flannelCNI", default="")
    kube_flannel: Annotated[str, Rule(required=True, min_length=1)] = ""


class Flannel(Part, frozen=True):
    disable: bool | None = None
    image: FlannelImages | None = None
    deploy_in_target_cluster: bool | None = None
    helm_chart: Annotated[str | None, HELM_CHART] = None


class Overrides(Part, frozen=True):
    paused: bool | None = None
    dpu_cni_bin_path: str | None = field(name="dpuCNIBinPath", default=None)
    dpu_cni_path: str | None = field(name="dpuCNIPath", default=None)
    dpu_openvswitch_run_path: str | None = field(
        name="dpuOpenvSwitchRunPath", default=None)
    dpu_openvswitch_bin_path: str | None = field(
        name="dpuOpenvSwitchBinPath", default=None)
    dpu_openvswitch_system_shared_path: str | None = field(
        name="dpuOpenvSwitchSystemSharedPath", default=None)
    kubernetes_api_server_vip: str | None = field(name="kubernetesAPIServerVIP", default=None)
    kubernetes_api_server_port: int | None = field(name="kubernetesAPIServerPort", default=None)


class DpfOperatorConfigSpec(Part, frozen=True):
    networking: Annotated[Networking | None, Rule(default={"controlPlaneMTU": 1500})] = None
    provisioning_controller: Annotated[ProvisioningController | None, Rule(required=True)] = None
    overrides: Overrides | None = None
    image_pull_secrets: tuple[str, ...] = ()
    dpu_detector: DpuDetector | None = None
    kamaji_cluster_manager: HostComponent | None = None
    static_cluster_manager: HostComponent | None = None
    dpu_service_controller: HostComponent | None = None
    service_set_controller: DpuComponent | None = None
    flannel: Flannel | None = None
    multus: DpuComponent | None = None
    sriov_device_plugin: DpuComponent | None = None
    ovs_cni: DpuComponent | None = field(name="ovsCNI", default=None)
    nvipam: DpuComponent | None = None
    ovs_helper: DpuComponent | None = None
    sfc_controller: SfcController | None = None


class DpfOperatorConfigStatus(Part, frozen=True):
    conditions: Conditions = ()
    observed_generation: Annotated[int, Rule(format="int64")] = 0


class DpfOperatorConfig(Object, frozen=True):
    KIND: ClassVar[str] = "DPFOperatorConfig"
    GROUP: ClassVar[str] = "operator.dpu.nvidia.com"
    VERSION: ClassVar[str] = "v1alpha1"
    PLURAL: ClassVar[str] = "dpfoperatorconfigs"
    HAS_STATUS: ClassVar[bool] = True
    COLUMNS: ClassVar[tuple[Column, ...]] = (READY_COLUMN, REASON_COLUMN, AGE_COLUMN)

    spec: DpfOperatorConfigSpec = DpfOperatorConfigSpec()
    status: DpfOperatorConfigStatus | None = None
