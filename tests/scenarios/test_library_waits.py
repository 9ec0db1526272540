"""What reports are made of: waits and outages of all library runs have the names that INTERFACE.md 3 gives."""

from __future__ import annotations

import re

import pytest

from tests.scenarios.library_runs import NAMES, run
from twin.sim.trace import BUDGET

CONSTRAINT = re.compile("|".join((
    r"maxUnavailable DPUSet/[-a-z0-9.]+/[-a-z0-9.]+", r"image-server [-a-z0-9.]+", r"worker [-a-z]+", "maintenance",
    r"pdb [-a-z0-9.]+/[-a-z0-9.]+", r"cluster-capacity [-a-z0-9.]+/[-a-z0-9.]+", "operator", "drain", "volume",
    r"BFB [-a-z0-9.]+/[-a-z0-9.]+", "registration", "br-dpu", "reboot script", "custom action", "join", "dms",
    "node effect", "dpu-cluster", "host boot", "controller uplink", r"rack uplink [-a-z0-9.]+", "shared links")))


@pytest.mark.parametrize("name", NAMES)
def test_waits_and_outages_have_known_names_and_lengths(name: str) -> None:
    for wait in run(name).waits():
        assert CONSTRAINT.fullmatch(wait.label), wait
        assert wait.end_s > wait.start_s >= 0.0
    assert {o.label for o in run(name).outages()} <= {"drain", "reboot", "install", "fault"}


@pytest.mark.parametrize(("name", "steps"), [
    ("rolling-bfb-update", [1.0]), ("rolling-update-quarter", [1.0, 2.0]), ("rolling-update-half", [1.0, 2.0]),
    ("on-delete-update", []), ("two-dpus-on-a-host", [1.0])])
def test_the_budget_counter_follows_what_the_dpusets_allow(name: str, steps: list[float]) -> None:
    assert [value for _, value in run(name).trace.counters.get(BUDGET, [])] == steps


def test_the_budget_falls_when_dpus_leave_for_good_but_not_while_they_are_made_anew() -> None:
    deleted = [v for _, v in run("dpu-deletion").trace.counters[BUDGET]]
    gone = [v for _, v in run("dpuset-deletion").trace.counters[BUDGET]]

    assert deleted == [1.0]
    assert gone == [1.0, 0.0]


def test_a_drain_that_a_budget_forbids_is_named_after_it_and_not_after_the_operator() -> None:
    spans = [w for w in run("wart-pdb-blocks-drain").waits() if w.dpu == "worker1-0000-2b-00" and w.end_s < 4000.0]
    longest = max(spans, key=lambda w: w.end_s - w.start_s)

    assert longest.label == "pdb shop/db"


def test_time_lost_by_sharing_a_link_is_the_time_beyond_a_transfer_alone() -> None:
    """6 GB to six hosts over 60 MB/s take 600 s each; alone 240 s at the 25 MB/s of a stream."""
    lost = [w.end_s - w.start_s for w in run("shared-links").waits() if w.label == "volume"]

    assert [round(s) for s in lost] == [360] * 6
