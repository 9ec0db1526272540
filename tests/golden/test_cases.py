"""What our controllers do is what upstream's did, case by case (golden/provisioning, development tree of 2025-02).

The recordings stay where they are; what v25.4 changed on purpose stands in `differences`, each with its section.
"""

from __future__ import annotations

import re
from math import inf

import pytest

from tests.golden import recording
from tests.golden.differences import DIFFERENCES, LIMITS, NO_LIMIT
from tests.golden.playing import played
from tests.golden.recording import ABSENT, WHY_ABSENT
from tests.golden.stage import Play
from tests.golden.views import History, Subject

pytestmark = [pytest.mark.shared, pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)]

each = pytest.mark.parametrize("name", recording.names())

APART_S = 0.3
"""What is recorded closer together than this happened at once (golden README)."""


@each
def test_every_object_goes_through_the_recorded_changes(name: str) -> None:
    """Creation, finalizers, phases, conditions with reason and message, labels, node effects, events, deletion."""
    case = played(name)
    assert case.recorded, "nothing was compared"
    assert not case.left, "\n".join(["", *case.left])


@each
def test_the_api_server_answers_each_step_as_recorded(name: str) -> None:
    answers = [(s.what, status, message) for s, status, message in played(name).play.answers]
    assert answers == [(s.what, s.status, s.message) for s, _, _ in played(name).play.answers]


@pytest.mark.parametrize("name", [
    n for n in recording.names() if not (LIMITS.get(n, NO_LIMIT).kinds or LIMITS.get(n, NO_LIMIT).same)])
def test_dpu_statistics_agree_where_nothing_moves(name: str) -> None:
    """At the end, and before each step for which all DPUs had been Ready for a second."""
    case = played(name)
    sets = [s for s in case.seen if s.kind == "DPUSet"]
    moves = sorted(c.t_s for c in case.recording.changes if c.kind in ("DPU", "DPUSet"))
    for step, ours_s in zip(case.play.steps, case.play.played_s, strict=False):
        if not any(step.t_s - 1.0 < t < step.t_s + 0.05 for t in moves):
            for subject in sets:
                theirs = _counts(case.seen, subject, step.t_s)
                if theirs.keys() <= {"statistics Ready"}:
                    assert _counts(case.done, subject, ours_s) == theirs, step.what
    for subject in sets:
        assert _counts(case.done, subject, inf) == _counts(case.seen, subject, inf)


def _counts(histories: dict[Subject, History], subject: Subject, t_s: float) -> dict[str, str]:
    history = histories.get(subject)
    view = history.view_at(t_s) if history is not None else None
    return {k: v for k, v in (view or {}).items() if k.startswith("statistics ")}


@each
def test_changes_of_one_worker_come_in_the_recorded_order_across_objects(name: str) -> None:
    """DPU, NodeMaintenance, host Node, DPU-cluster Node and events of each worker."""
    case = played(name)
    wrong = []
    for worker in case.play.world.fleet.host:
        lines = [(a.t_s, b.t_s, f"{subject}: {a.text}") for subject in case.recorded
                 if re.search(rf"\b{worker}\b", subject) and "(" not in subject.partition(" ")[2][:1]
                 for a, b in zip(case.recorded[subject], case.ours.get(subject, ()), strict=False)]
        wrong += [f"{first} before {then}" for t, ours, first in lines for t2, ours2, then in lines
                  if t + APART_S < t2 and ours > ours2 and not _joins_by_itself(first, then)]
    assert not wrong, "\n".join(["", *wrong])


@each
def test_collapsed_polling_changes_nothing(name: str) -> None:
    """Every record of the run is the same, to the nanosecond."""
    case = played(name)
    assert Play(case.recording, case.limit, collapse=True).run().trace.digest == case.play.trace.digest


def _joins_by_itself(first: str, then: str) -> bool:
    """Our DPU joins as soon as its bridge is up (8.4), the recordings' script waited for the phase."""
    return first.endswith("phase=DPU Cluster Config") and then.startswith("dpu:Node/")


# --- the table


def test_every_recorded_case_is_played() -> None:
    assert len(recording.names()) == 37
    assert LIMITS.keys() <= set(recording.names())
    assert all(limit.why for limit in LIMITS.values())


@pytest.mark.slow
def test_every_allowed_difference_occurs_and_cites_its_reason() -> None:
    used = {rule for name in recording.names() for rule in played(name).used}
    assert {d.id for d in DIFFERENCES} - used == set()
    assert len({d.id for d in DIFFERENCES}) == len(DIFFERENCES)
    assert all(d.why for d in DIFFERENCES)
