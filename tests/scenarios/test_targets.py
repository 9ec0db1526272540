"""Names in a timeline that fit nothing are mistakes before the run, or a warning of it where only the run knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stories import ROOT, written

from scenarios.base import Scenario
from scenarios.run import run
from twin.model.mistakes import BadInput

NS = "dpf-operator-system"


def story(folder: Path, *actions: dict[str, Any], **changes: Any) -> Scenario:
    return written(folder, timeline=[{"at": 1, **action} for action in actions], **changes)


@pytest.mark.parametrize(("action", "mistake"), [
    ({"restart": "zork"}, 'restart: there is no such controller or process (got "zork")'),
    ({"restart": "dpu-set"}, "restart: there is no such controller or process, did you mean dpuset?"),
    ({"fault": {"kind": "watch-broken", "controller": "zz"}}, "fault.controller: there is no such controller or proc"),
    ({"fault": {"kind": "watch-duplicate", "controller": ["dpu", "zz*"]}}, '(got "zz*")'),
    ({"fault": {"kind": "dpu-api-down", "cluster": "nope"}}, "fault.cluster: no manifest is such a DPUCluster (got"),
    ({"fault": {"kind": "kubeconfig-rotated", "cluster": f"{NS}/dpu-clutser"}}, f"did you mean {NS}/dpu-cluster?"),
    ({"fault": {"kind": "pdb-stuck", "name": "nope"}},
     'fault.name: neither fleet nor manifests have such a PodDisruptionBudget (got "default/nope")'),
    ({"fault": {"kind": "bfb-file-removed", "file": "nope"}}, 'fault.file: no BFB has such a file (got "nope")'),
    ({"fault": {"kind": "bfb-file-replaced", "file": f"/bfb/{NS}-bf-bundel-1.bfb", "content": "x"}},
     f"did you mean {NS}-bf-bundle-1.bfb?"),
    ({"fault": {"kind": "image-server-wrong-content", "server": "*", "content": "zork"}},
     'fault.content: must be garbage, or the name of a BFB that the servers have (got "zork")'),
])
def test_a_name_that_fits_nothing_is_a_mistake(tmp_path: Path, action: dict[str, Any], mistake: str) -> None:
    with pytest.raises(BadInput) as raised:
        story(tmp_path, action)
    told = str(raised.value.mistakes[0])
    assert mistake in told
    assert told.startswith(f"{tmp_path}/scenario.yaml:")


@pytest.mark.parametrize("action", [
    {"restart": "*"}, {"restart": "dpu*"}, {"restart": "provisioning-2"},
    {"fault": {"kind": "watch-broken", "controller": ["dpu", "provisioning"]}},
    {"fault": {"kind": "dpu-api-down", "cluster": f"{NS}/*"}}, {"fault": {"kind": "dpu-api-down"}},
    {"fault": {"kind": "bfb-file-removed", "file": "bfb-1"}},
    {"fault": {"kind": "bfb-file-removed", "file": f"/bfb/{NS}-bf-bundle-1.bfb"}},
    {"fault": {"kind": "bfb-file-removed", "file": "worker1-0000-2b-00-1.cfg"}},
    {"fault": {"kind": "image-server-wrong-content", "server": "any", "content": "bf-bundle-3.0.0-140.bfb"}},
    {"fault": {"kind": "job-fails", "name": "whatever"}},
])
def test_names_and_patterns_that_may_fit_are_fine(tmp_path: Path, action: dict[str, Any]) -> None:
    assert len(story(tmp_path, action).timeline) == 1


def test_what_the_timeline_applies_and_the_fleet_has_may_be_named(tmp_path: Path) -> None:
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "mine"},
              "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}}
    s = story(
        tmp_path, {"apply": budget}, {"apply": str(ROOT / "scenarios" / "manifests" / "next-bfb")},
        {"fault": {"kind": "pdb-stuck", "name": "mine"}}, {"fault": {"kind": "pdb-stuck", "name": "theirs"}},
        {"fault": {"kind": "bfb-file-removed", "file": f"{NS}-bf-bundle-2.bfb"}},
        fleet={"generate": {"racks": 1, "hosts_per_rack": 1},
               "budgets": [{"name": "theirs", "selector": {"app": "y"}, "min_available": 1}]})
    assert len(s.timeline) == 5


def test_where_manifests_have_mistakes_names_of_objects_are_not_judged(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        story(tmp_path, {"fault": {"kind": "dpu-api-down", "cluster": "a/b"}}, {"restart": "zork"},
              manifests=["nowhere/"])
    assert [m.field for m in raised.value.mistakes] == ["manifests[0]", "timeline[1].restart"]


@pytest.mark.parametrize(("action", "missed"), [
    ({"fault": {"kind": "bfb-file-removed", "file": f"{NS}-bf-bundle-1.bfb"}}, "there is no such file"),
    ({"fault": {"kind": "kubeconfig-rotated"}}, "there is no such DPU cluster"),
    ({"fault": {"kind": "dms-pod-lost", "host": "*"}}, "there is no such DMS pod"),
    ({"fault": {"kind": "watch-broken", "controller": "provisioning-2"}}, "no such process runs"),
    ({"restart": "static-cluster-manager-2"}, "no such process runs"),
])
def test_what_strikes_nothing_is_a_warning_of_the_run(tmp_path: Path, action: dict[str, Any], missed: str) -> None:
    s = story(tmp_path, action).with_(horizon_s=2.0)
    what = next(iter(action))
    assert run(s).warnings[-1] == f"{s.timeline[0].where}: at 1 s this {what} strikes nothing: {missed}"
