"""ESR: when spec and faults stop changing, state reaches what was asked and stays; else `pending` says why in words."""

from __future__ import annotations

import pytest

from scenarios.known_issues_page import story as header
from tests.scenarios.library_runs import NAMES, play, scenario
from twin.sim.clock import ns

LONGER_S = 1800.0


@pytest.mark.parametrize("name", NAMES)
def test_what_was_asked_is_reached_and_stays_or_pending_says_why(name: str) -> None:
    story, end_s = play(name)
    words = story.pending()

    if words:
        assert "pending" in header(name).expect, words
        assert all(len(w.split()) > 3 for w in words)
        return
    assert end_s >= story.last_step_s
    records = story.world.trace.records
    story.world.env.run(until=ns(end_s + LONGER_S))
    assert story.world.trace.records == records or scenario(name).horizon_s <= end_s
    assert story.pending() == []
