"""Faults that overlap: what one sets is held as long as any that sets it lasts, and the latest begun rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from stories import written

from scenarios.base import Scenario
from scenarios.run import run
from scenarios.story import Story
from twin.actors.actor import Held
from twin.model.core import Node
from twin.model.faults import LASTING, Fault, kind_name
from twin.model.meta import Key
from twin.sim.clock import ns
from twin.sim.faults import EFFECTS, Lasting, begin
from twin.sim.neighbours import bring_up
from twin.sim.trace import Trace
from twin.sim.world import Options, World

HOST, DPU, CLUSTER = "worker1", "worker1-0000-2b-00", Key("dpf-operator-system", "dpu-cluster")
Read = Callable[[World], Any]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return written(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def world(scenario: Scenario) -> World:
    made = Story(scenario, 1, Trace(), Options()).world
    made.start(bring_up)
    made.create_dpu_cluster(CLUSTER)
    return made


def fault(**fields: Any) -> Any:
    return TypeAdapter(Fault).validate_python(fields)


def held(actor: str) -> Read:
    return lambda w: isinstance(w.actors[actor][1].reconciler, Held)


def server(field: str) -> Read:
    return lambda w: getattr(w.volume.servers["any"], field)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Read, tuple[Any, ...]]] = {
    "reboot-fails": ({"host": HOST}, {"host": "*", "attempts": [1]},
                     lambda w: [a.hit for a in w.dms._failing.get(("reboot", HOST), ())],
                     ([], [None], [None, [1]], [[1]])),
    "bridge-missing": ({"host": HOST}, {"host": "*"}, lambda w: w.hosts.hosts[HOST].br_dpu, (True, False, False)),
    "dms-unreachable": ({"host": HOST}, {"host": HOST, "how": "refused"},
                        lambda w: (w.dms.servers[HOST].black_hole, w.dms.servers[HOST].refused),
                        ((False, False), (True, False), (False, True))),
    "dms-slow": ({"host": HOST, "factor": 2}, {"host": HOST, "factor": 3},
                 lambda w: w.dms.servers[HOST].factor, (1, 2, 3)),
    "dms-error": ({"host": HOST, "message": "a"}, {"host": HOST, "message": "b"},
                  lambda w: [e[1] for e in w.dms.servers[HOST].errors], ([], ["a"], ["a", "b"], ["b"])),
    "install-fails": ({"dpu": DPU, "message": "a"}, {"dpu": DPU, "message": "b"},
                      lambda w: [a.message for a in w.dms._failing.get(("install", DPU), ())],
                      ([], ["a"], ["a", "b"], ["b"])),
    "network-script-fails": ({"dpu": DPU, "attempts": [1]}, {"dpu": DPU},
                             lambda w: [a.hit for a in w.dms._failing.get(("network", DPU), ())],
                             ([], [[1]], [[1], None], [None])),
    "join-fails": ({"dpu": DPU}, {"dpu": "*"}, lambda w: w.hosts.dpus[DPU].may_join, (True, False, False)),
    "dpu-link-down": ({"dpu": DPU}, {"dpu": "*"}, lambda w: w.hosts.dpus[DPU].p0_up, (True, False, False)),
    "part-unknown": ({"dpu": DPU, "opn": "a"}, {"dpu": DPU, "opn": "b"},
                     lambda w: w.hosts.dpus[DPU].board.part_number, ("900-9D3B6-00CV-AA0", "a", "b")),
    "image-server-down": ({"server": "any"}, {"server": "*"}, server("down"), (False, True, True)),
    "image-server-slow": ({"server": "any", "factor": 2}, {"server": "any", "factor": 4},
                          lambda w: w.volume.servers["any"].link.nominal / w.volume.servers["any"].link.capacity,
                          (1, 2, 4)),
    "image-server-status": ({"server": "any"}, {"server": "any", "status": 503}, server("status"), (0, 404, 503)),
    "image-server-wrong-content": ({"server": "any"}, {"server": "any", "content": "x.bfb"}, server("instead"),
                                   ("", "garbage", "x.bfb")),
    "nfs-down": ({}, {}, lambda w: w.volume.down, (False, True, True)),
    "dpu-api-down": ({}, {"cluster": "*/dpu-cluster"}, lambda w: w.dpu_clusters[CLUSTER].down, (False, True, True)),
    "api-down": ({}, {}, lambda w: w.host_cluster.down, (False, True, True)),
    "api-slow": ({"factor": 2}, {"factor": 3}, lambda w: w.host_cluster.slowness, (1, 2, 3)),
    "api-errors": ({"probability": 0.5}, {"probability": 0.5, "landed": True},
                   lambda w: w.host_cluster.flaky and w.host_cluster.flaky[1], (None, False, True)),
    "webhook-down": ({}, {}, lambda w: bool(w.webhooks and w.webhooks.down), (False, True, True)),
    "watch-broken": ({}, {"controller": "provisioning"},
                     lambda w: w.managers["provisioning"].caches[""].connected, (True, False, False)),
    "watch-duplicate": ({}, {"controller": "dpu"}, lambda w: w.managers["provisioning"].caches[""].twice,
                        (False, True, True)),
    "pdb-stuck": ({"name": "x"}, {"name": "x"}, held("disruption"), (False, True, True)),
    "job-fails": ({"name": "a"}, {"name": "b"}, lambda w: [*w.failing_jobs],
                  ([], [("a",)], [("a",), ("b",)], [("b",)])),
    "certificate-late": ({}, {}, held("cert-manager"), (False, True, True)),
}
"""Kind -> two faults, what to read, and what that is: with none, with the first, with both, with the second (as with
both where it rules)."""


def seen(world: World, kind: str, spans: tuple[float, float]) -> list[Any]:
    """What is read before, while the first lasts, while both do, when one is over, and when both are."""
    first, second, read, _ = CASES[kind]
    states = [read(world)]
    begin(world, fault(kind=kind, **first), spans[0])
    states.append(read(world))
    begin(world, fault(kind=kind, **second), spans[1])
    states.append(read(world))
    for span in sorted(spans):
        world.env.run(until=ns(span) + 1)
        states.append(read(world))
    return states


@pytest.mark.parametrize("kind", CASES)
def test_a_short_fault_heals_nothing_that_a_longer_one_has_set(world: World, kind: str) -> None:
    healthy, first, both, *_ = CASES[kind][3]
    assert seen(world, kind, (0.002, 0.001)) == [healthy, first, both, first, healthy]


@pytest.mark.parametrize("kind", CASES)
def test_a_later_fault_goes_on_when_the_first_is_over(world: World, kind: str) -> None:
    healthy, first, both, *_ = states = CASES[kind][3]
    assert seen(world, kind, (0.001, 0.002)) == [healthy, first, both, states[-1], healthy]


def test_all_that_set_something_are_tried() -> None:
    assert set(CASES) == {kind_name(kind) for kind, effect in EFFECTS.items() if isinstance(effect, Lasting)}
    assert set(LASTING) - set(CASES) == {"host-power", "rack-power", "host-lost", "two-leaders"}


def test_faults_of_different_kinds_heal_only_themselves(world: World) -> None:
    begin(world, fault(kind="install-fails", dpu="*"), None)
    begin(world, fault(kind="image-server-wrong-content", server="*"), None)
    begin(world, fault(kind="network-script-fails", dpu="*", attempts=[1]), 0.001)
    begin(world, fault(kind="image-server-status", server="*"), 0.001)
    world.env.run(until=ns(0.002))
    assert world.dms._failing["install", DPU]
    assert world.volume.servers["any"].instead == "garbage"


def test_budgets_are_stuck_one_by_one(world: World) -> None:
    for name, span in (("a", 0.001), ("b", None)):
        begin(world, fault(kind="pdb-stuck", name=name), span)
    world.env.run(until=ns(0.002))
    standing_in = world.actors["disruption"][1].reconciler
    assert isinstance(standing_in, Held)
    assert list(standing_in.missed) == [Key("default", "b")]


def test_every_fault_counts_attempts_from_its_own_beginning(world: World) -> None:
    """The second attempt of the first fault is the first of the second."""
    struck = []
    begin(world, fault(kind="install-fails", dpu=DPU, attempts=[2], message="a"), None)
    struck.append(world.dms._struck("install", DPU))
    begin(world, fault(kind="install-fails", dpu=DPU, attempts=[2], message="b"), None)
    struck += [world.dms._struck("install", DPU) for _ in range(3)]
    assert [hit and hit.message for hit in struck] == [None, "a", "b", None]


def test_an_error_of_the_dms_leaves_errors_of_other_commands(world: World) -> None:
    for message, command in (("a", "flint"), ("b", "mst")):
        begin(world, fault(kind="dms-error", host=HOST, message=message, command=command), None)
    assert world.dms.servers[HOST].errors == (("INTERNAL", "a", "flint"), ("INTERNAL", "b", "mst"))


def test_a_removed_dpu_cluster_stays_away_when_the_fault_is_over(world: World) -> None:
    removed = world.dpu_clusters[CLUSTER]
    begin(world, fault(kind="dpu-api-down"), 0.001)
    world.remove_dpu_cluster(CLUSTER)
    world.env.run(until=ns(0.002))
    assert removed.down


def test_a_dpu_cluster_made_while_the_fault_lasts_is_down_until_it_ends(world: World) -> None:
    begin(world, fault(kind="dpu-api-down", cluster="*/later"), 0.001)
    for name in ("later", "other"):
        world.create_dpu_cluster(Key("ns", name))
    assert [world.dpu_clusters[Key("ns", name)].down for name in ("later", "other")] == [True, False]
    world.env.run(until=ns(0.002))
    assert not world.dpu_clusters[Key("ns", "later")].down


def test_a_node_that_two_keep_cordoned_is_free_when_both_are_gone(tmp_path: Path) -> None:
    story = Story(written(tmp_path, timeline=[
        {"at": 0, "cordon": {"node": "*"}, "for": "1h"}, {"at": 1, "cordon": {"node": HOST}, "for": 1}]),
        1, Trace(), Options())
    story.world.start(bring_up)
    story.world.env.run(until=ns(60.0))
    for step in story.scenario.timeline:
        story._step(step)
    cordoned = []
    for second in (60.5, 63.0, 3661.0):
        story.world.env.run(until=ns(second))
        node = story.world.host_cluster.find(Node, Key("", HOST))
        cordoned.append(node is not None and node.spec.unschedulable)
    assert cordoned == [True, True, False]


@pytest.mark.parametrize(("long", "short", "delayed"), [
    ({"fault": {"kind": "api-down"}, "at": "5m", "for": "10m"}, {"fault": {"kind": "api-down"}, "at": "5m", "for": 1},
     True),
    ({"fault": {"kind": "install-fails", "dpu": "*"}, "at": 1},
     {"fault": {"kind": "network-script-fails", "dpu": "*", "attempts": [1]}, "at": 1, "for": 1}, False),
])
def test_a_run_ends_as_if_the_shorter_fault_had_not_been(tmp_path: Path, long: dict[str, Any], short: dict[str, Any],
                                                         delayed: bool) -> None:
    alone, both = (run(written(tmp_path, timeline=steps)) for steps in ([long], [long, short]))
    assert alone.converged is both.converged is delayed
    assert alone.virtual_s == both.virtual_s
