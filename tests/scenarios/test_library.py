"""The library: every story runs, says what it covers, and its expectations hold; together they use all there is."""

from __future__ import annotations

import pytest

from controllers.warts import POLICIES
from scenarios.base import ACTIONS
from scenarios.known_issues_page import story
from tests.scenarios.library_runs import NAMES, path, play, run, scenario
from twin.model.faults import FAULTS, LASTING, kind_name


@pytest.mark.parametrize("name", NAMES)
def test_every_expectation_of_a_library_scenario_holds(name: str) -> None:
    missed = [f"{e.expr}: {e.value}" for e in run(name).expectations if not e.holds]

    assert not missed, run(name).pending
    assert run(name).expectations


@pytest.mark.parametrize("name", NAMES)
def test_a_library_scenario_has_the_same_digest_twice(name: str) -> None:
    again, end_s = play(name)

    assert (again.world.trace.digest, end_s) == (run(name).trace.digest, run(name).virtual_s)


@pytest.mark.parametrize("name", NAMES)
def test_a_library_scenario_is_headed_by_what_it_covers_and_named_as_its_file(name: str) -> None:
    head = story(name)

    assert scenario(name).name == name
    assert all(text.endswith(".") for text in (head.covers, head.scenario, head.expect))
    assert max(len(line) for line in path(name).read_text(encoding="utf-8").splitlines()) <= 120


def test_library_scenarios_are_small_enough_to_be_read() -> None:
    assert all(len(scenario(n).fleet.cards) <= 6 for n in NAMES)


def test_the_library_uses_every_kind_of_fault() -> None:
    used = {s.action.kind for n in NAMES for s in scenario(n).timeline if s.what == "fault"}

    assert sorted(kind_name(f) for f in FAULTS) == sorted(used)


def test_the_library_lets_every_lasting_fault_heal() -> None:
    healed = {f.kind for n in NAMES for f in run(n).trace.faults if not f.began}

    assert sorted(LASTING) == sorted(healed)


def test_the_library_uses_every_action_of_a_timeline() -> None:
    assert {s.what for n in NAMES for s in scenario(n).timeline} == set(ACTIONS)


def test_the_library_uses_every_policy() -> None:
    assert {p for n in NAMES for p in scenario(n).policies} == set(POLICIES)
