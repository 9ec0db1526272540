"""Scheduling, ReplicaSets, and the objects of a fleet's own pods."""

from __future__ import annotations

from typing import Any

import pytest
from neighbours import Town, ready_of

from twin.actors.kubelet import NodeRegistration
from twin.actors.pods import PodLife
from twin.actors.podviews import parse_selector, selects
from twin.actors.scheduler import Scheduler
from twin.actors.workloads import ReplicaSets, budget_object, controller_of, running_pod
from twin.model.core import Node, Pod, PodDisruptionBudget, ReplicaSet
from twin.model.fleet import Budget, Host
from twin.model.fleet import Pod as PodRecord
from twin.model.meta import condition, replace
from twin.model.provisioning import Taint


def town(*hosts: str) -> Town:
    t = Town(*hosts)
    t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))
    t.add(lambda k: Scheduler(k, t.clock, t.durations, t.verbs(k)))
    t.add(lambda k: PodLife(k, t.clock, t.durations, t.machines, t.verbs(k)))
    t.add(lambda k: ReplicaSets(k, t.clock, t.durations))
    t.run(1)
    return t


def place(t: Town, name: str) -> str:
    t.run(1)
    return t.get(Pod, name).spec.node_name


def affinity(**term: Any) -> dict[str, Any]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def test_pods_spread_to_the_node_with_the_fewest() -> None:
    t = town("h1", "h2", "h3")
    for i in range(6):
        t.pod(f"p{i}")

    assert [place(t, f"p{i}") for i in range(6)] == ["h1", "h2", "h3"] * 2


@pytest.mark.parametrize(("spec", "node"), [
    ({"node_selector": {"zone": "b"}}, "h2"),
    ({"affinity": affinity(matchFields=[{"key": "metadata.name", "operator": "In", "values": ["h3"]}])}, "h3"),
    ({"affinity": affinity(matchExpressions=[{"key": "zone", "operator": "NotIn", "values": ["a", "b"]}])}, "h3"),
    ({"affinity": affinity(matchExpressions=[{"key": "zone", "operator": "Exists"},
                                             {"key": "gpus", "operator": "Gt", "values": ["2"]}])}, "h2"),
    ({"affinity": affinity(matchExpressions=[{"key": "zone", "operator": "DoesNotExist"}])}, ""),
    ({"node_selector": {"zone": "nowhere"}}, ""),
])
def test_selectors_and_affinity_choose_the_node(spec: dict[str, Any], node: str) -> None:
    t = Town()
    for name, zone, gpus in (("h1", "a", "2"), ("h2", "b", "10"), ("h3", "c", "0")):
        t.node(name, labels={"zone": zone, "gpus": gpus})
    t.add(lambda k: Scheduler(k, t.clock, t.durations, t.verbs(k)))
    t.pod("p", **spec)

    assert place(t, "p") == node


def test_cordons_and_taints_keep_pods_away_until_they_are_lifted() -> None:
    t = town("h1", "h2")
    for name, change in (("h1", {"unschedulable": True}), ("h2", {"taints": (Taint(key="k", effect="NoSchedule"),)})):
        node = t.get(Node, name)
        t.update(node, spec=replace(node.spec, **change))
    t.pod("p")
    t.pod("tolerant", tolerations=({"key": "k", "operator": "Exists"},))

    assert (place(t, "p"), place(t, "tolerant")) == ("", "h2")
    scheduled = condition(t.get(Pod, "p").status.conditions, "PodScheduled")
    assert scheduled is not None
    assert (scheduled.status, scheduled.reason) == ("False", "Unschedulable")
    t.run(20)
    before = len(t.writes())
    t.run(10_000)
    assert len(t.writes()) == before
    node = t.get(Node, "h1")
    t.update(node, spec=replace(node.spec, unschedulable=False))

    assert place(t, "p") == "h1"


def test_a_pod_bound_to_a_name_waits_for_that_node_to_appear() -> None:
    t = town("h1")
    t.pod("p", affinity=affinity(matchFields=[{"key": "metadata.name", "operator": "In", "values": ["h9"]}]))
    assert place(t, "p") == ""

    t.node("h9")

    assert place(t, "p") == "h9"


def test_nodes_are_filled_in_the_order_in_which_they_came_whenever_the_first_pod_comes() -> None:
    t = Town()
    t.add(lambda k: Scheduler(k, t.clock, t.durations, t.verbs(k)))
    for name in ("h1", "h2", "h3"):
        t.node(name)
    node = t.get(Node, "h1")
    t.update(node, metadata=replace(node.metadata, labels={**node.metadata.labels, "late": "true"}))
    t.pod("p")

    assert place(t, "p") == "h2", "a node that changed what fits on it stands last again"


RECORD = PodRecord("default", "web", {"app": "web"}, grace_s=20)
HOST = Host(name="h1", rack="r1", index=0, ip="10.0.0.21", cards=())


def fleet_pod(t: Town, record: PodRecord) -> Pod:
    owner = controller_of(record)
    stored = t.create(owner) if owner is not None else None
    return t.create(running_pod(record, HOST, stored, t.clock.now()))


def test_a_fleets_pod_runs_from_the_start_without_being_written() -> None:
    t = town("h1", "h2")
    before = len(t.writes())

    fleet_pod(t, RECORD)
    t.run(1000)

    pod = t.get(Pod, "web", "default")
    assert (pod.status.phase, ready_of(pod), pod.spec.node_name) == ("Running", "True", "h1")
    assert pod.spec.termination_grace_period_seconds == 20
    assert len(t.writes()) == before


def test_a_replica_that_leaves_is_made_again_elsewhere_at_once() -> None:
    t = town("h1", "h2")
    fleet_pod(t, RECORD)
    node = t.get(Node, "h1")
    t.update(node, spec=replace(node.spec, unschedulable=True))
    t.run(1)

    t.delete(Pod, "web", "default")
    t.run(15)
    assert sorted((p.spec.node_name, p.deleting) for p in t.all(Pod)) == [("h1", True), ("h2", False)]
    t.run(10)

    only = t.all(Pod)[0]
    assert (only.spec.node_name, ready_of(only), only.metadata.labels["app"]) == ("h2", "True", "web")


@pytest.mark.parametrize("controller", ["DaemonSet", ""])
def test_other_pods_are_not_made_again(controller: str) -> None:
    t = town("h1")
    fleet_pod(t, replace_record(controller))

    t.delete(Pod, "web", "default")
    t.run(100)

    assert t.all(Pod) == []


def replace_record(controller: str) -> PodRecord:
    return PodRecord("default", "web", {"app": "web"}, controller=controller)


def test_scaling_a_replicaset_makes_and_removes_pods() -> None:
    t = town("h1", "h2")
    fleet_pod(t, RECORD)
    t.run(1)

    owner = t.get(ReplicaSet, "web", "default")
    t.update(owner, spec=replace(owner.spec, replicas=3))
    t.run(20)
    assert len(t.all(Pod)) == 3
    owner = t.get(ReplicaSet, "web", "default")
    t.update(owner, spec=replace(owner.spec, replicas=1))
    t.run(60)

    assert len(t.all(Pod)) == 1


def test_a_fleets_budget_becomes_an_object() -> None:
    budget = budget_object(Budget("default", "b", {"app": "web"}, max_unavailable="10%"))

    assert isinstance(budget, PodDisruptionBudget)
    assert (budget.spec.max_unavailable, budget.spec.min_available) == ("10%", None)
    assert budget.spec.selector is not None
    assert dict(budget.spec.selector.match_labels) == {"app": "web"}


@pytest.mark.parametrize(("text", "labels", "chosen"), [
    ("", {}, True), ("a=b", {"a": "b"}, True), ("a==b", {"a": "c"}, False), ("a!=b", {}, True),
    ("a!=b", {"a": "b"}, False), ("a in (b, c),!d", {"a": "c"}, True), ("a in (b,c),!d", {"a": "c", "d": ""}, False),
    ("a notin (b)", {"a": "b"}, False), ("x.y/z", {"x.y/z": ""}, True), ("a,b", {"a": "1"}, False)])
def test_selector_texts_are_read_as_kubectl_reads_them(text: str, labels: dict[str, str], chosen: bool) -> None:
    assert selects(text, labels) is chosen


@pytest.mark.parametrize("text", ["a=b=c", "a in b", "-x", "a b"])
def test_broken_selector_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unable to parse label selector"):
        parse_selector(text)


