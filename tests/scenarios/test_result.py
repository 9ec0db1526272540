"""The summary of runs, and the tables."""

from __future__ import annotations

import hashlib
import json

import pytest

from scenarios.result import TABLES, Expectation, ReconcileRow, Run, Summary, summarise
from twin.sim.trace import NS, Trace

KEYS = ["scenario", "version", "seed", "replications", "policies", "digest", "virtual_s", "settled_s", "wall_s",
        "events", "converged", "pending", "completion_s", "dpus", "phase_s", "unavailable", "reboots", "binding",
        "worst", "reconciles", "expectations", "warnings"]
COLUMNS = {
    "phases": "replication, rack, host, dpu, cluster, phase, start_s, end_s, outcome, attempt",
    "outages": "replication, rack, host, dpu, start_s, end_s, cause",
    "waits": "replication, dpu, start_s, end_s, constraint",
    "writes": "replication, at_s, controller, verb, kind, namespace, name, resource_version, outcome",
    "reconciles": "replication, controller, count, busy_s, queue_wait_s_p50, queue_wait_s_p95, errors",
}


def made(ready_s: dict[str, float | None], *, replication: int = 0, holds: bool = True, waits: float = 0.0) -> Run:
    """DPUs asked at 0 s; each Ready at its time, or in Pending for ever."""
    trace = Trace(keep=True)
    trace.asked(0, "install")
    for dpu, at in ready_s.items():
        trace.place(dpu, "r1", f"host-{dpu}", "c1")
        trace.phase(0, dpu, "Initializing")
        trace.phase(1 * NS, dpu, "Pending")
        if waits:
            trace.wait_begin(1 * NS, dpu, "worker dpu")
            trace.wait_end(round((1 + waits) * NS), dpu, "worker dpu")
        if at is not None:
            trace.phase(round(at * NS), dpu, "Ready")
            trace.device(round(at * NS), "host-reboot", f"host-{dpu}")
    return Run(scenario="s", seed=3, trace=trace, replication=replication, virtual_s=1000.0, wall_s=0.5, events=10,
               converged=None not in ready_s.values(),
               pending=[f"{d} is Pending" for d, at in ready_s.items() if at is None],
               reconciles=[ReconcileRow("dpu", 7, 1.0, 0.1, 0.2, 0)],
               expectations=[Expectation(expr="x < 1", holds=holds, value=replication)],
               phase_basis={"Pending": "expert"})


def test_a_summary_has_the_keys_scripts_rely_on() -> None:
    assert list(summarise([made({"d1": 9})]).model_dump()) == KEYS
    assert list(Summary.model_json_schema()["properties"]) == KEYS


def test_tables_have_the_columns_of_the_contract_and_rows_that_fit() -> None:
    run = made({"d1": 9.0}, waits=2)
    run.trace.outage_begin(0, "d1", "install")
    run.trace.write(0, "dpu", "update", "", "DPU", "ns", "d1", "1", "")

    for name, columns in COLUMNS.items():
        table = TABLES[name]
        rows = list(table.rows(run))
        assert ", ".join(table.columns) == columns
        assert rows
        assert all(isinstance(v, t) for row in rows for v, t in zip(row, table.columns.values(), strict=True))


def test_quantiles_of_one_run_are_over_its_dpus_and_have_no_interval() -> None:
    summary = summarise([made({f"d{i:02d}": 10.0 + i for i in range(20)})])
    shown = json.loads(summary.model_dump_json())["completion_s"]

    assert shown == {"p50": {"value": 19.0, "n": 20}, "p90": {"value": 27.0, "n": 20},
                     "p95": {"value": 28.0, "n": 20}, "last": {"value": 29.0, "n": 20}}


def test_quantiles_of_replications_are_medians_with_an_interval() -> None:
    summary = summarise([made({"d1": 10.0 + i, "d2": 50.0 + i}, replication=i) for i in range(9)])
    q = summary.completion_s

    assert (q["p50"].value, q["last"].value, q["last"].n) == (14.0, 54.0, 9)
    assert (q["last"].low, q["last"].high) == (51.0, 57.0)  # ranks 2 and 8 of 9
    assert (q["last_p95"].value, q["last_p95"].high) == (58.0, None)  # 9 runs cannot bound P95 from above


def test_a_dpu_that_never_got_there_makes_the_quantile_null_not_large() -> None:
    summary = summarise([made({"d1": 10.0, "d2": None})])
    shown = json.loads(summary.model_dump_json())["completion_s"]

    assert shown["p50"] == {"value": 10.0, "n": 2}
    assert shown["last"] == {"value": None, "n": 2}


def test_counts_are_those_of_the_replication_that_ends_worst() -> None:
    summary = summarise([made({"d1": 10.0, "d2": 11.0}), made({"d1": 10.0, "d2": None}, replication=1)])

    assert summary.dpus.model_dump() == {"total": 2, "ready": 1, "error": 0, "by_phase": {"Pending": 1, "Ready": 1}}
    assert not summary.converged
    assert summary.pending == ["d2 is Pending"]


def test_shares_of_waiting_are_of_all_time_from_asked_to_ready() -> None:
    summary = summarise([made({"d1": 10.0, "d2": 30.0}, waits=2)])

    assert [b.model_dump() for b in summary.binding] == [{"constraint": "worker dpu", "share": 0.1, "s": 4.0}]


def test_phases_carry_their_basis_and_only_stays_that_are_over() -> None:
    summary = summarise([made({"d1": 10.0, "d2": None})])

    assert summary.phase_s["Pending"].model_dump() == {"n": 1, "p50": 9.0, "p90": 9.0, "max": 9.0, "basis": "expert"}
    assert "Ready" not in summary.phase_s


def test_the_worst_three_are_distinct_and_those_not_ready_come_first() -> None:
    runs = [made({"d1": 10.0, "d2": 40.0, "d3": 20.0, "d4": None}, replication=i) for i in range(2)]
    worst = summarise(runs).worst

    assert [w.object for w in worst] == ["DPU d4", "DPU d2", "DPU d3"]
    assert worst[0].words == "not Ready 16m 40s after it was asked: Pending for 16m 39s"
    assert worst[1].words == "Ready after 40s; longest phase Pending, 39s"
    assert worst[0].s is None


def test_the_longest_phase_of_the_slowest_is_told_without_the_time_before_it_was_asked() -> None:
    trace = Trace()
    for t_s, phase in ((0, "Initializing"), (10, "Ready"), (20, "Deleting")):
        trace.phase(t_s * NS, "d1", phase)
    trace.asked(7000 * NS, "2 hosts in service", ["d1"])
    for t_s, phase in ((7010, ""), (7010, "Initializing"), (7020, "OS Installing"), (7100, "Ready")):
        trace.phase(t_s * NS, "d1", phase)
    told = summarise([Run(scenario="s", seed=1, trace=trace, virtual_s=8000.0)]).worst[0].words

    assert told == "Ready after 1m 40s; longest phase OS Installing, 1m 20s; provisioning number 2"


def test_a_dpu_whose_turn_has_not_come_is_told_from_one_without_an_object() -> None:
    trace = Trace()
    for dpu in ("d1", "d2"):
        trace.phase(0, dpu, "Initializing")
        trace.phase(10 * NS, dpu, "Ready")
    trace.phase(20 * NS, "d2", "Deleting")
    trace.phase(30 * NS, "d2", "")
    trace.asked(40 * NS, "update", ["d1", "d2", "d3"])
    worst = summarise([Run(scenario="s", seed=1, trace=trace, virtual_s=100.0)]).worst
    told = {w.object: w.words.partition(";")[0] for w in worst}

    assert told == {"DPU d1": "asked 1m before the end, still Ready with what it had",
                    "DPU d2": "not Ready 1m after it was asked: no DPU object",
                    "DPU d3": "not Ready 1m after it was asked: no DPU object"}


def test_the_quiet_at_the_end_of_observation_is_not_part_of_settling() -> None:
    both = summarise([made({"d1": 10.0, "d2": 30.0}), made({"d1": 20.0}, replication=1)])
    cut = made({"d1": 2000.0})

    assert (both.settled_s, both.virtual_s) == (30.0, 1000.0)
    assert cut.settled_s == cut.virtual_s  # a write may be recorded ahead of its time
    assert summarise([made({})]).settled_s == 0.0


def test_an_expectation_holds_only_when_it_holds_in_every_replication() -> None:
    summary = summarise([made({"d1": 9}), made({"d1": 9}, replication=1, holds=False)])

    assert [e.model_dump() for e in summary.expectations] == [{"expr": "x < 1", "holds": False, "value": 1}]


def test_the_digest_of_replications_is_the_hash_of_theirs() -> None:
    runs = [made({"d1": 9.0}), made({"d1": 10.0}, replication=1)]
    expected = hashlib.sha256(f"{runs[0].trace.digest}\n{runs[1].trace.digest}\n".encode()).hexdigest()

    assert summarise(runs[:1]).digest == runs[0].trace.digest
    assert summarise(runs).digest == expected


def test_sums_and_counts_over_replications() -> None:
    summary = summarise([made({"d1": 9.0, "d2": 9.0}), made({"d1": 10.0, "d2": 11.0}, replication=1)])

    assert (summary.replications, summary.events, summary.wall_s, summary.reconciles) == (2, 20, 1.0, 14)
    assert summary.reboots.model_dump() == {"host": 2, "dpu": 0}


def test_a_run_of_no_dpus_has_a_summary() -> None:
    summary = summarise([made({})])

    assert summary.completion_s == {}
    assert summary.worst == []
    assert summary.unavailable.max == 0


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        summarise([])
