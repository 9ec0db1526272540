"""The trace: what is hashed, what is kept, which rows come of it."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.model.core import Secret
from twin.model.kinds import to_manifest
from twin.model.meta import ObjectMeta, Unstructured
from twin.model.provisioning import Bfb, BfbSpec, BfbStatus
from twin.sim.trace import CHUNK, NS, PhaseRow, SpanRow, Trace

S = NS


def story(trace: Trace) -> Trace:
    """A little of everything."""
    trace.asked(0, "manifests applied")
    trace.phase(0, "d1", "Initializing")
    trace.write(5, "dpu", "update_status", "", "DPU", "ns", "d1", "12", "")
    trace.device(1 * S, "host-reboot", "h1", "d1", "warm")
    trace.fault(1 * S, "rack-power", "r1", True)
    trace.kube_event(1 * S, "", "DPU/ns/d1", "Normal", "DPUReady", "ok")
    trace.outage_begin(1 * S, "d1", "drain")
    trace.wait_begin(1 * S, "d1", "maintenance")
    trace.counter(2 * S, "unavailable-budget", 3.0)
    trace.object(2 * S, "ADDED", "", Bfb(metadata=ObjectMeta(name="b")))
    trace.wait_end(2 * S, "d1", "maintenance")
    trace.outage_end(3 * S, "d1", "drain")
    trace.phase(4 * S, "d1", "Pending")
    return trace


@pytest.mark.parametrize(("keep", "objects"), [(True, False), (False, True), (True, True)])
def test_what_is_kept_does_not_change_the_digest(keep: bool, objects: bool) -> None:
    assert story(Trace(keep=keep, objects=objects)).digest == story(Trace()).digest


def test_the_digest_is_the_hash_of_the_kept_lines() -> None:
    trace = story(Trace(keep=True))

    assert hashlib.sha256(b"".join(trace.lines())).hexdigest() == trace.digest


def test_reading_the_digest_early_does_not_change_it() -> None:
    curious, calm = Trace(), Trace()
    for i in range(10):
        for trace in (curious, calm):
            trace.counter(i, "n", i)
        assert curious.digest

    assert curious.digest == calm.digest


def test_records_beyond_one_chunk_are_all_hashed_and_kept_in_order() -> None:
    trace = Trace(keep=True)
    for i in range(2 * CHUNK + 7):
        trace.counter(i, "n", i)

    assert [r.value for r in trace.kept()] == list(range(2 * CHUNK + 7))  # type: ignore[union-attr]
    assert trace.records == 2 * CHUNK + 7
    assert hashlib.sha256(b"".join(trace.lines())).hexdigest() == trace.digest


CHANGES: list[Callable[[Trace], None]] = [
    lambda t: t.write(5, "dpu", "update", "", "DPU", "ns", "d", "1", ""),
    lambda t: t.write(5, "dpu", "update", "", "DPU", "ns", "d", "1", "Conflict"),
    lambda t: t.write(6, "dpu", "update", "", "DPU", "ns", "d", "1", ""),
    lambda t: t.phase(5, "d", "Pending"),
    lambda t: t.device(5, "host-reboot", "h"),
    lambda t: t.fault(5, "k", "t", True),
    lambda t: t.fault(5, "k", "t", False),
    lambda t: t.outage_begin(5, "d", "drain"),
    lambda t: t.wait_begin(5, "d", "drain"),
    lambda t: t.counter(5, "drain", 1),
    lambda t: t.asked(5, "x"),
    lambda t: t.asked(5, "x", ["d"]),
    lambda t: t.kube_event(5, "", "DPU/ns/d", "Normal", "a", "b"),
]


def test_every_kind_of_record_has_a_digest_of_its_own() -> None:
    digests = set()
    for change in CHANGES:
        trace = Trace()
        change(trace)
        digests.add(trace.digest)

    assert len(digests) == len(CHANGES)


def test_a_mark_says_when_it_was_last_set_and_is_not_hashed() -> None:
    trace = story(Trace())
    for t in (3, 7):
        trace.mark(t * S, "wanted-by-label", "d1")

    assert trace.marks == {("wanted-by-label", "d1"): 7.0}
    assert trace.digest == story(Trace()).digest


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process_with_another_hash_seed() -> None:
    here = Path(__file__).parent
    code = "from test_trace import story; from twin.sim.trace import Trace; print(story(Trace()).digest)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": "77", "PYTHONPATH": f"{here.parents[1]}:{here}"})

    assert found.stdout.strip() == story(Trace()).digest


def test_a_trace_keeps_digest_and_tables_on_its_way_to_another_process() -> None:
    trace = story(Trace(keep=True, objects=True))

    copy = pickle.loads(pickle.dumps(trace))

    assert copy.digest == trace.digest
    assert copy.phases(9) == trace.phases(9)
    assert b"".join(copy.lines()) == b"".join(trace.lines())
    assert list(copy.object_lines()) == list(trace.object_lines())


def test_phases_are_stays_with_an_outcome_and_the_last_one_is_open() -> None:
    trace = Trace()
    for t, phase in enumerate(("Initializing", "Pending", "Deleting", "", "Initializing", "Error")):
        trace.phase(t * S, "d1", phase)

    assert [(r.phase, r.outcome, r.attempt) for r in trace.phases(9.0)] == [
        ("Initializing", "passed", 1), ("Pending", "deleting", 1), ("Deleting", "gone", 1),
        ("Initializing", "failed", 2), ("Error", "open", 2)]
    assert trace.phases(9.0)[-1] == PhaseRow("d1", "Error", 5.0, 9.0, "open", 2)
    assert trace.phase_now() == {"d1": "Error"}


def test_ready_dpus_that_are_configured_again_went_back() -> None:
    trace = Trace()
    for t, phase in enumerate(("DPU Cluster Config", "Ready", "DPU Cluster Config")):
        trace.phase(t * S, "d1", phase)

    assert [r.outcome for r in trace.phases(3.0)] == ["passed", "back", "open"]


def test_the_same_phase_again_is_nothing_new() -> None:
    once, twice = Trace(), Trace()
    once.phase(0, "d1", "Pending")
    twice.phase(0, "d1", "Pending")
    twice.phase(9, "d1", "Pending")

    assert once.digest == twice.digest
    assert len(twice.phases(1.0)) == 1


def test_an_object_that_goes_leaves_no_open_stay() -> None:
    trace = Trace()
    trace.phase(0, "d1", "Deleting")
    trace.phase(1 * S, "d1", "")
    trace.phase(2 * S, "d1", "")

    assert [r.outcome for r in trace.phases(9.0)] == ["gone"]
    assert trace.phase_now() == {}


def test_a_wait_is_open_once_for_each_dpu_and_constraint() -> None:
    trace = Trace()
    trace.wait_begin(0, "d1", "worker dpu")
    trace.wait_begin(1 * S, "d1", "worker dpu")
    trace.wait_begin(1 * S, "d1", "maintenance")
    trace.wait_end(2 * S, "d1", "worker dpu")
    trace.wait_end(3 * S, "d1", "worker dpu")

    assert trace.waits(5.0) == [SpanRow("d1", 0.0, 2.0, "worker dpu"), SpanRow("d1", 1.0, 5.0, "maintenance")]


def test_a_wait_or_outage_of_no_length_is_recorded_but_is_no_row() -> None:
    trace = Trace(keep=True)
    trace.wait_begin(1 * S, "d1", "pdb ns/p")
    trace.wait_end(1 * S, "d1", "pdb ns/p")
    trace.outage_begin(1 * S, "d1", "drain")
    trace.outage_end(1 * S, "d1", "drain")

    assert trace.waits(5.0) == trace.outages(5.0) == []
    assert len(list(trace.kept())) == 4


def test_writes_are_rows_only_when_records_are_kept() -> None:
    assert [w.resource_version for w in story(Trace(keep=True)).writes()] == ["12"]
    assert list(story(Trace()).writes()) == []


def test_object_lines_hold_what_kubectl_would_print() -> None:
    trace = Trace(objects=True)
    bfb = Bfb(metadata=ObjectMeta(name="b", namespace="n"), spec=BfbSpec(url="http://x/y.bfb"),
              status=BfbStatus(phase="Ready"))
    other = Unstructured(metadata=ObjectMeta(name="u"), kind="Thing", group_version="x.y/v1",
                         content={"spec": {"a": 1}})
    trace.object(2 * S, "MODIFIED", "", bfb)
    trace.object(1 * S, "ADDED", "dpu-cluster-1", other)
    lines = [json.loads(line) for line in trace.object_lines()]

    assert lines == [
        {"t_s": 1.0, "cluster": "dpu-cluster-1", "op": "ADDED", "object": to_manifest(other)},
        {"t_s": 2.0, "cluster": "", "op": "MODIFIED", "object": to_manifest(bfb)}]


def test_an_object_without_any_field_is_a_valid_line() -> None:
    trace = Trace(objects=True)
    trace.object(0, "ADDED", "", Bfb())

    assert json.loads(next(trace.object_lines()))["object"]["kind"] == "BFB"


def test_records_carry_seconds_exactly_to_the_nanosecond() -> None:
    trace = Trace(keep=True)
    ns = 172_799 * S + 999_999_999
    trace.counter(ns, "n", 0)

    assert round(next(trace.kept()).t_s * NS) == ns


def test_the_last_record_is_the_latest_not_the_last_written() -> None:
    trace = Trace()
    assert trace.last_s == 0.0

    trace.counter(9 * S, "n", 1)
    trace.counter(4 * S, "n", 2)
    assert trace.last_s == 9.0
    trace.counter(12 * S, "n", 3)
    assert pickle.loads(pickle.dumps(trace)).last_s == trace.last_s == 12.0


@given(st.lists(st.tuples(st.sampled_from(["d1", "d2"]), st.sampled_from(["a", "b"]), st.booleans()), max_size=30))
def test_outages_of_one_dpu_and_cause_never_overlap(turns: list[tuple[str, str, bool]]) -> None:
    trace = Trace()
    for t, (dpu, cause, begins) in enumerate(turns):
        (trace.outage_begin if begins else trace.outage_end)(t * S, dpu, cause)
    end_s = float(len(turns))

    for dpu in ("d1", "d2"):
        for cause in ("a", "b"):
            rows = [r for r in trace.outages(end_s) if r.dpu == dpu and r.label == cause]
            assert all(a.end_s <= b.start_s for a, b in pairwise(rows))
            assert all(r.start_s < r.end_s <= end_s for r in rows)


def test_recorded_objects_hold_no_value_of_any_secret() -> None:
    trace = Trace(objects=True)
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "planted-1", "kept": "yes"}
    trace.object(0, "ADDED", "", Secret(metadata=ObjectMeta(name="s", annotations=applied),
                                        data={"a": "planted-2"}, string_data={"b": "planted-3"}))
    line = next(trace.object_lines())

    assert b"planted" not in line
    assert json.loads(line)["object"]["metadata"]["annotations"] == {"kept": "yes"}
    assert list(json.loads(line)["object"]["data"]) == ["a"]
