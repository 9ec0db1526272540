"""Node and DPUNode: the DMS pod of a host, its readiness, the labels of its devices (provisioning.md 3.1, 8.2)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controllers.stage import SPACE, Stage, meta
from twin.model.core import Certificate, DpfOperatorConfig, DpfOperatorConfigSpec, Node, Pod, PodStatus
from twin.model.meta import Condition, Key, condition, replace
from twin.model.names import Annotation, Finalizer, Label
from twin.model.operator import InstallInterface, InstallViaRedfish, ProvisioningController
from twin.model.provisioning import (
    DmsAddress,
    DpuDevice,
    DpuDeviceSpec,
    DpuNode,
    DpuNodeSpec,
    DpuNodeStatus,
    DpuRef,
)

CONFIG = DpfOperatorConfig(metadata=meta("dpfoperatorconfig"), spec=DpfOperatorConfigSpec(
    provisioning_controller=ProvisioningController(bfb_pvc_name="bfb-pvc"), image_pull_secrets=("pull",)))


def stage(*controllers: str, **more: Any) -> Stage:
    return Stage(*(controllers or ("node", "dpunode")), **more)


def registered(**more: Any) -> Stage:
    """A host whose DMS pod has come up and whose DPUNode is Ready."""
    s = stage(**more)
    s.create(CONFIG)
    s.run(200)
    return s


def ready(s: Stage, name: str) -> tuple[str, str, str]:
    status = s.the(DpuNode, name).status or DpuNodeStatus()
    found = condition(status.conditions, "Ready")
    return (found.status, found.reason, found.message) if found is not None else ("", "", "")


def host(s: Stage) -> str:
    return s.world.fleet.hosts[0].name


# --- the whole way


@pytest.mark.parametrize(("interface", "written"), [
    (InstallInterface(install_via_redfish=InstallViaRedfish(bfb_registry_address="10.0.0.1")), "redfish"),
    (InstallInterface(install_via_gnoi={}), "gNOI"), (None, "gNOI")])
def test_how_dpus_are_installed_is_said_by_the_installation(interface: InstallInterface | None, written: str) -> None:
    s = stage()
    s.create(replace(CONFIG, spec=replace(CONFIG.spec, provisioning_controller=ProvisioningController(
        bfb_pvc_name="bfb-pvc", install_interface=interface))))
    s.run(200)

    status = s.the(DpuNode, host(s)).status
    assert status is not None
    assert status.dpu_install_interface == written


def test_a_host_with_dpus_gets_a_dms_pod_that_registers_it_and_its_dpunode_turns_ready() -> None:
    s = registered(dpus=2)
    name = host(s)
    assert ready(s, name) == ("True", "Ready", "")
    status = s.the(DpuNode, name).status
    assert status is not None
    assert (status.kube_node_ref, status.dpu_install_interface) == (name, "gNOI")
    labels = s.the(DpuNode, name).metadata.labels
    assert labels[Label.DPU_ENABLED] == "true"
    assert labels[Label.OOB_BRIDGE] == ""
    for card in s.world.fleet.cards:
        device = s.the(DpuDevice, card.name)
        assert device.metadata.labels == {
            Label.DPUNODE_NAME: name, Label.DEVICE_PCI_ADDRESS: card.pci, Label.DEVICE_PF0_NAME: card.pf0,
            Label.DEVICE_NUM_OF_PFS: str(card.pfs)}


def test_a_registered_host_costs_no_writes() -> None:
    s = registered()
    before = s.writes("node") + s.writes("dpunode")
    s.run(1300)
    assert s.writes("node") + s.writes("dpunode") == before


# --- the Node controller


def test_the_dms_pod_is_pinned_tolerant_and_owned_by_the_operators_configuration() -> None:
    s = stage("node")
    s.create(CONFIG)
    s.run(61)
    name = host(s)
    pod = s.the(Pod, f"{name}-dms")
    assert pod.metadata.labels == {Label.COMPONENT: "dms"}
    (owner,) = pod.metadata.owner_references
    assert (owner.kind, owner.controller, owner.block_owner_deletion) == ("DPFOperatorConfig", None, False)
    assert [c["name"] for c in (*pod.spec.init_containers, *pod.spec.containers)] == [
        "rshim-preflight", "dms-init", "configure-vf", "dms"]
    assert {(t["key"].partition("/")[2], t["effect"]) for t in pod.spec.tolerations} == {
        ("not-ready", "NoExecute"), ("not-ready", "NoSchedule"), ("unreachable", "NoExecute"),
        ("unschedulable", "NoSchedule")}
    assert pod.spec.host_network
    assert pod.spec.image_pull_secrets == ({"name": "pull"},)
    assert name in str(pod.spec.affinity)
    (dms,) = pod.spec.containers
    assert dms["ports"][0]["containerPort"] == 9339
    assert (dms["startupProbe"]["periodSeconds"], dms["startupProbe"]["failureThreshold"]) == (10, 30)
    certificate = s.the(Certificate, f"{name}-dms-server-cert")
    assert certificate.spec["secretName"] == f"{name}-server-secret"
    assert certificate.spec["ipAddresses"] == [s.world.fleet.hosts[0].ip]
    assert (certificate.spec["duration"], certificate.spec["renewBefore"]) == ("8760h", "4380h")


def test_the_users_reboot_method_reaches_dmsinit() -> None:
    s = stage("node", host={"labels": {Label.REBOOT_METHOD: "script", Label.SCRIPT_NAME: "off-and-on"}})
    s.create(CONFIG)
    s.run(61)
    arguments = s.the(Pod, f"{host(s)}-dms").spec.init_containers[1]["args"]
    assert arguments[-4:] == ["--reboot-method", "script", "--script-name", "off-and-on"]


@pytest.mark.parametrize("configs", [0, 2])
def test_without_exactly_one_operator_configuration_nothing_is_made(configs: int) -> None:
    s = stage("node")
    for i in range(configs):
        s.create(replace(CONFIG, metadata=meta(f"config{i}")))
    s.run(100)
    assert s.get(Pod, f"{host(s)}-dms") is None
    assert s.error_of("node", host(s)) == f"there must be exactly one DPFOperatorConfig, found {configs}"


def test_a_deleted_dms_pod_stays_gone_while_its_dpunode_lives_unless_the_policy_heals_it() -> None:
    for policies, comes_back in (((), False), (("dms-pod-self-heal",), True)):
        s = registered(policies=policies)
        name = f"{host(s)}-dms"
        uid = s.the(Pod, name).metadata.uid
        s.world.host_cluster.kill(Key(SPACE, name), "test")
        s.run(1300)
        found = s.get(Pod, name)
        assert (found is not None and found.metadata.uid != uid) == comes_back
        assert ready(s, host(s))[0] == "True", "upstream does not look again either way"


# --- readiness


def fixture(status: PodStatus | None, **spec: Any) -> Stage:
    """A DPUNode `h` made by hand with its Node, and a DMS pod in this state (None: no pod)."""
    s = stage("dpunode")
    node = s.create(Node(metadata=meta("h", "", labels={"zone": "a"})))
    if status is not None:
        s.create(Pod(metadata=meta("h-dms"), status=status))
    s.create(DpuNode(metadata=meta("h", owner_references=(node.owner_reference(),)), spec=DpuNodeSpec(**spec)))
    s.run(1)
    return s


NOT_STARTED = Condition(type="PodReadyToStartContainers", status="False")


@pytest.mark.parametrize(("pod", "condition_", "polled"), [
    (PodStatus(phase="Failed"), ("False", "ErrorOccurred", "DMS Pod Failed"), False),
    (PodStatus(phase="Pending"),
     ("False", "NotReady", "the DMS server h-dms is not ready yet, wait for it to run"), True),
    (PodStatus(phase="Pending", conditions=(NOT_STARTED,)),
     ("False", "NotReady", "the DMS server h-dms is not ready yet, wait for the NFS server to become available"), True),
    (PodStatus(phase="Running"), ("False", "NoNodeDMSAddress", "nodeDMSAddress is not set"), False),
    (None, ("", "", ""), False),
])
def test_the_dms_pods_state_decides_the_reason(pod: PodStatus | None, condition_: tuple[str, str, str],
                                               polled: bool) -> None:
    s = fixture(pod)
    assert ready(s, "h") == condition_
    runner = s.runner("dpunode")
    before = runner.stats.run + runner.stats.skipped
    s.run(60)
    runner.settle()
    assert (runner.stats.run + runner.stats.skipped - before >= 11) == polled


def test_a_pod_in_an_unknown_phase_is_given_five_minutes() -> None:
    s = fixture(PodStatus(phase="Unknown"))
    assert ready(s, "h")[1] == "NotReady"
    s.run(290)
    assert ready(s, "h")[1] == "NotReady"
    s.run(20)
    assert ready(s, "h") == ("False", "ErrorOccurred", "DMS Pod didn't run and timed out")


def test_a_pending_pod_never_times_out() -> None:
    s = fixture(PodStatus(phase="Pending"))
    s.run(3600)
    assert ready(s, "h")[1] == "NotReady"


def test_a_dms_that_does_not_answer_is_dialled_every_5_s_until_it_does() -> None:
    s = fixture(PodStatus(phase="Running"), node_dms_address=DmsAddress(ip="10.9.9.9", port=9339))
    status, reason, message = ready(s, "h")
    assert (status, reason) == ("False", "DMSServerNotReady")
    assert "10.9.9.9:9339" in message
    s = registered()
    name = host(s)
    s.world.dms.stop(name)
    s.run(100)
    assert ready(s, name)[0] == "True", "not looked at again without an event"
    s.relabel(DpuNode, name, {**s.the(DpuNode, name).metadata.labels, "poked": "1"})
    s.run(1)
    assert ready(s, name)[1] == "DMSServerNotReady"
    s.world.dms.start(name)
    s.run(6)
    assert ready(s, name)[0] == "True"


def test_with_dpunode_rechecks_dms_a_lost_server_shows_within_5_s() -> None:
    s = registered(policies=("dpunode-rechecks-dms",))
    s.world.dms.stop(host(s))
    s.run(6)
    assert ready(s, host(s))[1] == "DMSServerNotReady"


# --- labels


def test_labels_and_annotations_of_the_node_are_merged_and_never_taken_away() -> None:
    s = registered()
    name = host(s)
    node = s.the(Node, name)
    labels = {k: v for k, v in node.metadata.labels.items() if k != Label.OOB_BRIDGE}
    s.world.hosts.hosts[name].br_dpu = False
    s.update(replace(node, metadata=replace(
        node.metadata, labels=labels, annotations={Annotation.REBOOT_COMMAND: "skip"})))
    s.run(1)
    found = s.the(DpuNode, name).metadata
    assert found.annotations[Annotation.REBOOT_COMMAND] == "skip"
    assert Label.OOB_BRIDGE in found.labels, "the gate stays open once seen"


def test_an_annotation_alone_travels_only_at_the_resync() -> None:
    s = registered()
    name = host(s)
    node = s.the(Node, name)
    s.update(replace(node, metadata=replace(node.metadata, annotations={Annotation.REBOOT_COMMAND: "skip"})))
    s.run(60)
    assert Annotation.REBOOT_COMMAND not in s.the(DpuNode, name).metadata.annotations
    s.run(600)
    assert s.the(DpuNode, name).metadata.annotations[Annotation.REBOOT_COMMAND] == "skip"


def test_a_field_a_device_lacks_keeps_the_value_of_the_one_before_unless_the_policy_keeps_them_apart() -> None:
    for policies, leaked in (((), "MT_0000000884"), (("dpudevice-labels-per-device",), None)):
        s = stage("dpunode", policies=policies)
        s.create(DpuDevice(metadata=meta("d1"), spec=DpuDeviceSpec(pci_address="0000-01-00", psid="MT_0000000884")))
        s.create(DpuDevice(metadata=meta("d2"), spec=DpuDeviceSpec(pci_address="0000-02-00")))
        s.create(DpuNode(metadata=meta("h"), spec=DpuNodeSpec(dpus=(DpuRef(name="d1"), DpuRef(name="d2")))))
        s.run(1)
        labels = s.the(DpuDevice, "d2").metadata.labels
        assert labels[Label.DEVICE_PCI_ADDRESS] == "0000-02-00"
        assert labels.get(Label.DEVICE_PSID) == leaked


@pytest.mark.parametrize(("device", "message"), [
    (None, 'DPUDevice "d" not found'),
    (DpuDevice(metadata=meta("d")), "DPUDevice d has no PCI address"),
])
def test_a_device_that_is_missing_or_lacks_its_address_is_invalid_for_good(device: DpuDevice | None,
                                                                           message: str) -> None:
    s = stage("dpunode")
    if device is not None:
        s.create(device)
    s.create(DpuNode(metadata=meta("h"), spec=DpuNodeSpec(dpus=(DpuRef(name="d"),))))
    s.run(1)

    def invalid() -> Condition | None:
        status = s.the(DpuNode, "h").status
        return condition(status.conditions, "InvalidDPUDetails") if status is not None else None

    first = invalid()
    assert first is not None
    assert (first.status, first.message) == ("True", message)
    if device is not None:
        s.respec(DpuDevice, "d", pci_address="0000-01-00")
    else:
        s.create(DpuDevice(metadata=meta("d"), spec=DpuDeviceSpec(pci_address="0000-01-00")))
    s.run(650)
    assert s.the(DpuDevice, "d").metadata.labels[Label.DPUNODE_NAME] == "h"
    assert invalid() == first


# --- the host goes


def test_a_dpunode_goes_with_its_node_finalizer_or_not() -> None:
    s = fixture(None)
    dpunode = s.the(DpuNode, "h")
    s.update(replace(dpunode, metadata=replace(dpunode.metadata, finalizers=(Finalizer.DPUNODE,))))
    s.delete(Node, "h")
    s.run(5)
    assert s.names(DpuNode) == []


def test_a_deleted_dpunode_whose_node_is_there_waits_for_its_dpus_to_let_go() -> None:
    s = fixture(None)
    dpunode = s.the(DpuNode, "h")
    s.update(replace(dpunode, metadata=replace(dpunode.metadata, finalizers=(Finalizer.DPUNODE,))))
    s.delete(DpuNode, "h")
    s.run(60)
    assert s.names(DpuNode) == ["h"]
