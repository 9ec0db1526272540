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

WORTHWHILE = 100_000
"""Kernel events of earlier runs whose worlds are worth a collection: about 600 DPUs' first install."""
_worlds: list[weakref.ref[World]] = []
"""Those of earlier runs in this process, each a circle of references that only the collector takes away."""


def run(scenario: Scenario, seed: int | None = None, *, replication: int = 0, keep_trace: bool = False,
        keep_objects: bool = False, options: Options = Options(),
        progress: Callable[[Story, float], None] | None = None) -> Run:
    """One run of the scenario with this seed (default: the scenario's own).

    Raises:
        BadInput: the API server refuses what is applied at 0 s.
    """
    began = time.perf_counter()
    collecting = gc.isenabled()
    if sum(map(_executed, _worlds)) > WORTHWHILE:
        gc.collect()
    _worlds[:] = [world for world in _worlds if world() is not None]
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


def _executed(ref: weakref.ref[World]) -> int:
    """Kernel events of this world; 0 if it has gone."""
    world = ref()
    return 0 if world is None else world.env.executed
