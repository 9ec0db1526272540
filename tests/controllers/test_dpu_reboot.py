"""Checking Host Reboot Required and Rebooting (provisioning.md 2.2 phases 7 and 8, 3.4)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from dpu_bench import NS, Bench, false, meta, true

from twin.model.core import ConfigMap, Job, JobStatus, Secret
from twin.model.device import Arm
from twin.model.meta import Condition, Key, ObjectMeta, replace
from twin.model.names import Annotation, Label
from twin.model.provisioning import Dpu, DpuNode, Phase
from twin.sim.dms_servers import Attempts

INITIALIZED = true("InterfaceInitialized")


def checking(*, flash: str = "", rescan: bool = False, **card: Any) -> Bench:
    bench = Bench(card=card)
    device = bench.card.device
    bench.card.device = replace(device, flash=flash or device.flash, rescan_pending=rescan)
    bench.at(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    return bench


def checked(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("CheckedHostRebootNeed")


# --- is a reboot needed (upstream's table of cases: provisioning.md 12, 26 and 27)


def test_a_pci_rescan_needs_a_reboot() -> None:
    bench = checking(rescan=True).run(0.1)
    assert checked(bench) == ("True", "CheckedHostRebootNeed", "")
    assert bench.phase() == Phase.REBOOTING


def test_the_same_firmware_needs_none() -> None:
    bench = checking().run(0.1)
    assert checked(bench) == ("True", "CheckedHostRebootNeed", "")
    assert bench.phase() == Phase.HOST_NETWORK_CONFIGURATION


def test_new_firmware_that_can_be_loaded_is_loaded() -> None:
    bench = checking(flash="32.99.0001", fw_reset=True).until(Phase.HOST_NETWORK_CONFIGURATION)
    bench.run(60)
    assert bench.card.device.running == "32.99.0001"
    assert bench.card.host.boots == 0


@pytest.mark.parametrize(("level3", "sync1"), [(False, True), (True, False), (False, False)])
def test_new_firmware_that_cannot_be_loaded_needs_a_reboot(level3: bool, sync1: bool) -> None:
    bench = Bench()
    bench.card.device = replace(bench.card.device, flash="32.99.0001", level3=level3, sync1=sync1)
    bench.at(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert bench.run(0.1).phase() == Phase.REBOOTING


@pytest.mark.parametrize(("command", "reason"), [
    ("mlxreg", "FailedToCheckPCIRescanRequired"), ("flint", "FailedToCheckCurrentFirmwareVersion"),
    ("mlxfwreset -d 0000:2b:00.0 q", "FailedToCheckResetLevel"), ("-l 3", "FailedToResetFirmware"),
])
def test_a_failing_command_is_tried_again(command: str, reason: str) -> None:
    bench = checking(flash="32.99.0001", fw_reset=True)
    bench.dms.answer_errors(bench.host, ("INTERNAL", "device busy", command))
    bench.run(30)
    assert checked(bench) == ("False", reason, "rpc error: code = Internal desc = device busy")
    assert bench.phase() == Phase.CHECKING_HOST_REBOOT_REQUIRED


@pytest.mark.parametrize(("program", "text", "reason"), [
    ("mfrl", "nonsense", "FailedToCheckPCIRescanRequired"),
    ("mfrl", "pci_rescan_required | 0xzz", "FailedToConvertHexToDec"),
    ("flint", "nonsense", "FailedToCheckCurrentFirmwareVersion"),
    ("reset-query", "nonsense", "FailedToCheckResetLevel"),
    ("reset-query", "3: Driver restart and PCI reset -Supported", "FailedToCheckSyncLevel"),
])
def test_an_answer_that_says_nothing_is_tried_again(
        monkeypatch: pytest.MonkeyPatch, program: str, text: str, reason: str) -> None:
    bench = checking(flash="32.99.0001", fw_reset=True)
    run = bench.dms.run
    monkeypatch.setattr(bench.dms, "run", lambda server, command: (
        (text, 0) if command.kind == program else run(server, command)))
    bench.run(30)
    assert checked(bench)[:2] == ("False", reason)
    assert bench.phase() == Phase.CHECKING_HOST_REBOOT_REQUIRED


def test_without_the_label_of_its_address_a_dpu_waits() -> None:
    bench = checking()
    bench.patch(Dpu, bench.name, {"metadata": {"labels": {Label.DEVICE_PCI_ADDRESS: None}}})
    bench.run(30)
    assert checked(bench)[:2] == ("False", "DPUObjectMissingPCIAddressLabel")
    assert bench.phase() == Phase.CHECKING_HOST_REBOOT_REQUIRED


@pytest.mark.parametrize("phase", [Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.REBOOTING])
def test_without_client_secret_these_phases_end_in_error(phase: str) -> None:
    bench = Bench()
    bench.delete(Secret, "dpf-provisioning-client-secret")
    bench.at(phase, INITIALIZED)
    bench.run(1)
    assert bench.phase() == Phase.ERROR
    assert bench.status().conditions[-1].reason == "FailedToCreateGRPCConnection"


# --- Rebooting


def rebooting(*conditions: Condition, annotations: dict[str, str] | None = None, cold: bool = False,
              **more: Any) -> Bench:
    bench = Bench(**more)
    if annotations:
        bench.patch(DpuNode, bench.host, {"metadata": {"annotations": annotations}})
    bench.at(Phase.REBOOTING, *(conditions or (INITIALIZED,)),
             annotations={Annotation.HOST_POWER_CYCLE_REQUIRED: "true"} if cold else {})
    return bench


def rebooted(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("Rebooted")


def test_a_warm_reboot_shuts_the_arm_down_then_resets_the_host_once() -> None:
    bench = rebooting().until(Phase.HOST_NETWORK_CONFIGURATION)
    assert execs(bench) == ["exec slr-arm", "exec slr-host"]
    assert bench.card.host.boots == 1
    assert rebooted(bench) == ("True", "Rebooted", "")


def test_while_the_host_is_down_its_uptime_cannot_be_read() -> None:
    bench = rebooting().run(150)
    assert not bench.card.host.up
    assert rebooted(bench)[:2] == ("False", "FailedToGetHostUptime")


@pytest.mark.parametrize(("command", "expected"), [("", "cycle"), ("reset", "reset")])
def test_a_power_cycle_uses_the_nodes_command_and_is_sent_until_the_host_drops(command: str, expected: str) -> None:
    annotations = {Annotation.POWERCYCLE_COMMAND: command} if command else {}
    bench = rebooting(cold=True, annotations=annotations)
    commands: list[str] = []
    reboot = bench.dms._reboot
    bench.dms._reboot = lambda host, c: (commands.append(c.argument), reboot(host, c))[1]  # type: ignore[method-assign]
    bench.until(Phase.HOST_NETWORK_CONFIGURATION)
    assert set(commands) == {expected}
    assert bench.card.host.boots == 1


def test_a_power_cycle_that_cannot_be_sent_ends_in_error() -> None:
    bench = rebooting(cold=True)
    bench.dms.fail_reboots(bench.host, Attempts())
    bench.run(1)
    assert rebooted(bench)[:2] == ("False", "FailedToExecutePowercycleCommand")
    assert bench.phase() == Phase.ERROR


@pytest.mark.parametrize("cold", [False, True])
def test_skip_passes_at_once_without_a_reboot(cold: bool) -> None:
    name = Annotation.POWERCYCLE_COMMAND if cold else Annotation.REBOOT_COMMAND
    bench = rebooting(cold=cold, annotations={name: "skip"}).run(0.1)
    assert rebooted(bench) == ("True", "Rebooted", "")
    assert bench.card.host.boots == 0


def test_the_other_types_command_is_not_looked_at() -> None:
    bench = rebooting(annotations={Annotation.POWERCYCLE_COMMAND: "bogus"}).run(30)
    assert rebooted(bench)[1] != "GenerateIPMIToolCommandError"


def test_an_unknown_command_is_told_until_it_is_corrected() -> None:
    bench = rebooting(annotations={Annotation.REBOOT_COMMAND: "bogus"}).run(30)
    assert rebooted(bench) == ("False", "GenerateIPMIToolCommandError",
                               'invalid value "bogus", supported values: ["cycle" "reset" "skip"]')
    bench.patch(DpuNode, bench.host, {"metadata": {"annotations": {Annotation.REBOOT_COMMAND: "skip"}}})
    assert rebooted(bench.run(0.1))[0] == "True"


def test_a_power_cycle_annotation_that_is_no_bool_is_told() -> None:
    bench = Bench()
    bench.at(Phase.REBOOTING, INITIALIZED, annotations={Annotation.HOST_POWER_CYCLE_REQUIRED: "maybe"})
    assert rebooted(bench.run(1)) == (
        "False", "GenerateIPMIToolCommandError", 'strconv.ParseBool: parsing "maybe": invalid syntax')


@pytest.mark.parametrize("conditions", [(true("Initialized"),), (replace(INITIALIZED, status="False"),)])
def test_without_an_initialized_interface_the_state_is_invalid(conditions: tuple[Condition, ...]) -> None:
    assert rebooted(rebooting(*conditions).run(1))[:2] == ("False", "InvalidState")


def test_without_its_dpunode_a_dpu_waits() -> None:
    bench = rebooting()
    bench.delete(DpuNode, bench.host)
    bench.run(30)
    assert rebooted(bench)[:2] == ("False", "DPUNodeNotFound")
    assert bench.phase() == Phase.REBOOTING


def test_a_reboot_by_somebody_else_counts() -> None:
    bench = rebooting(true("InterfaceInitialized", since="2025-04-29T00:00:00Z"))
    assert rebooted(bench.run(0.1)) == ("True", "Rebooted", "")  # up for a day, initialized two days ago
    assert bench.card.host.boots == 0


def test_a_failing_warm_reboot_is_told_after_eleven_attempts_and_starts_over() -> None:
    bench = rebooting()
    bench.dms.fail_reboots(bench.host, Attempts())
    bench.run(50)
    assert rebooted(bench) == ("", "", "")
    bench.run(10)
    assert rebooted(bench) == ("False", "RebootFailed",
                               f"DPU {bench.name} reboot failed: command terminated with exit code 1")
    assert bench.phase() == Phase.REBOOTING
    tried = bench.writes.count("exec slr-host")
    bench.run(60)
    assert bench.writes.count("exec slr-host") > tried


def test_a_warm_reboot_outside_kubernetes_never_happens() -> None:
    bench = rebooting(host={"kubernetes": False}).run(3600)
    assert bench.phase() == Phase.REBOOTING
    assert bench.card.host.boots == 0
    assert rebooted(bench) == ("", "", "")


def test_a_restarted_controller_does_not_reboot_a_host_twice() -> None:
    bench = rebooting().run(150)
    bench.restart()
    bench.until(Phase.HOST_NETWORK_CONFIGURATION)
    assert bench.card.host.boots == 1


def deleted_while_its_arm_shuts_down() -> Bench:
    bench = rebooting()
    bench.card.device = replace(bench.card.device, arm=Arm.UP)
    bench.run(10)
    bench.delete(Dpu, bench.name)
    bench.run(10)
    assert bench.gone(Dpu, bench.name)
    assert execs(bench) == ["exec slr-arm"]
    return bench


def execs(bench: Bench) -> list[str]:
    return [w for w in bench.writes if w.startswith("exec")]


def test_a_reboot_under_way_outlives_its_dpu_and_hits_the_next_ones_install() -> None:
    bench = deleted_while_its_arm_shuts_down()
    bench.at(Phase.OS_INSTALLING, INITIALIZED)
    bench.run(60)
    assert execs(bench)[:2] == ["exec slr-arm", "exec slr-host"]
    assert not bench.card.host.up
    bench.until(Phase.ERROR)
    assert bench.is_("OSInstalled")[:2] == ("False", "InstallationFailed")
    bench.run(600)
    assert bench.card.host.boots == 1


@pytest.mark.parametrize("end", [Bench.restart, lambda bench: bench.manager.crash()], ids=["restart", "crash"])
def test_a_reboot_whose_dpu_is_gone_ends_with_the_controller(end: Callable[[Bench], None]) -> None:
    bench = deleted_while_its_arm_shuts_down()
    end(bench)
    bench.run(600)
    assert execs(bench) == ["exec slr-arm"]
    assert bench.card.host.boots == 0


@pytest.mark.parametrize(("policies", "boots"), [([], 1), (["reboot-waits-for-siblings"], 0)])
def test_a_host_is_rebooted_under_an_install_of_its_other_dpu_unless_the_policy_says_no(
        policies: list[str], boots: int) -> None:
    bench = rebooting(dpus_per_host=2, policies=policies)
    other = bench.fleet.cards[1].name
    bench.at(Phase.OS_INSTALLING, INITIALIZED, name=other)
    bench.run(300)
    assert bench.card.host.boots == boots
    if policies:
        bench.stored(other, replace(bench.get(Dpu, other).status, phase=Phase.READY))
        bench.until(Phase.HOST_NETWORK_CONFIGURATION)
        assert bench.card.host.boots == 1


# --- external and script


def external(bench: Bench, method: dict[str, Any] | None = None) -> Bench:
    bench.patch(DpuNode, bench.host, {"spec": {"nodeRebootMethod": {"gNOI": None, **(method or {"external": {}})}}})
    return bench


def test_an_external_reboot_is_asked_for_and_over_when_the_annotation_is_gone() -> None:
    bench = external(rebooting()).run(30)
    assert rebooted(bench) == ("False", "WaitingForManualPowerCycleOrReboot", "")
    assert bench.get(DpuNode, bench.host).metadata.annotations[Annotation.EXTERNAL_REBOOT_REQUIRED] == "true"
    bench.patch(DpuNode, bench.host, {"metadata": {"annotations": {Annotation.EXTERNAL_REBOOT_REQUIRED: None}}})
    assert rebooted(bench.run(0.1)) == ("True", "Rebooted", "")


def test_an_earlier_failure_passes_for_an_external_reboot() -> None:
    bench = external(rebooting(INITIALIZED, false("Rebooted", "DPUNodeNotFound"))).run(0.1)
    assert rebooted(bench)[0] == "True"
    assert Annotation.EXTERNAL_REBOOT_REQUIRED not in bench.get(DpuNode, bench.host).metadata.annotations


def test_an_annotation_that_cannot_be_set_is_told_and_then_passes_for_set() -> None:
    bench = external(rebooting())
    bench.refuse("patch")
    bench.run(0.1)
    assert bench.reasons()[1:3] == ["FailedToProcessExternalReboot", "Rebooted"]


SCRIPT = {"script": {"name": "my-script"}}


def scripted(template: str | None = None, *conditions: Condition) -> Bench:
    bench = external(rebooting(*conditions), SCRIPT)
    data = {"pod-template": template if template is not None else json.dumps({"spec": {"containers": []}})}
    bench.create(ConfigMap(metadata=meta("my-script"), data=data))
    return bench


def job(bench: Bench) -> str:
    return f"{bench.host}-reboot-script"


def finish(bench: Bench, how: str) -> None:
    bench.stored(job(bench), JobStatus(conditions=(Condition(type=how, status="True"),)), Job)


def test_a_script_runs_as_a_job_that_is_removed_when_it_succeeded() -> None:
    bench = scripted().run(30)
    assert rebooted(bench) == ("False", "WaitingForScriptToRebootNode", "")
    made = bench.get(Job, job(bench))
    assert made.spec.backoff_limit == 0
    assert made.spec.template == {"spec": {"containers": []}}
    finish(bench, "Complete")
    bench.run(6)
    assert rebooted(bench) == ("True", "Rebooted", "")
    assert bench.gone(Job, job(bench))


def test_a_failed_script_ends_in_error_and_its_job_is_kept() -> None:
    bench = scripted().run(1)
    finish(bench, "Failed")
    bench.run(6)
    assert rebooted(bench) == ("False", "RebootFailed", "the custom reboot script failed")
    assert bench.phase() == Phase.ERROR
    assert not bench.gone(Job, job(bench))


def test_an_old_job_of_the_same_name_is_replaced() -> None:
    bench = scripted()
    old = bench.create(Job(metadata=ObjectMeta(namespace=NS, name=job(bench))))
    bench.run(1)
    assert bench.get(Job, job(bench)).metadata.uid != old.metadata.uid


@pytest.mark.parametrize("template", ["no json", "[]"])
def test_a_script_that_cannot_be_made_is_then_waited_for_in_vain(template: str) -> None:
    bench = scripted(template)
    bench.run(0.02)
    assert rebooted(bench)[:2] in (("False", "FailedToCreateScriptJob"), ("False", "JobNotFound"))
    bench.run(600)
    assert rebooted(bench) == ("False", "JobNotFound", f'Job.batch "{job(bench)}" not found')


def test_without_its_configmap_no_script_is_made() -> None:
    bench = external(rebooting(), SCRIPT).run(0.005)
    assert rebooted(bench) == ("False", "FailedToCreateScriptJob", 'ConfigMap "my-script" not found')


def test_a_configmap_without_the_key_makes_no_script() -> None:
    bench = external(rebooting(), SCRIPT)
    bench.create(ConfigMap(metadata=meta("my-script"), data={"x": "{}"}))
    assert rebooted(bench.run(0.005))[1] == "FailedToCreateScriptJob"


def test_a_job_that_cannot_be_deleted_holds_the_phase() -> None:
    bench = scripted().run(1)
    finish(bench, "Complete")
    bench.refuse("delete")
    bench.run(4.99)
    assert bench.kube.find(Job, Key(NS, job(bench))) is not None
    assert rebooted(bench)[1] == "FailedToDeleteJob"
    bench.heal()
    bench.run(6)
    assert rebooted(bench)[0] == "True"
