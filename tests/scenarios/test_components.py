"""Processes come and go with the DPFOperatorConfig, as far as the DPF operator is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stories import changed, written

from scenarios.components import NOT_MODELLED, OPERATOR_DELETES, off
from scenarios.run import run
from twin.model.operator import DpfOperatorConfigSpec, DpuComponent, HostComponent, Overrides, ProvisioningController

ON, OFF = HostComponent(disable=False), HostComponent(disable=True)


@pytest.mark.parametrize(("spec", "left_out"), [
    ({}, {"static-cluster-manager"}),
    ({"static_cluster_manager": ON}, set()),
    ({"static_cluster_manager": HostComponent(), "multus": DpuComponent(disable=True)}, set()),
    ({"static_cluster_manager": OFF, "kamaji_cluster_manager": OFF}, {"static-cluster-manager",
                                                                      "kamaji-cluster-manager"}),
    ({"static_cluster_manager": ON, "dpu_service_controller": OFF}, {"dpuservice"}),
    ({"static_cluster_manager": ON, "provisioning_controller": ProvisioningController(disable=True),
      "overrides": Overrides(paused=False)}, {"provisioning"}),
])
def test_a_configuration_says_which_processes_run(spec: dict[str, Any], left_out: set[str]) -> None:
    assert off(DpfOperatorConfigSpec(**spec)) == left_out


def config(at: float, **spec: Any) -> dict[str, Any]:
    return changed(at, "DPFOperatorConfig", "dpfoperatorconfig", {"spec": spec})


@pytest.mark.slow
def test_a_cluster_manager_that_is_switched_off_comes_back(tmp_path: Path) -> None:
    timeline = [config(at, kamajiClusterManager={"disable": disable}) for at, disable in ((0, True), (7200, False))]

    never, later = (run(written(tmp_path, timeline=steps)) for steps in (timeline[:1], timeline))

    assert any("DPUCluster dpf-operator-system/dpu-cluster is in Creating" in words for words in never.pending)
    assert later.converged
    assert all((way.ready_s or 0) > 7200 for way in later.completions().values())


def test_a_process_that_is_switched_off_is_not_started_again_by_a_restart(tmp_path: Path) -> None:
    timeline = [config(5, provisioningController={"disable": True}), {"at": 60, "restart": "provisioning"}]

    done = run(written(tmp_path, timeline=timeline))

    assert not done.converged
    assert next(r.count for r in done.reconciles if r.controller == "dpu") == 0


def test_a_paused_operator_changes_nothing(tmp_path: Path) -> None:
    off_but_paused = config(5, overrides={"paused": True}, provisioningController={"disable": True})

    assert run(written(tmp_path, timeline=[off_but_paused])).converged


def test_what_is_not_played_is_said(tmp_path: Path) -> None:
    gone = {"at": 7200, "delete": {"kind": "DPFOperatorConfig", "namespace": "dpf-operator-system",
                                   "name": "dpfoperatorconfig"}}
    assert OPERATOR_DELETES in run(written(tmp_path, timeline=[gone])).warnings

    redfish = {"bfbPVCName": "bfb-pvc", "installInterface": {"installViaRedfish": {"bfbRegistryAddress": "10.0.0.1"}}}
    again = {**config(0, provisioningController=redfish)}
    assert NOT_MODELLED in run(written(tmp_path, timeline=[again], horizon="1h")).warnings
