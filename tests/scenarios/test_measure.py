"""Provisionings, unavailability and waits, from hand-made traces."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.measure import (
    Provisioning,
    completions,
    provisioning_windows,
    provisionings,
    shared,
    unavailability,
    waiting,
)
from twin.sim.trace import NS, Place, SpanRow, Trace

INSTALL = ("Initializing", "Pending", "OS Installing", "Ready")


def walk(trace: Trace, dpu: str, start_s: float, *phases: str, step_s: float = 10.0) -> None:
    for i, phase in enumerate(phases):
        trace.phase(round((start_s + i * step_s) * NS), dpu, phase)


def test_completion_runs_from_the_request_not_from_the_object() -> None:
    trace = Trace()
    trace.asked(0, "manifests applied")
    walk(trace, "d1", 100, *INSTALL)

    assert provisionings(trace, 1000.0) == [Provisioning("d1", 1, 0.0, 130.0)]
    assert provisionings(trace, 1000.0)[0].completion_s == 130.0


def test_without_a_request_completion_runs_from_initializing() -> None:
    trace = Trace()
    walk(trace, "d1", 100, *INSTALL)

    assert provisionings(trace, 1000.0) == [Provisioning("d1", 1, 100.0, 130.0)]


def test_an_update_is_a_provisioning_of_its_own_and_counts_its_wait_for_a_turn() -> None:
    trace = Trace()
    trace.asked(0, "install")
    walk(trace, "d1", 10, *INSTALL)
    trace.asked(500 * NS, "update", ["d1"])
    walk(trace, "d1", 700, "Deleting", "", *INSTALL)

    assert provisionings(trace, 1000.0) == [Provisioning("d1", 1, 0.0, 40.0), Provisioning("d1", 2, 500.0, 750.0)]
    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 2, 500.0, 750.0)}


def test_a_provisioning_nobody_asked_for_begins_when_the_dpu_left_ready() -> None:
    trace = Trace()
    trace.asked(0, "install")
    walk(trace, "d1", 10, *INSTALL)
    walk(trace, "d1", 700, "Deleting", "", *INSTALL)

    assert provisionings(trace, 1000.0)[1] == Provisioning("d1", 2, 700.0, 750.0)


def test_an_attempt_that_died_belongs_to_the_provisioning_that_follows() -> None:
    trace = Trace()
    trace.asked(0, "install")
    walk(trace, "d1", 10, "Initializing", "Error", "Deleting", "", *INSTALL)

    assert provisionings(trace, 1000.0) == [Provisioning("d1", 2, 0.0, 80.0)]


def test_a_dpu_that_is_never_ready_is_not_complete() -> None:
    trace = Trace()
    trace.asked(0, "install")
    walk(trace, "d1", 10, "Initializing", "Error")

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 1, 0.0, None)}
    assert completions(trace, 1000.0)["d1"].completion_s == math.inf


def test_a_request_by_name_that_nothing_answered_is_not_complete() -> None:
    trace = Trace()
    trace.asked(0, "install", ["d1", "ghost"])
    walk(trace, "d1", 10, *INSTALL)
    trace.asked(500 * NS, "update", ["d1"])

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 2, 500.0, None),
                                          "ghost": Provisioning("ghost", 1, 0.0, None)}


def test_a_dpu_whose_update_had_only_begun_is_not_complete() -> None:
    trace = Trace()
    walk(trace, "d1", 0, *INSTALL)
    trace.asked(500 * NS, "update", ["d1"])
    walk(trace, "d1", 600, "Deleting")

    assert completions(trace, 601.0)["d1"].ready_s is None


def test_a_removed_dpu_has_no_completion() -> None:
    trace = Trace()
    walk(trace, "d1", 0, *INSTALL, "Deleting", "")

    assert completions(trace, 1000.0) == {}


def test_an_ask_that_was_withdrawn_is_not_one_that_nothing_answered() -> None:
    trace = Trace()
    trace.asked(0, "install", ["d1", "ghost"])
    walk(trace, "d1", 10, *INSTALL)
    trace.asked(500 * NS, "update", ["d1"])
    for dpu in ("d1", "ghost"):
        trace.wish(600 * NS, dpu, wanted=False)

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 1, 0.0, 40.0)}

    trace.asked(700 * NS, "update", ["d1"])

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 2, 700.0, None)}


def test_a_dpu_that_went_for_good_after_an_update_began_has_no_completion() -> None:
    trace = Trace()
    trace.asked(0, "install", ["d1"])
    walk(trace, "d1", 10, *INSTALL)
    trace.asked(500 * NS, "update", ["d1"])
    walk(trace, "d1", 600, "Deleting", "")

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 2, 500.0, None)}

    trace.wish(610 * NS, "d1", wanted=False)

    assert completions(trace, 1000.0) == {}


def test_a_dpu_that_had_gone_for_good_comes_again_without_the_idle_time() -> None:
    trace = Trace()
    walk(trace, "d1", 10, *INSTALL, "Deleting", "")
    trace.wish(60 * NS, "d1", wanted=False)
    walk(trace, "d1", 500, *INSTALL)

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 2, 500.0, 530.0)}


def test_a_request_that_names_no_dpu_starts_no_clock_anew() -> None:
    trace = Trace()
    trace.asked(0, "one DPUSet created", ["d1"])
    walk(trace, "d1", 10, *INSTALL)
    trace.asked(500 * NS, "update", ["d1"])
    trace.asked(600 * NS, "another DPUSet created")
    walk(trace, "d1", 700, "Deleting", "", *INSTALL)

    assert completions(trace, 1000.0) == {"d1": Provisioning("d1", 2, 500.0, 750.0)}


def test_ready_again_after_a_label_drift_is_no_new_provisioning() -> None:
    trace = Trace()
    walk(trace, "d1", 0, *INSTALL, "DPU Cluster Config", "Ready")

    assert provisionings(trace, 1000.0) == [Provisioning("d1", 1, 0.0, 30.0)]


def test_causes_that_overlap_on_a_dpu_are_one_unavailable_dpu() -> None:
    spans = [SpanRow("d1", 0, 10, "drain"), SpanRow("d1", 5, 20, "reboot"), SpanRow("d2", 19, 21, "install"),
             SpanRow("d3", 100, 110, "fault")]
    found = unavailability(spans, {"d1": Place("r1"), "d2": Place("r2"), "d3": Place("r1")})

    assert found.steps == [(0.0, 1), (19, 2), (20, 1), (21, 0), (100, 1), (110, 0)]
    assert (found.max, found.max_per_rack, found.dpu_s) == (2, 1, 32.0)


def test_an_outage_that_ends_as_another_begins_is_not_two_at_once() -> None:
    found = unavailability([SpanRow("d1", 0, 10, "drain"), SpanRow("d2", 10, 20, "drain")], {})

    assert found.max == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(1, 9)), max_size=20))
def test_unavailability_agrees_with_counting_second_by_second(of: list[tuple[str, int, int]]) -> None:
    spans = [SpanRow(dpu, start, start + length, "x") for dpu, start, length in of]
    counts = [len({s.dpu for s in spans if s.start_s <= t < s.end_s}) for t in range(30)]
    found = unavailability(spans, {})

    assert found.max == max(counts)
    assert found.dpu_s == sum(counts)
    level = dict(found.steps)
    seen = 0
    for t in range(30):
        seen = level.get(t, seen)
        assert seen == counts[t]


def test_seconds_under_two_constraints_are_shared_equally() -> None:
    spans = [SpanRow("d", 0, 10, "a"), SpanRow("d", 5, 15, "b")]

    assert shared(spans, [(0, 100)]) == pytest.approx({"a": 7.5, "b": 7.5})
    assert shared(spans, [(8, 12)]) == pytest.approx({"a": 1.0, "b": 3.0})


def test_waits_count_only_while_a_dpu_is_being_provisioned() -> None:
    trace = Trace()
    trace.asked(0, "install")
    walk(trace, "d1", 10, *INSTALL)
    trace.wait_begin(30 * NS, "d1", "worker dpu")
    trace.wait_end(90 * NS, "d1", "worker dpu")

    assert waiting(trace, 1000.0) == ({"d1": {"worker dpu": 10.0}}, 40.0)


def test_time_in_error_is_neither_wait_nor_work() -> None:
    trace = Trace()
    walk(trace, "d1", 0, "Initializing", "Pending", "Error")

    assert waiting(trace, 1000.0)[1] == 20.0


def test_time_in_an_error_that_is_over_is_neither_wait_nor_work() -> None:
    trace = Trace()
    trace.asked(0, "install")
    for t_s, phase in ((0, "Initializing"), (20, "Error"), (500, "Deleting"), (510, ""), (510, "Initializing"),
                       (530, "Error"), (600, "Deleting"), (600, ""), (605, "Initializing"), (640, "Ready")):
        trace.phase(t_s * NS, "d1", phase)
    trace.wait_begin(10 * NS, "d1", "operator")
    trace.wait_end(505 * NS, "d1", "operator")

    assert provisioning_windows(trace, 1000.0) == {"d1": [(0.0, 20.0), (500.0, 530.0), (600.0, 640.0)]}
    assert waiting(trace, 1000.0) == ({"d1": {"operator": 15.0}}, 90.0)


def test_a_request_at_the_moment_an_attempt_begins_is_the_one_it_answers() -> None:
    trace = Trace()
    trace.asked(0, "install")
    trace.asked(100 * NS, "again")
    walk(trace, "d1", 100, *INSTALL)

    assert provisionings(trace, 1000.0)[0].asked_s == 100.0


def test_a_request_that_was_answered_by_ready_is_not_answered_twice() -> None:
    trace = Trace()
    walk(trace, "d1", 0, *INSTALL)
    trace.asked(30 * NS, "at the very moment it got Ready")
    walk(trace, "d1", 400, "Deleting", "", *INSTALL)

    assert provisionings(trace, 1000.0)[1].asked_s == 400.0


def test_a_dpu_removed_before_it_was_ready_is_not_waited_for() -> None:
    trace = Trace()
    trace.asked(0, "install")
    walk(trace, "d1", 0, "Initializing", "Deleting", "")

    assert provisionings(trace, 1000.0) == []
    assert completions(trace, 1000.0) == {}
