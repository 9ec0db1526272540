"""Host Network Configuration: a script on the host, through DMS (provisioning.md 2.2 phase 9, 8.3)."""

from __future__ import annotations

from controllers.provisioning import dpu_tasks
from controllers.provisioning.dpu_pass import Pass, Unmet, dms_target, fatal
from controllers.provisioning.dpu_tasks import HOST_NETWORK, TaskFailed
from controllers.provisioning.install_files import ONE_CONFIG, control_plane_mtu
from twin.backends.base import ApiError
from twin.model import bfcfg
from twin.model import dms_commands as commands
from twin.model.core import DpfOperatorConfig
from twin.model.provisioning import Dpu, DpuFlavor, DpuStatus, Phase
from twin.runtime.backends import Backends
from twin.runtime.memory import TaskBody


def host_network_configuration(p: Pass) -> DpuStatus:
    """VFs, bridge and MTU on the host; the DPU cannot join before this is done."""
    flavor = p.find(DpuFlavor, p.beside(p.dpu.spec.dpu_flavor), "DPUFlavorNotFound", "GetDPUFlavorError")
    pci = p.dpu.spec.pci_address
    if pci is None:
        raise Unmet("GetPCIAddrFromDPUError", f"PCI address of DPU {p.key} is not set")
    try:
        configs = p.kube.list(DpfOperatorConfig)
    except ApiError as error:
        raise Unmet("ListDPFOperatorConfigsError", str(error)) from error
    if len(configs) != 1:
        raise Unmet("DPFOperatorConfigCountError", ONE_CONFIG)
    if configs[0].spec.networking is None:
        raise Unmet("DPFOperatorConfigNetworkingSectionMissing", "networking section is missing in DPFOperatorConfig")
    try:
        vfs = bfcfg.number_of_vfs(flavor.spec)
    except ValueError as error:
        raise Unmet("GetDPUFlavorError", str(error)) from error
    command = commands.host_network_setup(vfs, pci, control_plane_mtu(configs[0]))
    try:
        if dpu_tasks.attempt(p, HOST_NETWORK, lambda _: set_up(p.b, p.dpu, command)):
            return p.passed(Phase.DPU_CLUSTER_CONFIG)
    except TaskFailed as error:
        raise fatal("HostNetworkSetupFailed", "failed after multiple retries") from error
    raise Unmet("HostNetworkSetupInProgress", "operation in progress", waiting=True)


def set_up(b: Backends, dpu: Dpu, command: str) -> TaskBody:
    """Raises RpcError, ValueError."""
    yield b.dms.command(dms_target(b, b.background, dpu), command)
