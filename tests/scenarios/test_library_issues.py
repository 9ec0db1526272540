"""Known issues: the table, the scenarios, the rules of `check`, the warts and the page agree with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from controllers.warts import POLICIES, WARTS
from scenarios.check import RULES, check_scenario
from scenarios.known_issues import SHOWS
from scenarios.known_issues_page import page, policies_of
from scenarios.known_issues_table import ISSUES, KnownIssue
from scenarios.run import run as play_scenario
from tests.scenarios.library_runs import NAMES, run, scenario
from twin.model.meta import condition_status
from twin.model.provisioning import DpuNode

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


NEAR: Final = {
    "doca-platform 26": "deployment-install",  # its DPUSet is changed by the DPUDeployment
    "foreign-taint-removed": "effect-taint",  # the taint is DPF's own
    "dpunode-finalizer-not-counted": "two-dpus-on-a-host",  # no DPU goes
    "deletes-again": "dpu-deletion",  # a person deletes, once
    "dpuset-blind-to-dpunodes": "scale-up",  # workers come with their labels
    "dpunode-checked-once": "fault-dms-refused",  # for seconds
}
"""Stories that come close to an issue and do not meet it."""


@pytest.mark.parametrize("ref", NEAR)
def test_a_run_that_comes_close_to_an_issue_does_not_meet_it(ref: str) -> None:
    assert not meets(next(i for i in ISSUES if i.ref == ref), NEAR[ref])


@pytest.mark.parametrize(("name", "seen"), [
    ("wart-dpunode-checked-once", True), ("wart-dpunode-checked-once-fixed", False)])
def test_a_lost_dms_that_a_resync_noticed_at_last_was_unseen_until_then(name: str, seen: bool) -> None:
    longer = play_scenario(scenario(name).with_(horizon_s=3 * 3600.0))
    node = next(o for o in longer.objects[""] if isinstance(o, DpuNode) and o.metadata.name == "worker1")

    assert node.status is not None
    assert condition_status(node.status.conditions, "Ready") == "False"
    assert any(k.startswith("dpunode-checked-once: ") for k in longer.known_issues) == seen


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
