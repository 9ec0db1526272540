"""A timing profile's entries change what a run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scenarios.base import Scenario
from scenarios.load import load_scenario
from scenarios.run import run
from twin.model.timing import Fixed, Profile, Timing
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


READERS = (
    "first-install", "rolling-bfb-update", "two-dpus-on-a-host", "reboot-not-needed", "reboot-power-cycle",
    "reboot-external", "reboot-script", "effect-custom-action", "effect-hold", "drain-of-workload",
    "wart-pdb-never-allows", "host-lost-and-returned", "fault-bridge-missing", "fault-api-down-briefly",
    "fault-dms-refused", "issue-4123204-nfs-down-install", "controller-restart-while-ready", "dpu-deletion",
)
"""Stories that between them touch everything that takes time."""


@pytest.mark.slow
def test_every_entry_of_the_default_profile_is_read_by_some_story(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: dict[str, None] = {}
    for verb in ("sample", "limit"):
        monkeypatch.setattr(Timing, verb, _noted(getattr(Timing, verb), read))
    (tmp_path / "volume-lost-while-dms-starts.yaml").write_text(
        f"apiVersion: dpf-twin/v1\nname: x\ninclude: {LIBRARY.parent}/parts/basic.yaml\n"
        "timeline: [{at: 75s, fault: {kind: nfs-down}, for: 2m}]\n")
    for path in (*(LIBRARY / f"{name}.yaml" for name in READERS), *tmp_path.iterdir()):
        run(load_scenario(path))

    profile = named("default")
    assert [n for n in (*profile.operations, *profile.limits) if n not in read] == []


def _noted(verb: Callable[..., float], read: dict[str, None]) -> Callable[..., float]:
    def asked(timing: Timing, name: str, *entity: str, **factors: str) -> float:
        read[name] = None
        return verb(timing, name, *entity, **factors)

    return asked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "phase"), [
    ("requeue", 60.0, "Host Network Configuration"), ("reboot-status-poll", 500.0, "OS Installing"),
    ("reboot_budget_s", 60.0, "Error"), ("bootstrap_token_s", 60.0, "DPU Cluster Config"),
])
def test_a_constant_of_upstreams_code_can_be_another_one(name: str, value: float, phase: str) -> None:
    base = named("fixed")
    if name in base.operations:
        other = replace(base, operations={
            **base.operations, name: replace(base.operations[name], takes=Fixed(value))})
    else:
        other = replace(base, limits={**base.limits, name: replace(base.limits[name], value=value)})
    stays = [[p.end_s - p.start_s for p in run(install(profile)).phases() if p.phase == phase]
             for profile in (base, other)]

    assert max(stays[1]) > max(stays[0], default=0.0) + 30.0


@pytest.mark.slow
def test_fewer_retries_end_sooner() -> None:
    base = named("fixed")
    story = load_scenario(LIBRARY / "issue-one-dpu-per-host.yaml")
    ends = []
    for retries in (10, 3):
        limit = replace(base.limits["task_retries"], value=retries)
        result = run(story.with_(profile=replace(base, limits={**base.limits, "task_retries": limit}), expect=()))
        ends.append(next(p.start_s for p in result.phases() if p.phase == "Error"))

    assert ends[0] - ends[1] == pytest.approx(7 * 10.0, abs=5.0)  # each takes a time-out and a poll, 5 s both


@pytest.mark.slow
def test_a_longer_sleep_after_the_install_lengthens_it_by_just_that() -> None:
    base = named("fixed")
    lengths = []
    for sleep in (90.0, 390.0):
        operation = replace(base.operations["cloud-init"], takes=Fixed(sleep))
        result = run(install(replace(base, operations={**base.operations, "cloud-init": operation})))
        lengths.append(next(p.end_s - p.start_s for p in result.phases() if p.phase == "OS Installing"))

    assert lengths[1] - lengths[0] == 300.0
