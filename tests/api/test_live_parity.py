"""Parity: a library scenario goes the same way in virtual time and on a lab of real parts. See `api.parity`.

Compared: what is pending at the end; per DPU, phases and conditions (type, status, reason) in the one order in which
they were told, less `api.parity.WAITING`; per DPU, the sequence of phases with nothing left out; the final objects of
DPF's kinds, field by field. A few quick scenarios run with every test run, all by `make parity`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from lab_parts import need_clusters

from api import parity
from api.lab_steps import Unplayable, check
from api.parity_table import CANNOT, CI, NOT_PLAYED, PLAYED
from api.rehearse_lab import LabStory
from reports.diff_runs import History, diff, history
from reports.folder import read, write
from scenarios.load import load_scenario
from scenarios.result import summarise
from scenarios.run import run as simulate
from twin.backends.base import Settings
from twin.model.provisioning import Dpu

LIBRARY = Path(__file__).parents[2] / "scenarios" / "library"
MANIFESTS = LIBRARY.parent / "manifests"
FAST = Settings(cloud_init_s=2.0)
STORIES = [pytest.param(name, id=name, marks=[pytest.mark.slow, pytest.mark.parity, *(
    [] if name in CI else [pytest.mark.lab])]) for name in PLAYED]


@pytest.mark.parametrize("name", STORIES)
def test_a_scenario_goes_the_same_way_in_both_worlds(name: str, tmp_path: Path) -> None:
    need_clusters()
    scenario = load_scenario(LIBRARY / f"{name}.yaml")
    simulated = simulate(scenario, keep_trace=True, keep_objects=True)
    story = LabStory(scenario, speed=PLAYED[name], settings=FAST)
    try:
        story.start()
        played = story.play(pace=parity.Pace(simulated))
    finally:
        story.close()
    assert played.pending == simulated.pending
    sim = read(write([simulated], summarise([simulated]), tmp_path / "sim", report=False))
    lab = read(write([played], summarise([played]), tmp_path / "lab", report=False))
    assert parity.differences(history(sim), history(lab)) == []
    found = diff(sim, lab)
    assert found.phases == []
    assert found.objects == []
    assert len(history(sim).told) > 0


def test_every_library_scenario_is_played_or_it_is_said_why_not() -> None:
    library = {path.stem for path in LIBRARY.glob("*.yaml")}
    assert set(PLAYED) | set(NOT_PLAYED) == library
    assert not set(PLAYED) & set(NOT_PLAYED)
    assert set(CI) <= set(PLAYED)


@pytest.mark.slow
def test_a_lab_refuses_what_real_parts_cannot_be_told_to_do_and_nothing_else() -> None:
    refused = {}
    for path in LIBRARY.glob("*.yaml"):
        try:
            check(load_scenario(path))
        except Unplayable as no:
            refused[path.stem] = str(no)
    assert set(refused) == {name for name, why in NOT_PLAYED.items() if why in CANNOT}
    assert refused["fault-api-slow"].endswith(
        "--world lab: fault api-slow is not played: a real API server is as fast as it is")


@pytest.mark.parametrize("later", [False, True])
def test_what_is_switched_off_runs_on_a_lab_all_the_same_so_it_is_refused(tmp_path: Path, later: bool) -> None:
    manifest = (MANIFESTS / "basic" / "dpf.yaml").read_text()
    file = {"apiVersion": "dpf-twin/v1", "name": "off", "fleet": {"generate": {"racks": 1, "hosts_per_rack": 1}},
            "manifests": ["dpf.yaml"]}
    if later:
        merge = {"spec": {"dpuDetector": {"disable": True}}}
        file["timeline"] = [{"at": "1h", "patch": {
            "kind": "DPFOperatorConfig", "namespace": "dpf-operator-system", "name": "dpfoperatorconfig",
            "merge": merge}}]
    else:
        manifest = manifest.replace("kamajiClusterManager: {disable: false}", "kamajiClusterManager: {disable: true}")
    (tmp_path / "dpf.yaml").write_text(manifest)
    (tmp_path / "off.yaml").write_text(yaml.safe_dump(file))

    with pytest.raises(Unplayable, match=r"disable is not played: every controller runs"):
        check(load_scenario(tmp_path / "off.yaml"))


def test_what_tells_of_waiting_is_left_out_and_nothing_else() -> None:
    assert parity.told(["-> Pending", "BFBReady=False BFBIsNotReady", "BFBReady=True BFBReady"]) == [
        "-> Pending", "BFBReady=True BFBReady"]
    back = ["A=True Fine", "A=False NodeNotReady", "A=True Fine", "-> (gone)", "A=True Fine"]
    assert parity.told(back) == ["A=True Fine", "-> (gone)", "A=True Fine"]
    assert parity.told(["A=True Fine", "A=False Broken", "A=True Fine"]) == [
        "A=True Fine", "A=False Broken", "A=True Fine"]


def test_a_write_that_met_another_one_is_left_out() -> None:
    history = History()
    history.see("d", "Initializing", [("Initialized", "False", "UpdateDPUNodeError", "refused")], 1.0)
    history.see("d", "Initializing", [("Initialized", "False", "UpdateDPUNodeError",
                                       "the object has been modified; please apply your changes")], 2.0)
    history.see("d", "Initializing", [("Initialized", "False", "ErrorOccured",
                                       'nodemaintenances.maintenance.nvidia.com "w" already exists')], 3.0)
    entries = [text for _, text in history.told["d"]]
    assert entries[1:] == ["Initialized=False UpdateDPUNodeError", "Initialized=False UpdateDPUNodeError (conflict)",
                           "Initialized=False ErrorOccured (conflict)"]
    assert parity.told(entries) == entries[:2]


@pytest.mark.slow
def test_a_lab_has_come_as_far_as_it_was_told_in_the_same_order() -> None:
    run = simulate(load_scenario(LIBRARY / "reboot-not-needed.yaml"), keep_trace=True, keep_objects=True)
    pace = parity.Pace(run)
    versions = [v for v in run.trace.versions if isinstance(v.object, Dpu)]
    middle_s = versions[len(versions) // 2].t_s
    assert pace.reached(0.0)
    assert not pace.at_rest(0.0), "there was nothing yet"
    for version in versions:
        if version.t_s < middle_s:
            pace.seen(None, version.object)
    assert pace.reached(middle_s)
    assert not pace.reached(math.inf)
    assert not pace.at_rest(middle_s)
    for version in versions:
        pace.seen(None, version.object)
    assert pace.reached(math.inf)
    assert pace.at_rest(math.inf)
