"""Polls that change nothing are passed over by arithmetic; the run is the same, to the last record, as if they ran.

Every pass, skipped or run, is counted and charged alike, so the counts, the workers' time and how long passes stood in
line are compared too.
"""

from __future__ import annotations

import pytest
from stories import LIBRARY, generated, story

from scenarios.base import Scenario
from scenarios.result import Run
from scenarios.run import run
from twin.sim.world import Options

EVENT_BY_EVENT = Options(collapse=False)


def assert_exact(scenario: Scenario) -> tuple[Run, Run]:
    collapsed, exact = run(scenario), run(scenario, options=EVENT_BY_EVENT)

    assert collapsed.trace.digest == exact.trace.digest
    assert collapsed.reconciles == exact.reconciles
    return collapsed, exact


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_collapsed_polling_is_exact_in_every_scenario_of_the_library(name: str) -> None:
    assert_exact(story(name))


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "dpus_per_host", "update"), [(16, 1, True), (64, 1, False)])
def test_collapsed_polling_is_exact_on_generated_fleets(hosts: int, dpus_per_host: int, update: bool) -> None:
    collapsed, exact = assert_exact(generated(hosts, dpus_per_host, update=update))

    assert collapsed.converged
    assert collapsed.figures["reconciles_skipped"] > 10_000
    assert exact.figures["reconciles_skipped"] == 0
