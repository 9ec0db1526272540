"""The controllers' process crashes before and after each effect of an install, an update and a deletion, one run each.

An effect is a write to an API server, a call that changes a host or the volume, a download. Back again, the process
finds what the effects so far have left, and nothing else. All runs must end with the same objects, up to what is drawn
or counted anew: uids, versions, times, tokens. What an upstream wart adds is named by it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from stories import ROOT, changed, written

from controllers.warts import WARTS
from scenarios.base import Scenario
from scenarios.result import Run
from scenarios.story import Story
from twin.backends.base import Crash
from twin.model.core import Event
from twin.model.kinds import to_manifest
from twin.sim.trace import Trace
from twin.sim.world import Options

CHANGE_S = 5400.0
STORIES: dict[str, list[dict[str, Any]]] = {
    "install": [],
    "update": [
        {"at": CHANGE_S, "apply": str(ROOT / "scenarios" / "manifests" / "next-bfb")},
        changed(CHANGE_S, "DPUSet", "fleet", {"spec": {"dpuTemplate": {"spec": {"bfb": {"name": "bf-bundle-2"}}}}}),
    ],
    "deletion": [{"at": CHANGE_S, "delete": {"kind": "DPUSet", "namespace": "dpf-operator-system", "name": "fleet"}}],
}
WARTS_MET = {"tasks-lost-on-restart": "a crash while the OS is installed begins a second installation beside the first"}
"""Warts of controllers.warts that a crash may show here."""

DRAWN = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "deletionTimestamp")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|Time$|Timestamp$")


@cache
def scenario(name: str) -> Scenario:
    with TemporaryDirectory() as folder:
        return written(Path(folder), timeline=STORIES[name])


def play(name: str, hook: Callable[[Story, str, str, bool], None] | None = None) -> tuple[Run, Story]:
    story = Story(scenario(name), 1, Trace(), Options())
    if hook is not None:
        story.world.effect_hook = lambda process, what, over: hook(story, process, what, over)
    end_s = story.play()
    return story.result(end_s, 0, 0.0), story


@cache
def effects(name: str) -> tuple[tuple[str, str], ...]:
    """(process, effect) of the part of the story that is its own: all of an install, what a change brings."""
    found: list[tuple[str, str]] = []

    def note(story: Story, process: str, what: str, over: bool) -> None:
        if not over and (name == "install" or story.world.env.now_s >= CHANGE_S):
            found.append((process, what))

    play(name, note)
    return tuple(found)


def crashed(name: str, point: int, over: bool) -> tuple[Run, Story]:
    count, struck = -1, False

    def strike(story: Story, process: str, what: str, is_over: bool) -> None:
        nonlocal count, struck
        if struck or (name != "install" and story.world.env.now_s < CHANGE_S):
            return
        count += not is_over
        if count == point and is_over == over:
            struck = True
            raise Crash(what)

    run, story = play(name, strike)
    assert struck or over, "the effect was not met again"  # an effect that is refused is never over
    return run, story


def plain(value: Any) -> Any:
    """A manifest without what is drawn or counted anew."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in DRAWN and not TIME.search(k)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return "TIME" if isinstance(value, str) and TIME.search(value) else value


def final(run: Run) -> dict[str, Any]:
    """Every object of every cluster; Kubernetes Events tell of the way, and bootstrap tokens are random by nature."""
    found = {}
    for cluster, objects in run.objects.items():
        for o in objects:
            if isinstance(o, Event) or o.metadata.name.startswith("bootstrap-token-"):
                continue
            name = o.metadata.generate_name if o.metadata.generate_name else o.metadata.name
            found[f"{cluster} {o.KIND}/{o.metadata.namespace}/{name}"] = plain(to_manifest(o))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("over", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", STORIES)
def test_a_crash_at_any_effect_leads_to_the_same_objects(name: str, over: bool) -> None:
    undisturbed, _ = play(name)
    expected, installs = final(undisturbed), undisturbed.trace.device_changes["installing"]
    assert undisturbed.converged
    warts: Counter[str] = Counter()

    for point, (process, what) in enumerate(effects(name)):
        run, _ = crashed(name, point, over)
        where = f"{process} {'after' if over else 'before'} effect {point}, {what}"
        assert run.converged, f"{where}: {run.pending}"
        assert final(run) == expected, where
        assert list(run.cards) == list(undisturbed.cards), where
        if run.trace.device_changes["installing"] > installs:
            warts["tasks-lost-on-restart"] += 1

    assert set(warts) == (set(WARTS_MET) if name != "deletion" else set())


def test_the_warts_that_crashes_may_show_are_in_the_table() -> None:
    assert set(WARTS_MET) <= {w.id for w in WARTS}


def test_there_are_as_many_crash_points_as_a_life_has_effects() -> None:
    kinds = {name: {what for _, what in effects(name)} for name in STORIES}

    assert {"create", "status", "patch", "download", "OS.Install", "OS.Activate", "dms network"} <= kinds["install"]
    assert {"delete", "OS.Install", "dms network-delete"} <= kinds["update"]
    assert {"update", "dms network-delete", "volume remove"} <= kinds["deletion"]
    assert sum(len(effects(name)) for name in STORIES) > 120
