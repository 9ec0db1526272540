"""Known issues: the table, the scenarios, the rules of `check`, the warts and the page agree with each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from controllers.warts import POLICIES, WARTS
from scenarios.check import RULES, check_scenario
from scenarios.known_issues import SHOWS
from scenarios.known_issues_page import page, policies_of
from scenarios.known_issues_table import ISSUES, KnownIssue
from tests.scenarios.library_runs import NAMES, run, scenario

PAGE = Path(__file__).parents[2] / "docs" / "known-issues.md"


def refs(issue: KnownIssue) -> str:
    return issue.ref


def meets(issue: KnownIssue, name: str) -> bool:
    return any(said.startswith(f"{issue.ref}: ") for said in run(name).known_issues)


def test_the_page_is_what_the_table_says() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "python -m scenarios.known_issues_page > docs/known-issues.md"


@pytest.mark.parametrize("issue", ISSUES, ids=refs)
def test_an_issue_names_scenarios_rules_and_warts_that_exist(issue: KnownIssue) -> None:
    assert issue.scenarios
    assert set(issue.scenarios) <= set(NAMES)
    assert set(issue.rules) <= set(RULES)
    assert set(issue.warts) <= {w.id for w in WARTS}


@pytest.mark.parametrize("issue", [i for i in ISSUES if i.ref in SHOWS], ids=refs)
def test_a_run_that_meets_an_issue_says_so(issue: KnownIssue) -> None:
    assert meets(issue, issue.scenarios[0])


@pytest.mark.parametrize("issue", [i for i in ISSUES if i.ref in SHOWS], ids=refs)
def test_a_run_with_the_policy_does_not_meet_the_issue(issue: KnownIssue) -> None:
    assert not [n for n in issue.scenarios if n.endswith("-fixed") and meets(issue, n)]


@pytest.mark.parametrize("issue", [i for i in ISSUES if i.rules], ids=refs)
def test_check_flags_an_issue_beforehand(issue: KnownIssue) -> None:
    found = {f.rule for n in issue.scenarios for f in check_scenario(scenario(n))}

    assert found & set(issue.rules)


def test_every_scenario_of_an_issue_or_a_wart_is_in_the_table() -> None:
    listed = {n for i in ISSUES for n in i.scenarios}

    assert [n for n in NAMES if n.startswith(("issue-", "wart-")) and n not in listed] == []


def test_every_policy_belongs_to_an_issue_of_the_table() -> None:
    assert {p for i in ISSUES for p in policies_of(i)} == set(POLICIES)


def test_every_detection_belongs_to_an_issue_of_the_table() -> None:
    assert set(SHOWS) <= {i.ref for i in ISSUES}


def test_a_clean_install_meets_only_what_every_install_meets() -> None:
    assert run("reboot-not-needed").converged
    assert {k.partition(":")[0] for k in run("reboot-not-needed").known_issues} <= {"no-throttle-on-create"}
