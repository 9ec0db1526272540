"""A timing profile's entries change what a run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scenarios.base import Scenario
from scenarios.load import load_scenario
from scenarios.run import run
from twin.model.timing import Fixed, Profile
from twin.model.timing_profile import named

LIBRARY = Path(__file__).parents[2] / "scenarios" / "library"


def install(profile: Profile) -> Scenario:
    return load_scenario(LIBRARY / "two-dpus-on-a-host.yaml").with_(profile=profile, expect=())


@pytest.mark.slow
def test_more_workers_leave_less_waiting_for_a_worker() -> None:
    base = named("default")
    waited = []
    for workers in (1, 8):
        limit = replace(base.limits["workers_dpu"], value=workers)
        result = run(install(replace(base, limits={**base.limits, "workers_dpu": limit})))
        (row,) = [r for r in result.reconciles if r.controller == "dpu"]
        stood_still_s = sum(w.end_s - w.start_s for w in result.waits() if w.label == "worker dpu")
        waited.append((row.queue_wait_s_p95, stood_still_s))

    assert waited[0] > (0, 0) == waited[1]


@pytest.mark.slow
def test_a_longer_sleep_after_the_install_lengthens_it_by_just_that() -> None:
    base = named("fixed")
    lengths = []
    for sleep in (90.0, 390.0):
        operation = replace(base.operations["cloud-init"], takes=Fixed(sleep))
        result = run(install(replace(base, operations={**base.operations, "cloud-init": operation})))
        lengths.append(next(p.end_s - p.start_s for p in result.phases() if p.phase == "OS Installing"))

    assert lengths[1] - lengths[0] == 300.0
