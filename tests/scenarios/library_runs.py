"""Library scenarios, each loaded and run once per test process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from scenarios.base import Scenario
from scenarios.known_issues_page import LIBRARY
from scenarios.load import load_scenario
from scenarios.result import Run
from scenarios.story import Story
from twin.sim.trace import Trace
from twin.sim.world import Options

NAMES = [p.stem for p in sorted(LIBRARY.glob("*.yaml"))]


def path(name: str) -> Path:
    return LIBRARY / f"{name}.yaml"


@cache
def scenario(name: str) -> Scenario:
    return load_scenario(path(name))


def play(name: str) -> tuple[Story, float]:
    """A story played to its end."""
    story = Story(scenario(name), scenario(name).seed, Trace(), Options())
    return story, story.play()


@cache
def run(name: str) -> Run:
    story, end_s = play(name)
    return story.result(end_s, 0, 0.0)
