"""What a watch promises of its predicate and its mapping holds for the objects of a run: resyncs build on it."""

from __future__ import annotations

from collections import Counter

import pytest
from stories import story

from scenarios.run import run
from scenarios.story import Story
from twin.sim.client import Watcher


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rolling-bfb-update", "wart-dpuset-blind-to-dpunodes-fixed"])
def test_watches_keep_their_promises(name: str) -> None:
    seen: dict[str, int] = {"unchanged": 0, "plain": 0}

    def look(playing: Story, _: float) -> None:
        for manager in playing.world.managers.values():
            for cache in manager.caches.values():
                for informer in cache._informers.values():
                    for watcher in informer.watchers:
                        check(watcher, informer.objects)

    def check(watcher: Watcher, objects: dict) -> None:  # type: ignore[type-arg]
        watch, to, when = watcher.watch, watcher.to, watcher.when
        if watch.unchanged is not None and when is not None:
            seen["unchanged"] += len(objects)
            assert {when(o, o) for o in objects.values()} <= {watch.unchanged}
        if watcher.woken is not None and to is not None:
            seen["plain"] += len(objects)
            mapped = {k: tuple(to(watcher.reconciler, o)) for k, o in objects.items()}
            assert watcher.woken.by_object == mapped
            assert watcher.woken.counts == Counter(key for keys in mapped.values() for key in keys)

    run(story(name), progress=look)

    assert all(seen.values())
