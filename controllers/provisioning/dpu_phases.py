"""The phases of a DPU on the gNOI path: phase -> handler, and the condition each owns (provisioning.md 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from controllers.provisioning import dpu_deletion, dpu_hostnetwork, dpu_install, dpu_join, dpu_prepare, dpu_reboot
from controllers.provisioning.dpu_pass import Pass
from controllers.provisioning.dpu_tasks import HOST_NETWORK, OS_INSTALL, REBOOT
from twin.model.provisioning import DpuStatus, Phase

Handler = Callable[[Pass], DpuStatus]
"""The next status; the same object when the phase stays as it is. Raises Unmet."""


@dataclass(frozen=True, slots=True)
class Row:
    """One phase. `leaves` is False where a deletion is not honoured at once (2.4). `drops`: tasks it forgets."""

    handle: Handler
    condition: str
    leaves: bool = True
    drops: tuple[str, ...] = ()


PHASES: Final[Mapping[str, Row]] = {
    Phase.INITIALIZING: Row(dpu_prepare.initializing, "Initialized"),
    Phase.PENDING: Row(dpu_prepare.pending, "BFBReady"),
    Phase.NODE_EFFECT: Row(dpu_prepare.node_effect_phase, "NodeEffectReady"),
    Phase.INITIALIZE_INTERFACE: Row(dpu_prepare.initialize_interface, "InterfaceInitialized"),
    Phase.CONFIG_FW_PARAMETERS: Row(dpu_prepare.config_fw_parameters, "FWConfigured", leaves=False),
    Phase.OS_INSTALLING: Row(dpu_install.os_installing, "OSInstalled", leaves=False),
    Phase.CHECKING_HOST_REBOOT_REQUIRED: Row(
        dpu_reboot.checking_host_reboot_required, "CheckedHostRebootNeed", drops=(OS_INSTALL,)),
    Phase.REBOOTING: Row(dpu_reboot.rebooting, "Rebooted"),
    Phase.HOST_NETWORK_CONFIGURATION: Row(
        dpu_hostnetwork.host_network_configuration, "HostNetworkReady", drops=(REBOOT,)),
    Phase.DPU_CLUSTER_CONFIG: Row(dpu_join.dpu_cluster_config, "DPUClusterReady", drops=(HOST_NETWORK,)),
    Phase.READY: Row(dpu_join.ready, "Ready"),
    Phase.ERROR: Row(dpu_deletion.error, "Error", drops=(OS_INSTALL, REBOOT, HOST_NETWORK)),
    Phase.DELETING: Row(dpu_deletion.deleting, "Deleting", leaves=False, drops=(OS_INSTALL, REBOOT, HOST_NETWORK)),
}
