"""Expectations: what expressions may name is what a run gives them."""

from __future__ import annotations

import logging

import pytest

from scenarios.expect import FUNCTIONS, RECORDS, VALUES, facts, judge, unknown
from scenarios.result import Expectation, Run
from tests.scenarios.library_runs import NAMES, run, scenario
from twin.sim.trace import NS, Trace


def test_every_value_that_a_run_gives_may_be_named_and_no_other() -> None:
    assert set(facts(run("first-install"))) == {*RECORDS, *VALUES}


@pytest.mark.parametrize("name", NAMES)
def test_no_story_names_what_there_is_not(name: str) -> None:
    assert [u for e in scenario(name).expect if (u := unknown(e))] == []


@pytest.mark.parametrize("expression", [
    "dpus.exists_one(d, d.name == 'x') && [1, 2].map(n, n + 1).filter(m, m > 2).size() == 1",
    "type(dpus) == list && int('3') == 3 && 'abc'.startsWith('a') && has(unavailable.max)",
    "dpus.all(d, nodes.exists(n, n.name == d.host))",
    " && ".join(f"{name}(completion_s) >= 0.0" for name in ("p50", "max_of")),
])
def test_what_cel_itself_has_and_what_macros_bind_is_known(expression: str) -> None:
    assert unknown(expression) == ""


@pytest.mark.parametrize(("expression", "told"), [
    ("dpu.all(d, d.ready)", "unknown value dpu, did you mean dpus?"),
    ("dpus.all(d, e.ready)", "unknown value e"),
    ("sum_of(completion_s) > 1.0", "unknown function sum_of"),
])
def test_what_there_is_not_is_told_with_the_nearest(expression: str, told: str) -> None:
    assert unknown(expression).startswith(told)


def test_every_function_can_be_called() -> None:
    assert all(unknown(f"{name}(dpus)") == "" for name in FUNCTIONS)


def test_ctrl_c_in_the_middle_of_an_expression_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setitem(FUNCTIONS, "p95", pressed)
    with pytest.raises(KeyboardInterrupt):
        judge(["p95(completion_s) >= 0.0 || true"], run("first-install"))


@pytest.mark.parametrize(("expression", "value"), [
    ("duration('5400s')", "1h 30m"),
    ("timestamp('2025-01-01T00:00:00Z')", "2025-01-01T00:00:00Z"),
    ("[1, 2.5, 'a', null, true]", '[1, 2.5, "a", null, true]'),
    ("{'b': {'d': duration('1s'), 'c': 1}, 'a': [{2: 'z', 1: 'y'}]}",
     '{"a": [{"1": "y", "2": "z"}], "b": {"c": 1, "d": "1s"}}'),
    ("null", "null"), ("1.0 / 0.0", "inf"), ("converged", True), ("'a text'", "a text"), ("reboots.host", 2),
])
def test_a_value_is_told_as_json_has_it_with_keys_in_order(expression: str, value: object) -> None:
    assert judge([expression], run("first-install"))[0].value == value


def test_an_expression_that_fails_is_told_in_its_value_only(
        capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as on the command line, where pytest does not catch logs
    of_function, of_regex, of_key = judge(["p95(5) < 1.0", "'x'.matches('[')", "reboots.hosts == 1"],
                                          run("first-install"))

    assert "TypeError: 'int' object is not iterable" in of_function.value
    assert of_key.value == "cannot be evaluated: no such key: hosts"
    assert "\n" in of_regex.value
    assert "\n" not in of_regex.row[1]
    assert capfd.readouterr() == ("", "")


def test_a_dpu_that_never_got_ready_is_in_every_quantile_of_completion() -> None:
    expressions = ["count(completion_s)", "p50(completion_s)", "p95(completion_s)", "max_of(completion_s)",
                   "p95(completion_s) < 30.0 * minute", "completion_s"]
    judged = judge(expressions, stuck())

    assert [e.value for e in judged] == [2, 10.0, "inf", "inf", False, '[10.0, "inf"]']
    assert "Infinity" not in "".join(e.model_dump_json() for e in judged)


def stuck() -> Run:
    """Two DPUs asked at 0 s: one Ready after 10 s, one in Error for good."""
    trace = Trace()
    trace.asked(0, "install")
    for dpu, phase in (("d1", "Ready"), ("d2", "Error")):
        trace.phase(0, dpu, "Initializing")
        trace.phase(10 * NS, dpu, phase)
    return Run(scenario="s", seed=1, trace=trace, virtual_s=1000.0)


@pytest.mark.parametrize(("expr", "value", "row"), [
    ("a &&\n  b\n", True, ("a && b", "true")), ("a", False, ("a", "false")), ("a", None, ("a", "")),
    ("a", "x\n  y", ("a", "x y")), ("a", "True", ("a", "True")), ("a", 1.5, ("a", "1.5"))])
def test_an_expectation_is_one_line_of_a_table(expr: str, value: object, row: tuple[str, str]) -> None:
    assert Expectation(expr=expr, holds=True, value=value).row == row
