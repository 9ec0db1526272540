"""Runs a scenario. Returns values, writes nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from scenarios.base import Scenario
from scenarios.result import Run
from scenarios.story import Story
from twin.sim.trace import Trace
from twin.sim.world import Options


def run(scenario: Scenario, seed: int | None = None, *, replication: int = 0, keep_trace: bool = False,
        keep_objects: bool = False, options: Options = Options(),
        progress: Callable[[Story, float], None] | None = None) -> Run:
    """One run of the scenario with this seed (default: the scenario's own).

    Raises:
        BadInput: the API server refuses what is applied at 0 s.
    """
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # a run makes millions of acyclic objects; the collector would only walk them
    try:
        story = Story(scenario, scenario.seed if seed is None else seed, Trace(keep=keep_trace, objects=keep_objects),
                      options)
        end_s = story.play(progress)
        return story.result(end_s, replication, time.perf_counter() - began)
    finally:
        if collecting:
            gc.freeze()  # else the first thing made from here on has the collector walk all that the run has made
            gc.unfreeze()
            gc.enable()
