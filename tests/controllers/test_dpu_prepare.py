"""Initializing to Config FW Parameters: every reason, and what follows from it (provisioning.md 2.2, phases 1 to 5)."""

from __future__ import annotations

from typing import Any

import pytest
from dpu_bench import NS, Bench, meta

from twin.model.core import DpfOperatorConfig, Secret
from twin.model.dms_commands import unknown_board
from twin.model.names import Finalizer, Label
from twin.model.provisioning import (
    Dpu,
    DpuCluster,
    DpuClusterRef,
    DpuClusterStatus,
    DpuDevice,
    DpuFlavor,
    DpuFlavorSpec,
    DpuNode,
    DpuNodeStatus,
    Phase,
)


def flavored(bench: Bench, **spec: Any) -> str:
    bench.create(DpuFlavor(metadata=meta("other"), spec=DpuFlavorSpec(**spec)))
    return "other"


def not_there(kind: str, name: str) -> str:
    return f'{kind}.provisioning.dpu.nvidia.com "{name}" not found'


# --- Initializing


def test_without_its_dpunode_a_dpu_waits() -> None:
    bench = Bench()
    bench.delete(DpuNode, bench.host)
    bench.dpu()
    bench.run(30)
    assert bench.is_("Initialized") == ("False", "DPUNodeNotFound", not_there("DPUNode", bench.host))
    assert bench.phase() == Phase.INITIALIZING


def test_the_dpunode_is_protected_before_the_device_is_looked_for() -> None:
    bench = Bench()
    bench.delete(DpuDevice, bench.name)
    bench.dpu()
    bench.run(2)
    assert Finalizer.DPUNODE in bench.get(DpuNode, bench.host).metadata.finalizers
    assert bench.is_("Initialized") == ("False", "DPUDeviceNotFound", not_there("DPUDevice", bench.name))


def test_a_dpunode_that_cannot_be_protected_is_tried_again() -> None:
    bench = Bench()
    bench.dpu()
    bench.run(0.005)  # the DPU has its finalizer, its next pass meets a DPUNode that moves on unseen
    bench.patch(DpuNode, bench.host, {"metadata": {"labels": {"a": "b"}}})
    bench.run(0.009)
    status, reason, message = bench.is_("Initialized")
    assert (status, reason) == ("False", "UpdateDPUNodeError")
    assert "the object has been modified" in message
    bench.run(2)
    assert bench.is_("Initialized")[0] == "True"


def test_without_the_bridge_label_a_dpu_waits() -> None:
    bench = Bench()
    bench.patch(DpuNode, bench.host, {"metadata": {"labels": {Label.OOB_BRIDGE: None}}})
    bench.dpu()
    bench.run(30)
    assert bench.is_("Initialized") == ("False", "DPUOOBBridgeNotConfigured", "DPU OOB bridge is not configured")


@pytest.mark.parametrize(("interface", "spec", "reason", "phase"), [
    ("", {}, "DPUInstallInterfaceNotProvided", Phase.INITIALIZING),
    ("gNOI", {"pci_address": None}, "PCIAddressNotProvided", Phase.ERROR),
    ("redfish", {"bmc_ip": "10.0.0.300"}, "BMCIPNotValid", Phase.ERROR),
    ("redfish", {}, "BMCIPNotValid", Phase.ERROR),
])
def test_the_install_interface_and_what_it_needs(interface: str, spec: dict[str, Any], reason: str, phase: str) -> None:
    bench = Bench()
    bench.stored(bench.host, DpuNodeStatus(dpu_install_interface=interface), DpuNode)
    bench.dpu(**spec)
    bench.run(2)
    assert bench.is_("Initialized")[:2] == ("False", reason)
    assert bench.phase() == phase
    assert bench.status().dpu_install_interface == interface


def test_redfish_with_a_bmc_address_goes_on_until_its_path_ends_visibly() -> None:
    bench = Bench()
    bench.stored(bench.host, DpuNodeStatus(dpu_install_interface="redfish", kube_node_ref=bench.host), DpuNode)
    bench.dpu(bmc_ip="10.0.0.3")
    bench.run(60)
    assert bench.phase() == Phase.INITIALIZE_INTERFACE
    assert bench.is_("InterfaceInitialized")[:2] == ("False", "RedfishNotModelled")


def test_the_secret_that_the_installation_names_is_shown_to_the_dms() -> None:
    bench = Bench()
    bench.patch(DpfOperatorConfig, "dpfoperatorconfig", {
        "spec": {"provisioningController": {"customCASecretName": "mine"}}})
    bench.dpu()
    bench.run(30)
    assert bench.is_("InterfaceInitialized") == (
        "False", "FailedToGetDPUCapacity", 'client secret not found: Secret "mine" not found')

    bench.create(Secret(metadata=meta("mine"), data=dict.fromkeys(("tls.crt", "tls.key", "ca.crt"), "eA==")))
    bench.run(30)
    assert bench.is_("InterfaceInitialized")[0] == "True"


def test_a_cluster_of_the_users_choice_must_exist() -> None:
    bench = Bench()
    bench.dpu(cluster=DpuClusterRef(name="c9", namespace=NS))
    bench.run(2)
    assert bench.is_("Initialized") == ("False", "DPUClusterNotFound", not_there("DPUCluster", "c9"))


def test_a_dpu_with_a_chosen_cluster_does_not_ask_whether_it_is_ready() -> None:
    bench = Bench()
    bench.stored("c1", DpuClusterStatus(phase="NotReady"), DpuCluster)
    bench.dpu(cluster=DpuClusterRef(name="c1", namespace=NS))
    bench.run(2)
    assert bench.is_("Initialized") == ("True", "Initialized", "")


def test_an_allocation_that_the_server_refuses_is_told() -> None:
    bench = Bench()
    bench.dpu()
    bench.refuse("patch")
    bench.run(0.1)
    status, reason, message = bench.is_("Initialized")
    assert (status, reason) == ("False", "DPUClusterNotAllocated")
    assert message.endswith("connect: connection refused")
    bench.heal()
    bench.run(6)
    assert bench.get(Dpu, bench.name).spec.cluster == DpuClusterRef(name="c1", namespace=NS)


# --- Initialize Interface


def interface(bench: Bench, seconds: float = 2.0) -> tuple[str, str, str]:
    bench.run(seconds)
    return bench.is_("InterfaceInitialized")


def test_a_card_that_is_big_enough_passes() -> None:
    bench = Bench()
    bench.at(Phase.INITIALIZE_INTERFACE, dpu_flavor=flavored(bench, dpu_resources={"cpu": 16, "memory": "32Gi"}))
    assert interface(bench) == ("True", "DMSInitialized", "")


def test_a_card_that_is_too_small_ends_in_error() -> None:
    bench = Bench()
    bench.at(Phase.INITIALIZE_INTERFACE, dpu_flavor=flavored(bench, dpu_resources={"cpu": 17}))
    assert interface(bench) == ("False", "InsufficientResources", "not enough resources for the given DPUFlavor")
    assert bench.phase() == Phase.ERROR


def test_a_card_nobody_knows_passes_with_a_warning() -> None:
    bench = Bench()
    bench.card.board = unknown_board("000-ABCDE-0000-AA0")
    bench.at(Phase.INITIALIZE_INTERFACE, dpu_flavor=flavored(bench, dpu_resources={"cpu": 1000}))
    status, reason, message = interface(bench)
    assert (status, reason) == ("True", "UnableToCheckCapacity")
    assert message
    assert bench.phase() != Phase.ERROR


def test_without_pci_address_the_interface_is_wrong() -> None:
    bench = Bench()
    bench.at(Phase.INITIALIZE_INTERFACE, pci_address=None)
    assert interface(bench)[:2] == ("False", "InvalidPCIAddress")
    assert bench.phase() == Phase.ERROR


def test_everything_else_that_fails_in_the_capacity_check_is_tried_again() -> None:
    texts = {}
    for trouble in ("flavor", "secret", "address", "dms"):
        bench = Bench()
        if trouble == "secret":
            bench.delete(Secret, "dpf-provisioning-client-secret")
        if trouble == "address":
            bench.patch(DpuNode, bench.host, {"spec": {"nodeDMSAddress": None}})
        if trouble == "dms":
            bench.dms.stop(bench.host)
        bench.at(Phase.INITIALIZE_INTERFACE, dpu_flavor="absent" if trouble == "flavor" else "flavor")
        status, reason, texts[trouble] = interface(bench, 20)
        assert (status, reason) == ("False", "FailedToGetDPUCapacity")
        assert bench.phase() == Phase.INITIALIZE_INTERFACE
    assert texts["flavor"] == not_there("DPUFlavor", "absent")
    assert texts["secret"] == 'client secret not found: Secret "dpf-provisioning-client-secret" not found'
    assert "nodeDMSAddress" in texts["address"]
    assert texts["dms"].endswith("connect: connection refused\"")


# --- Config FW Parameters


def test_the_card_is_put_into_dpu_mode() -> None:
    bench = Bench()
    bench.at(Phase.CONFIG_FW_PARAMETERS)
    bench.run(0.1)
    assert bench.is_("FWConfigured") == ("True", "ConfigureFWParameters", "")
    assert bench.card.device.next_mode == "dpu"


@pytest.mark.parametrize("mode", ["nic", "zero-trust"])
def test_another_mode_ends_in_error(mode: str) -> None:
    bench = Bench()
    bench.at(Phase.CONFIG_FW_PARAMETERS, dpu_flavor=flavored(bench, dpu_mode=mode))
    bench.run()
    assert bench.is_("FWConfigured")[:2] == ("False", "RequestedDPUModeUnsupported")
    assert bench.phase() == Phase.ERROR


@pytest.mark.parametrize(("trouble", "reason"), [
    ("flavor", "DPUFlavorNotFound"), ("secret", "ErrorCreatingGRPCConnection"), ("dms", "FailedToSetDPUMode"),
])
def test_what_fails_in_config_fw_parameters_is_tried_again(trouble: str, reason: str) -> None:
    bench = Bench()
    bench.at(Phase.CONFIG_FW_PARAMETERS, dpu_flavor="absent" if trouble == "flavor" else "flavor")
    if trouble == "secret":
        bench.delete(Secret, "dpf-provisioning-client-secret")
    if trouble == "dms":
        bench.dms.answer_errors(bench.host, ("INTERNAL", "no such path", "mode"))
    bench.run(30)
    assert bench.is_("FWConfigured")[:2] == ("False", reason)
    assert bench.phase() == Phase.CONFIG_FW_PARAMETERS
