"""Expectations: what expressions may name is what a run gives them."""

from __future__ import annotations

import pytest

from scenarios.expect import FUNCTIONS, RECORDS, VALUES, facts, judge, unknown
from tests.scenarios.library_runs import NAMES, run, scenario


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
