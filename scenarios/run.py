"""Runs a scenario. Returns values, writes nothing."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable

from scenarios.base import Scenario
from scenarios.result import Run
from scenarios.story import Story
from twin.sim.trace import Trace
from twin.sim.world import Options, World

_worlds: list[weakref.ref[World]] = []
"""That of the last run in this process."""


def run(scenario: Scenario, seed: int | None = None, *, replication: int = 0, keep_trace: bool = False,
        keep_objects: bool = False, options: Options = Options(),
        progress: Callable[[Story, float], None] | None = None) -> Run:
    """One run of the scenario with this seed (default: the scenario's own).

    Raises:
        BadInput: the API server refuses what is applied at 0 s.
    """
    began = time.perf_counter()
    collecting = gc.isenabled()
    if any(world() is not None for world in _worlds):
        gc.collect()  # the world of an earlier run is a circle of references: nothing else takes it away
    _worlds.clear()
    gc.disable()  # a run makes millions of acyclic objects; the collector would only walk them
    try:
        story = Story(scenario, scenario.seed if seed is None else seed, Trace(keep=keep_trace, objects=keep_objects),
                      options)
        _worlds.append(weakref.ref(story.world))
        end_s = story.play(progress)
        return story.result(end_s, replication, time.perf_counter() - began)
    finally:
        if collecting:
            # Else the first thing that is made from here on has the collector walk all that the run has made.
            gc.freeze()
            gc.unfreeze()
            gc.enable()
