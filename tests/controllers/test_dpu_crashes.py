"""The controller process ends before or after any of its effects; what it finds when it is back leads on.

Every effect of one life (install to Ready, then deletion) is one crash point, met once before and once after it.
"""

from __future__ import annotations

from functools import cache

import pytest
from dpu_bench import Bench

from twin.backends.base import Crash
from twin.model.core import Node
from twin.model.meta import Key
from twin.model.provisioning import Dpu, DpuNode, NodeEffect, Phase, Taint

TAINT = Taint(key="dpu", effect="NoSchedule")


def life(crash_at: int = -1, before: bool = True, policies: tuple[str, ...] = ()) -> tuple[Bench, int]:
    """A DPU from its creation to Ready; the process crashes at this effect. Returns how many effects there were."""
    bench = Bench(policies=policies)
    count = -1

    def hook(what: str, over: bool) -> None:
        nonlocal count
        count += not over
        if count == crash_at and over != before:
            bench.effect_hook = None
            raise Crash(what)

    bench.effect_hook = hook
    bench.dpu(node_effect=NodeEffect(taint=TAINT))
    bench.until(Phase.READY, 3 * 3600.0)
    bench.run(20)
    return bench, count + 1


@cache
def effects() -> int:
    return life()[1]


def outcome(bench: Bench) -> object:
    status = bench.status()
    return (status.phase, bench.conditions(), status.addresses, bench.get(Node, bench.host, "").spec.taints,
            bench.get(Dpu, bench.name).spec, bench.get(DpuNode, bench.host).metadata.finalizers)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_effect_leads_to_the_same_ready_dpu(before: bool) -> None:
    expected = outcome(life()[0])
    for point in range(effects()):
        assert outcome(life(point, before)[0]) == expected, f"crash point {point}"


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_under_the_policy_no_crash_installs_twice(before: bool) -> None:
    policies = ("no-duplicate-os-install",)
    for point in range(life(policies=policies)[1]):
        bench, _ = life(point, before, policies)
        assert bench.card.counts["os-install"] == 1, f"crash point {point}"


@pytest.mark.slow
def test_without_the_policy_some_crashes_install_twice() -> None:
    assert max(life(point)[0].card.counts["os-install"] for point in range(effects())) > 1


def gone(crash_at: int = -1, before: bool = True) -> tuple[Bench, int]:
    bench = Bench()
    count = -1

    def hook(what: str, over: bool) -> None:
        nonlocal count
        count += not over
        if count == crash_at and over != before:
            bench.effect_hook = None
            raise Crash(what)

    bench.at(Phase.READY)
    bench.node()
    bench.run(6)
    bench.effect_hook = hook
    bench.delete(Dpu, bench.name)
    bench.run(30)
    return bench, count + 1


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_effect_of_a_deletion_leaves_nothing_behind(before: bool) -> None:
    for point in range(gone()[1]):
        bench, _ = gone(point, before)
        assert bench.gone(Dpu, bench.name), f"crash point {point}"
        assert bench.server.find(Node, Key("", bench.name)) is None
        assert bench.get(DpuNode, bench.host).metadata.finalizers == ()
