"""The comparison itself: it sees what was planted, and reads a timeline as it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.golden import compare, recording, views
from tests.golden.compare import Line
from tests.golden.differences import OURS, RECORDED, Difference
from tests.golden.playing import Case, played
from tests.golden.recording import ABSENT, WHY_ABSENT, Change
from tests.golden.stage import Census
from tests.golden.views import Subject


def recorded_again(case: Case, changes: list[Change]) -> list[str]:
    """What differs from our play when this had been recorded."""
    theirs = compare.Normal(case.recording.name, RECORDED).sequences(views.recorded(changes), case.limit)
    return compare.best(theirs, case.ours, case.play.world.fleet.host)[0]


def _with(field: str, value: object) -> Callable[[Change], Change]:
    return lambda c: replace(c, changed={**c.changed, field: value}) if field in c.changed else c


def _without(kind: str, words: str) -> Callable[[Change], Change | None]:
    return lambda c: None if c.kind == kind and words in str(c.changed) else c


@pytest.mark.parametrize("plant", [
    pytest.param(_with("status.conditions[BFBReady].reason", "Other"), id="another reason"),
    pytest.param(_with("status.conditions[Initialized].message", "something"), id="another message"),
    pytest.param(_with("status.conditions[NodeEffectReady].status", "False"), id="another status"),
    pytest.param(_with("status.bfbFile", "/bfb/other.bfb"), id="another file"),
    pytest.param(_with("spec.requestorID", "somebody"), id="another requestor of the maintenance"),
    pytest.param(_without("Event", "SuccessfulCreate"), id="an event less"),
    pytest.param(_without("NodeMaintenance", "metadata.deletionTimestamp"), id="a deletion less"),
    pytest.param(_without("Node", "spec.unschedulable"), id="a cordon less"),
    pytest.param(_without("DPUSet", "metadata.finalizers"), id="a finalizer less"),
    pytest.param(_without("DPU", "DOCA-BFB-version"), id="a label less"),
])
@pytest.mark.shared
@pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)
def test_a_planted_difference_is_found(plant: Callable[[Change], Change | None]) -> None:
    case = played("c2-drain")
    changes = [c for c in map(plant, case.recording.changes) if c is not None]
    assert changes != list(case.recording.changes), "nothing was planted"
    assert recorded_again(case, changes)


@pytest.mark.shared
@pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)
def test_two_writes_of_an_object_in_the_other_order_are_found() -> None:
    case = played("c2-drain")
    changes = list(case.recording.changes)
    first, second = [i for i, c in enumerate(changes) if c.kind == "DPU" and "status.phase" in c.changed][1:4:2]
    changes[first], changes[second] = changes[second], changes[first]
    assert recorded_again(case, changes)


@pytest.mark.shared
@pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)
def test_what_is_recorded_equals_itself_only_with_the_table() -> None:
    case = played("c2-drain")
    assert not recorded_again(case, list(case.recording.changes))
    assert case.used.keys() >= {"interface-initialized", "config-fw-parameters", "drain-spares-dms"}


@pytest.mark.shared
@pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)
def test_settings_and_answers_are_read_from_the_recordings() -> None:
    case = recording.load("a6-bfb-deleted-in-use")
    assert case.seconds("activate_delay", 2.0) == 25.0
    refused = next(s for s in case.steps if s.status == 403)
    assert refused.target == ("BFB", "bf-bundle")
    assert "being referred to by DPUSet(s) [dpuset-1]" in refused.message


# --- reading timelines


def change(op: str, changed: dict[str, object], name: str = "d", t_s: float = 1.0) -> Change:
    return Change(t_s, op, "DPU", "", "ns", name, changed)


def test_dotted_paths_become_views() -> None:
    found = views.recorded([
        change("ADDED", {"metadata.labels.a\\.b/c": "x", "spec.bfb": "one", "status.phase": "Initializing"}),
        change("MODIFIED", {"status.conditions[Ready].status": "True", "status.conditions[Ready].reason": "R",
                            "status.conditions[Ready].message": "m", "metadata.labels.a\\.b/c": None}),
        change("DELETED", {}),
        change("ADDED", {"spec.bfb": "two", "status.phase": "Initializing"}),
    ])
    writes = found[Subject("DPU", "ns", "d")].writes
    assert [w.op for w in writes] == ["+", "~", "-", "+"]
    assert ("label a.b/c", "x") in writes[0].facts
    assert writes[1].facts == (("cond Ready", "True/R/m"), ("label a.b/c", "-"))
    assert ("spec.bfb", "two") in writes[3].facts
    assert all(not name.startswith("cond") for name, _ in writes[3].facts)


def test_an_event_is_about_its_object_and_counts() -> None:
    event = {"involvedObject": "DPUSet/s", "type": "Normal", "reason": "R", "message": "m", "count": 1}
    found = views.recorded([
        Change(1.0, "ADDED", "Event", "", "ns", "s.1", event),
        Change(2.0, "MODIFIED", "Event", "", "ns", "s.1", {"count": 2}),
        Change(3.0, "ADDED", "Event", "", "ns", "j.1", {**event, "involvedObject": "Job/j"}),
    ])
    [(subject, history)] = found.items()
    assert subject.name == "DPUSet/s Normal R: m"
    assert [w.facts for w in history.writes] == [(("count", "1"),), (("count", "2"),)]


def test_workers_are_exchanged_without_mixing_their_names() -> None:
    lines = {"DPU/worker1-x": [Line("worker1 worker2", 1.0)], "DPU/worker2-x": [Line("worker2", 2.0)]}
    swapped = compare.renamed(lines, {"worker1": "worker2", "worker2": "worker1"})
    assert {s: [line.text for line in found] for s, found in swapped.items()} == {
        "DPU/worker2-x": ["worker2 worker1"], "DPU/worker1-x": ["worker1"]}


def test_a_rule_is_about_whole_facts_of_its_side() -> None:
    rule = Difference("x", OURS, "DPU/.*", "phase=A", None, "1.1", cases=("c*",))
    assert rule.applies("c2", OURS)
    assert not rule.applies("c2", RECORDED)
    assert not rule.applies("d1", OURS)
    assert rule.on("DPU/d", "phase=A") == (None, True)
    assert rule.on("DPU/d", "phase=AB") == ("phase=AB", False)
    assert rule.on("BFB/d", "phase=A") == ("phase=A", False)


def test_a_situation_counts_phases_departures_and_arrivals_in_ready() -> None:
    census = Census({})
    for name, phase in (("a", ""), ("b", "Ready"), ("a", "Rebooting"), ("a", "Ready"), ("b", "Ready")):
        census.note("DPU", name, "MODIFIED", phase)
    census.note("DPU", "b", "DELETED", "Deleting")
    assert census.now().dpus == ((("Ready", 1),), 1, 2)
