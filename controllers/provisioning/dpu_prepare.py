"""The first five phases: everything that is checked before the DPU's disk is touched (provisioning.md 2.2)."""

from __future__ import annotations

import ipaddress

from controllers.provisioning import node_effect
from controllers.provisioning.allocator import SPILL_OVER, Allocator, NoRoom
from controllers.provisioning.dpu_pass import Pass, Unmet, dms_target, fatal
from controllers.provisioning.flags import GNOI, REDFISH
from twin.backends.base import ApiError, RpcError
from twin.model import dms_commands as commands
from twin.model import parts
from twin.model.meta import Key, replace
from twin.model.names import Finalizer, Label
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuStatus, Phase


def initializing(p: Pass) -> DpuStatus:
    """Its DPUNode, its DPUDevice, how it is installed, which DPUCluster it joins."""
    spec, status = p.dpu.spec, p.status
    node = p.node()
    _protect(p, node)
    p.find(DpuDevice, p.beside(spec.dpu_device_name), "DPUDeviceNotFound", "GetDPUDeviceError")
    if Label.OOB_BRIDGE not in node.metadata.labels:
        raise Unmet("DPUOOBBridgeNotConfigured", "DPU OOB bridge is not configured")
    interface = node.status.dpu_install_interface if node.status is not None else ""
    if not interface:
        raise Unmet("DPUInstallInterfaceNotProvided", "DPU install interface is not provided")
    if status.dpu_install_interface != interface:
        return replace(status, dpu_install_interface=interface)
    _check_interface(p, interface)
    if not spec.cluster.name:
        _allocate(p)
        return status
    cluster = Key(spec.cluster.namespace, spec.cluster.name)
    p.find(DpuCluster, cluster, "DPUClusterNotFound", "GetDPUClusterError")
    return p.passed(Phase.PENDING)


def _protect(p: Pass, node: DpuNode) -> None:
    if Finalizer.DPUNODE in node.metadata.finalizers:
        return
    try:
        p.kube.update(replace(node, metadata=replace(
            node.metadata, finalizers=(*node.metadata.finalizers, Finalizer.DPUNODE))))
    except ApiError as error:
        raise Unmet("UpdateDPUNodeError", str(error)) from error


def _check_interface(p: Pass, interface: str) -> None:
    spec = p.dpu.spec
    if interface == GNOI:
        if spec.pci_address is None:
            raise fatal("PCIAddressNotProvided", "PCI address is not provided")
    elif interface == REDFISH:
        try:
            ipaddress.ip_address(spec.bmc_ip)
        except ValueError as error:
            raise fatal("BMCIPNotValid", f"BMC IP {spec.bmc_ip!r} is not valid") from error
    else:
        raise fatal("InvalidDPUInstallInterface", f"invalid DPU install interface {interface}")


def _allocate(p: Pass) -> None:
    """Give the DPU a DPUCluster; the phase goes on when the patched DPU comes back."""
    allocator = p.b.memory.get(Allocator)
    try:
        cluster = allocator.choose(p.kube, p.b.memory, spill=SPILL_OVER in p.b.policies).key
        p.kube.patch(Dpu, p.key, {"spec": {"cluster": {"name": cluster.name, "namespace": cluster.namespace}}})
    except (NoRoom, ApiError) as error:
        raise Unmet("DPUClusterNotAllocated", str(error)) from error
    allocator.take(cluster, p.key)


def pending(p: Pass) -> DpuStatus:
    """Wait for the BFB."""
    bfb = p.find(Bfb, p.beside(p.dpu.spec.bfb), "BFBNotFound", "GetBFBError")
    if bfb.status is None or bfb.status.phase != "Ready":
        raise Unmet("BFBIsNotReady", "BFB is not ready")
    return replace(p.passed(Phase.NODE_EFFECT), bfb_file=f"/bfb/{bfb.status.file_name}")


def node_effect_phase(p: Pass) -> DpuStatus:
    """Put the worker out of use, in the way the user chose."""
    node_effect.apply(p)
    return p.passed(Phase.INITIALIZE_INTERFACE)


def initialize_interface(p: Pass) -> DpuStatus:
    """Is the card big enough for the flavor?"""
    if p.status.dpu_install_interface == REDFISH:
        # Not modelled: the BMC path ends here, visibly (docs: fidelity).
        raise Unmet("RedfishNotModelled", "installing through redfish is not modelled", waiting=True)
    pci = p.dpu.spec.pci_address
    if pci is None:
        raise fatal("InvalidPCIAddress", "PCI address is not provided")
    failed = "FailedToGetDPUCapacity"
    flavor = _flavor(p, failed, failed)
    try:
        answer = p.ask(dms_target(p.b, p.kube, p.dpu), commands.query_card(pci), failed)
        card = parts.capacity(answer)
        enough = parts.fits(flavor.spec.dpu_resources, card)
    except parts.UnknownPart as error:
        # upstream: unknown-part-passes. A card nobody can size is taken to be big enough.
        return p.passed(Phase.CONFIG_FW_PARAMETERS, "UnableToCheckCapacity", str(error))
    except ValueError as error:
        raise Unmet(failed, str(error)) from error
    if not enough:
        raise fatal("InsufficientResources", "not enough resources for the given DPUFlavor")
    return p.passed(Phase.CONFIG_FW_PARAMETERS, "DMSInitialized")


def config_fw_parameters(p: Pass) -> DpuStatus:
    """Put the card in DPU mode.

    upstream: deletion-ignored-in-config-fw. No look at the deletion timestamp here.
    """
    flavor = _flavor(p, "DPUFlavorNotFound", "GetDPUFlavorError")
    mode = flavor.spec.dpu_mode
    if mode not in ("", "dpu"):
        raise fatal("RequestedDPUModeUnsupported", f"requested DPU mode {mode} is not supported")
    try:
        target = dms_target(p.b, p.kube, p.dpu)
    except ValueError as error:
        raise Unmet("ErrorCreatingGRPCConnection", str(error)) from error
    try:
        p.b.dms.set_mode(target, "DPU")
    except RpcError as error:
        raise Unmet("FailedToSetDPUMode", str(error)) from error
    return p.passed(Phase.OS_INSTALLING, "ConfigureFWParameters")


def _flavor(p: Pass, missing: str, failed: str) -> DpuFlavor:
    return p.find(DpuFlavor, p.beside(p.dpu.spec.dpu_flavor), missing, failed)
