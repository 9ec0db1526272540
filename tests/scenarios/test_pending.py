"""What has not come about is said in words, and a run that provisioned nothing it was asked to has not converged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stories import changed, written

from scenarios.check import check_scenario
from scenarios.run import run
from scenarios.story import Story
from twin.actors.dmsinit import RSHIM_ON_HOST
from twin.model.names import Label
from twin.sim.trace import Trace
from twin.sim.world import Options

NS = "dpf-operator-system"
HOSTS: dict[str, Any] = {"racks": 1, "hosts_per_rack": 1}


def test_a_bfb_larger_than_its_volume_is_in_error_as_check_says(tmp_path: Path) -> None:
    s = written(tmp_path, fleet={"generate": HOSTS, "volume": {"size_bytes": 1}})
    found = run(s)
    assert any("FailedDownload" in line for line in found.pending)
    assert "volume-full" in {finding.rule for finding in check_scenario(s)}

@pytest.mark.parametrize(("fault", "why"), [
    ({"kind": "rack-power", "rack": "*"}, "it is down"),
    ({"kind": "certificate-late"}, "its DMS pod waits for its certificate (Secret worker1-server-secret)"),
    ({"kind": "watch-broken", "controller": "node"}, "it has no DMS pod"),
])
def test_a_host_that_never_came_to_a_dpunode_is_not_done(tmp_path: Path, fault: dict[str, Any], why: str) -> None:
    found = run(written(tmp_path, timeline=[{"at": 0, "fault": fault}]))
    assert found.pending[-1] == f"host worker1 has no DPUNode: {why}"
    assert not found.converged


def test_without_a_configuration_the_controller_says_why_there_is_no_dms_pod(tmp_path: Path) -> None:
    s = written(tmp_path)
    found = run(s.with_(manifests=tuple(m for m in s.manifests if m.id.kind != "DPFOperatorConfig")))
    assert found.pending[-1] == ("host worker1 has no DPUNode: it has no DMS pod: there must be exactly one "
                                 "DPFOperatorConfig, found 0")


def test_a_dms_pod_that_fails_says_what_it_left(tmp_path: Path) -> None:
    story = Story(written(tmp_path), 1, Trace(), Options())
    story.world.hosts.hosts["worker1"].rshim_taken = True
    story.play()
    assert story.pending()[-1] == f"host worker1 has no DPUNode: its DMS pod is Pending: {RSHIM_ON_HOST}"


def test_a_host_without_the_label_says_so(tmp_path: Path) -> None:
    found = run(written(tmp_path).with_(horizon_s=30.0))
    assert f"host worker1 has no DPUNode: its Node has no label {Label.DPU_ENABLED}" in found.pending


@pytest.mark.parametrize("changes", [
    {"timeline": [{"at": 0, "scale": {"hosts": 1}}]},
    {"timeline": [{"at": 0, "fault": {"kind": "host-lost", "host": "worker2"}}]},
    {"timeline": [{"at": 0, "fault": {"kind": "host-power", "host": "worker2"}},
                  changed(0, "DPUSet", "fleet", {"spec": {"dpuNodeSelector": {"matchLabels": {
                      "kubernetes.io/hostname": "worker1"}}}})]},
    {"timeline": [{"at": 0, "fault": {"kind": "host-power", "host": "worker2"}},
                  changed(0, "DPUSet", "fleet", {"spec": {"dpuSelector": {Label.DPUNODE_NAME: "worker1"}}})]},
    {"timeline": [{"at": "4h", "delete": {"kind": "DPUNode", "namespace": NS, "name": "worker2"}}]},
])
def test_hosts_that_nobody_asks_for_hold_up_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    fleet = {"generate": {**HOSTS, "hosts_per_rack": 2}}
    assert run(written(tmp_path, fleet=fleet, **changes)).pending == []


def test_a_host_without_cards_holds_up_nothing(tmp_path: Path) -> None:
    fleet = {"hosts": [{"name": "worker1"}, {"name": "worker2", "dpus": []}]}
    s = written(tmp_path, fleet=fleet, timeline=[{"at": 0, "fault": {"kind": "host-power", "host": "worker2"}}])
    assert run(s).pending == []
