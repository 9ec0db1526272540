"""Reads that fail: the reasons of provisioning.md 2.2 that a healthy informer cache never shows."""

from __future__ import annotations

from dataclasses import replace as with_fields
from typing import Any

import pytest
from dpu_bench import NS, Bench, false, true

from controllers.provisioning.dpu import DpuReconciler
from twin.backends.base import Unavailable
from twin.model.core import Certificate, DpfOperatorConfig, Job, Node, NodeMaintenance
from twin.model.meta import Key, Object, replace
from twin.model.provisioning import (
    Bfb,
    Dpu,
    DpuCluster,
    DpuDevice,
    DpuFlavor,
    DpuNode,
    DpuNodeStatus,
    NodeEffect,
    Phase,
    Taint,
)
from twin.runtime.reconcile import Context
from twin.sim.clock import EPOCH


class Unreadable:
    """A client whose reads of one kind fail."""

    def __init__(self, kube: Any, kind: type[Object]) -> None:
        self._kube = kube
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kube, name)

    def get(self, kind: type[Object], key: Key) -> Any:
        if kind is self._kind:
            raise Unavailable(UNREADABLE)
        return self._kube.get(kind, key)

    def list(self, kind: type[Object], *args: Any) -> Any:
        if kind is self._kind:
            raise Unavailable(UNREADABLE)
        return self._kube.list(kind, *args)


ACTION = {"node_effect": NodeEffect(custom_action="x")}
DRAIN = {"node_effect": NodeEffect(drain=True)}
TAINT = {"node_effect": NodeEffect(taint=Taint(key="k", effect="NoSchedule"))}
UNREADABLE = "the cache is not started, can not read objects"


@pytest.mark.parametrize(("phase", "kind", "reason", "spec"), [
    (Phase.INITIALIZING, DpuNode, "GetDPUNodeError", {}),
    (Phase.INITIALIZING, DpuDevice, "GetDPUDeviceError", {}),
    (Phase.INITIALIZING, DpuCluster, "GetDPUClusterError", {}),
    (Phase.PENDING, Bfb, "GetBFBError", {}),
    (Phase.NODE_EFFECT, DpuNode, "GetDPUNodeError", DRAIN),
    (Phase.NODE_EFFECT, Node, "GetNodeError", DRAIN),
    (Phase.NODE_EFFECT, Job, "FailedToGetJob", ACTION),
    (Phase.INITIALIZE_INTERFACE, DpuFlavor, "FailedToGetDPUCapacity", {}),
    (Phase.CONFIG_FW_PARAMETERS, DpuFlavor, "GetDPUFlavorError", {}),
    (Phase.OS_INSTALLING, Bfb, "GetBFBError", {}),
    (Phase.REBOOTING, DpuNode, "GetDPUNodeError", {}),
    (Phase.HOST_NETWORK_CONFIGURATION, DpuFlavor, "GetDPUFlavorError", {}),
    (Phase.HOST_NETWORK_CONFIGURATION, DpfOperatorConfig, "ListDPFOperatorConfigsError", {}),
    (Phase.DPU_CLUSTER_CONFIG, DpuCluster, "GetDPUClusterError", {}),
    (Phase.READY, DpuCluster, "GetDPUClusterError", {}),
    (Phase.ERROR, Node, "RemoveNodeEffectError", TAINT),
    (Phase.ERROR, NodeMaintenance, "RemoveNodeEffectError", DRAIN),
    (Phase.ERROR, Job, "RemoveNodeEffectError", ACTION),
    (Phase.DELETING, Node, "RemoveNodeEffectError", TAINT),
    (Phase.DELETING, NodeMaintenance, "RemoveNodeEffectError", DRAIN),
    (Phase.DELETING, Certificate, "GetObjectsError", {}),
])
def test_a_read_that_fails_is_told_and_the_phase_stays(
        phase: str, kind: type[Object], reason: str, spec: dict[str, Any]) -> None:
    bench = Bench()
    bench.at(phase, true("InterfaceInitialized"), **spec)
    once(bench, kind)
    told = bench.status().conditions[-1]
    assert (told.status, told.reason, told.message) == ("False", reason, UNREADABLE)
    assert bench.phase() == phase


@pytest.mark.parametrize(("phase", "kind", "condition", "reason", "spec"), [
    (Phase.NODE_EFFECT, NodeMaintenance, "NodeEffectReady", "ErrorOccured", DRAIN),
    (Phase.READY, Node, "Ready", "NodeEffectError", TAINT),
    (Phase.READY, NodeMaintenance, "Ready", "NodeEffectError", DRAIN),
])
def test_a_worker_whose_maintenance_cannot_be_read_sends_its_dpu_to_error(
        phase: str, kind: type[Object], condition: str, reason: str, spec: dict[str, Any]) -> None:
    bench = Bench()
    bench.at(phase, **spec)
    once(bench, kind)
    assert bench.is_(condition) == ("False", reason, UNREADABLE)
    assert bench.phase() == Phase.ERROR


def once(bench: Bench, kind: type[Object]) -> None:
    """One pass of a controller that cannot read this kind."""
    bench.manager.start()
    b = bench.runner.reconciler.backends
    unreadable: Any = Unreadable(b.kube, kind)
    result = DpuReconciler.make(with_fields(b, kube=unreadable)).reconcile(Context(EPOCH), Key(NS, bench.name))
    assert result.error


def test_the_job_of_a_reboot_script_that_cannot_be_read_is_told() -> None:
    bench = Bench()
    bench.patch(DpuNode, bench.host, {"spec": {"nodeRebootMethod": {"gNOI": None, "script": {"name": "x"}}}})
    bench.at(Phase.REBOOTING, true("InterfaceInitialized"), false("Rebooted", "WaitingForScriptToRebootNode"))
    once(bench, Job)
    assert bench.is_("Rebooted")[:2] == ("False", "FailedToFetchJob")


def test_a_configuration_without_networking_is_told() -> None:
    bench = Bench()
    table: Any = bench.kube.table(DpfOperatorConfig)  # the server's defaults would fill it in
    key = Key(NS, "dpfoperatorconfig")
    table[key] = replace(table[key], spec=replace(table[key].spec, networking=None))
    bench.at(Phase.HOST_NETWORK_CONFIGURATION)
    bench.run(20)
    assert bench.is_("HostNetworkReady")[:2] == ("False", "DPFOperatorConfigNetworkingSectionMissing")


def test_an_interface_that_the_schema_would_refuse_ends_in_error() -> None:
    bench = Bench()
    bench.at(Phase.INITIALIZING)
    nodes: Any = bench.kube.table(DpuNode)
    nodes[Key(NS, bench.host)] = replace(
        nodes[Key(NS, bench.host)], status=DpuNodeStatus(dpu_install_interface="mock"))
    dpus: Any = bench.kube.table(Dpu)
    key = Key(NS, bench.name)
    dpus[key] = replace(dpus[key], status=replace(dpus[key].status, dpu_install_interface="mock"))
    bench.run(1)
    assert bench.is_("Initialized") == (
        "False", "InvalidDPUInstallInterface", "invalid DPU install interface mock")
    assert bench.phase() == Phase.ERROR
