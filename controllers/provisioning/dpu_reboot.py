"""Does the host have to reboot, and the reboot itself (provisioning.md 2.2 phases 7 and 8, 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from controllers.provisioning import dpu_tasks, reboot_script
from controllers.provisioning.dpu_pass import Pass, Unmet, dms_target, fatal, siblings
from controllers.provisioning.dpu_tasks import REBOOT, TaskFailed
from controllers.provisioning.reboot_command import reboot_plan
from twin.backends.base import ApiError, DmsTarget, RpcError
from twin.model import dms_commands as commands
from twin.model.meta import Key, condition, parse_time
from twin.model.names import Annotation, Label, dms_pod
from twin.model.provisioning import Dpu, DpuNode, DpuStatus, Phase
from twin.runtime.backends import Backends
from twin.runtime.memory import TaskBody

V = TypeVar("V")

INTERFACE_INITIALIZED: Final = "InterfaceInitialized"
AFTER_REBOOT: Final = Phase.HOST_NETWORK_CONFIGURATION

WAITS_FOR_SIBLINGS: Final = "reboot-waits-for-siblings"
"""Policy: a host is not rebooted while another of its DPUs is in OS Installing."""


# --- is it needed


def checking_host_reboot_required(p: Pass) -> DpuStatus:
    """A firmware that the card runs already, or can switch to by itself, saves the host a reboot."""
    target = _target(p)
    pci = p.dpu.metadata.labels.get(Label.DEVICE_PCI_ADDRESS)
    if pci is None:
        raise Unmet("DPUObjectMissingPCIAddressLabel", f"DPU object is missing the label {Label.DEVICE_PCI_ADDRESS}")

    def read(command: str, reason: str, reader: Callable[[str], V]) -> V:
        try:
            return reader(p.ask(target, command, reason))
        except ValueError as error:
            raise Unmet(reason, str(error)) from error

    rescan = read(commands.read_mfrl(pci), "FailedToCheckPCIRescanRequired", commands.rescan_required)
    try:
        if commands.hex_number(rescan) == 1:
            return p.passed(Phase.REBOOTING)
    except ValueError as error:
        raise Unmet("FailedToConvertHexToDec", str(error)) from error
    query = commands.query_firmware(pci)
    flash = read(query, "FailedToCheckCurrentFirmwareVersion", commands.firmware_on_flash)
    running = read(query, "FailedToCheckRunningFirmwareVersion", commands.firmware_running)
    if flash == running:
        return p.passed(AFTER_REBOOT)
    level3 = read(commands.query_reset(pci), "FailedToCheckResetLevel", commands.level3_supported)
    sync1 = read(commands.query_reset(pci), "FailedToCheckSyncLevel", commands.sync1_supported)
    if not (level3 and sync1):
        return p.passed(Phase.REBOOTING)
    p.ask(target, commands.reset_firmware(pci), "FailedToResetFirmware")
    return p.passed(AFTER_REBOOT)


def _target(p: Pass) -> DmsTarget:
    """upstream: grpc-setup-failure-is-final. A missing Secret or address sends the DPU to Error."""
    try:
        return dms_target(p.b, p.kube, p.dpu)
    except ValueError as error:
        raise fatal("FailedToCreateGRPCConnection", str(error)) from error


# --- do it


def rebooting(p: Pass) -> DpuStatus:
    """Reboot the host in the DPUNode's way, once.

    upstream: reboot-ignores-siblings. What the host's other DPUs are doing is not looked at.
    """
    node = p.node()
    initialized = condition(p.status.conditions, INTERFACE_INITIALIZED)
    if initialized is None or initialized.status != "True":
        raise Unmet("InvalidState", f"condition {INTERFACE_INITIALIZED} is not True")
    try:
        plan = reboot_plan(p.dpu, node)
    except ValueError as error:
        raise Unmet("GenerateIPMIToolCommandError", str(error)) from error
    method = node.spec.node_reboot_method
    if plan.command == "skip":
        # upstream: skipped-reboot-is-ready. Firmware and nvconfig may stay old on a DPU that becomes Ready.
        return p.passed(AFTER_REBOOT)
    if WAITS_FOR_SIBLINGS in p.b.policies and any(_installing(dpu) for dpu in siblings(p)):
        return p.status
    if method is not None and method.external is not None:
        return _external(p, node)
    if method is not None and method.script is not None:
        return reboot_script.run(p, method.script.name, AFTER_REBOOT)
    target = _target(p)
    if _host_restarted(p, target, parse_time(initialized.last_transition_time)):
        return p.passed(AFTER_REBOOT)
    return _power(p, target, plan.command) if plan.cold else _warm(p, node, plan.command)


def _installing(dpu: Dpu) -> bool:
    return dpu.status is not None and dpu.status.phase == Phase.OS_INSTALLING


def _host_restarted(p: Pass, target: DmsTarget, since: float) -> bool:
    """Is the host up for less time than has passed since the interface was initialized?

    upstream: any-reboot-counts. Whoever rebooted the host since then did it for us.
    """
    reason = "FailedToGetHostUptime"
    try:
        uptime_s = commands.uptime_s(p.ask(target, commands.UPTIME, reason))
    except ValueError as error:
        raise Unmet(reason, str(error)) from error
    return p.ctx.now - since > uptime_s


def _power(p: Pass, target: DmsTarget, command: str) -> DpuStatus:
    """upstream: power-cycle-reissued. Every pass until the host is down sends it again."""
    try:
        p.b.dms.get(target, commands.power(command))
    except RpcError as error:
        raise fatal("FailedToExecutePowercycleCommand", str(error)) from error
    return p.status


def _warm(p: Pass, node: DpuNode, command: str) -> DpuStatus:
    """Arm down, host reset, in the background; the next passes look at the uptime.

    upstream: warm-reboot-starts-over. After eleven failures the condition says so and the counting begins anew.
    """
    if node.status is None or node.status.kube_node_ref is None:
        # upstream: no-warm-reboot-outside-kubernetes. Nothing is done and the phase never ends by itself.
        return p.status
    try:
        dpu_tasks.attempt(p, REBOOT, lambda _: warm_reboot(p.b, p.dpu, command))
    except TaskFailed as error:
        dpu_tasks.forget(p, REBOOT)
        raise Unmet("RebootFailed", str(error)) from error
    return p.status


def warm_reboot(b: Backends, dpu: Dpu, command: str) -> TaskBody:
    """Raises RpcError.

    upstream: reboot-outlives-its-dpu. A deletion drops the task from the table and stops nothing.
    """
    pod = Key(b.settings.namespace, dms_pod(dpu.spec.dpu_node_name))
    pci = dpu.spec.pci_address or ""
    for words in (commands.shut_down_arm(pci, command), commands.reboot_host(pci, command)):
        try:
            yield b.agent.execute(pod, words)
        except RpcError as error:
            raise RpcError(error.code, f"DPU {dpu.metadata.name} reboot failed: {error}") from error


def _external(p: Pass, node: DpuNode) -> DpuStatus:
    """Ask somebody outside for a reboot and wait until the annotation is gone.

    upstream: rebooted-condition-means-asked. A condition left by an earlier failure passes for the request.
    """
    flag = Annotation.EXTERNAL_REBOOT_REQUIRED
    waiting = Unmet("WaitingForManualPowerCycleOrReboot", "", waiting=True)
    if condition(p.status.conditions, p.condition) is None:
        try:
            p.kube.patch(DpuNode, node.key, {"metadata": {"annotations": {flag: "true"}}})
        except ApiError as error:
            raise Unmet("FailedToProcessExternalReboot", str(error)) from error
        raise waiting
    if flag in node.metadata.annotations:
        raise waiting
    return p.passed(AFTER_REBOOT)
