"""The maintenance operator: states, limits, drains, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
from neighbours import SPACE, Town

from twin.actors.disruption import Disruption, Evictions
from twin.actors.kubelet import NodeRegistration
from twin.actors.maintenance import FINALIZER, INITIALLY_UNSCHEDULABLE, Maintenance
from twin.actors.pods import PodLife
from twin.actors.slots import Limits
from twin.model.core import (
    DrainSpec,
    Node,
    NodeMaintenance,
    NodeMaintenanceSpec,
    Pod,
    PodDisruptionBudget,
    PodDisruptionBudgetSpec,
)
from twin.model.meta import ObjectMeta, condition, replace
from twin.model.provisioning import LabelSelector

NOT_DMS = "provisioning.dpu.nvidia.com/component!=dms"


def town(*hosts: str, limits: Limits = Limits(max_parallel="100%"), collapse: bool = True, **seconds: float) -> Town:
    t = Town(*hosts, collapse=collapse, **seconds)
    t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))
    t.add(lambda k: PodLife(k, t.clock, t.durations, t.machines, t.verbs(k)))
    t.add(lambda k: Disruption(k, t.clock, t.durations))
    t.add(lambda k: Maintenance(k, t.clock, t.durations, Evictions(k), limits))
    t.run(1)
    return t


def maintain(t: Town, node: str, *, requestor: str = "dpu.nvidia.com", name: str = "", **spec: Any) -> None:
    """A NodeMaintenance as DPF makes it."""
    drain = spec.pop("drain_spec", DrainSpec(force=True, delete_empty_dir=True, pod_selector=NOT_DMS))
    t.create(NodeMaintenance(
        metadata=ObjectMeta(namespace=SPACE, name=name or node),
        spec=NodeMaintenanceSpec(requestor_id=requestor, node_name=node, drain_spec=drain, cordon=True,
                                 additional_requestors=("provisioning.dpu.nvidia.com",), **spec)))


def state(t: Town, name: str) -> str:
    m = t.get(NodeMaintenance, name)
    found = condition(m.status.conditions, "Ready") if m.status is not None else None
    return found.reason if found is not None else ""


def release(t: Town, name: str) -> None:
    """As DPF does it: its requestor goes, then the object."""
    m = t.get(NodeMaintenance, name)
    t.update(m, spec=replace(m.spec, additional_requestors=()))
    t.delete(NodeMaintenance, name)


def test_maintenance_goes_through_its_states_in_the_recorded_order_and_back() -> None:
    t = town("h1")
    maintain(t, "h1")
    t.run(10)
    m = t.get(NodeMaintenance, "h1")
    assert m.metadata.finalizers == (FINALIZER,)
    assert state(t, "h1") == "Ready"
    assert t.get(Node, "h1").spec.unschedulable
    release(t, "h1")
    t.run(2)

    # Golden case c2: finalizer, Pending, Scheduled, the node cordoned, Cordon, Draining, Ready; uncordoned, gone.
    changes = [(verb, what) for _, verb, what in t.writes()]
    assert changes[1:] == [
        ("update", "NodeMaintenance/h1"), ("status", "NodeMaintenance/h1"), ("status", "NodeMaintenance/h1"),
        ("update", "Node/h1"), ("status", "NodeMaintenance/h1"), ("status", "NodeMaintenance/h1"),
        ("status", "NodeMaintenance/h1"), ("update", "Node/h1"), ("update", "NodeMaintenance/h1")]
    assert not t.get(Node, "h1").spec.unschedulable
    assert t.find(NodeMaintenance, "h1") is None


def test_each_step_takes_its_time() -> None:
    t = town("h1", maintenance_step=3)
    start = t.now_s
    maintain(t, "h1")
    t.run(60)

    at = [w[0] - start for w in t.writes("NodeMaintenance")]

    assert at == [0, 0, 3, 6, 9, 12]


def test_the_ready_condition_turns_true_only_at_the_end() -> None:
    t = town("h1")
    maintain(t, "h1")
    seen = []
    for _ in range(6):
        t.run(1)
        ready = condition(t.get(NodeMaintenance, "h1").status.conditions, "Ready")  # type: ignore[union-attr]
        assert ready is not None
        seen.append((ready.reason, ready.status))

    assert seen == [("Pending", "False"), ("Scheduled", "False"), ("Cordon", "False"), ("Draining", "False"),
                    ("Ready", "True"), ("Ready", "True")]


def test_a_drain_evicts_what_it_should_and_leaves_daemonsets_and_dms() -> None:
    t = town("h1")
    t.pod("web", "h1", ready=True, controller="ReplicaSet", termination_grace_period_seconds=20)
    t.pod("bare", "h1", ready=True)
    t.pod("agent", "h1", ready=True, controller="DaemonSet")
    t.pod("dms", "h1", ready=True, labels={"provisioning.dpu.nvidia.com/component": "dms"})
    maintain(t, "h1")

    t.run(8)
    m = t.get(NodeMaintenance, "h1")
    assert m.status is not None
    assert m.status.drain is not None
    assert (m.status.drain.total_pods, m.status.drain.eviction_pods) == (4, 2)
    assert m.status.drain.wait_for_eviction == (f"{SPACE}/web", f"{SPACE}/bare")
    assert state(t, "h1") == "Draining"
    t.run(20)

    assert sorted(p.metadata.name for p in t.all(Pod)) == ["agent", "dms"]
    assert state(t, "h1") == "Ready"
    status = t.get(NodeMaintenance, "h1").status
    assert status is not None
    assert status.drain is not None
    assert (status.drain.drain_progress, status.drain.wait_for_eviction) == (100, ())


@pytest.mark.parametrize(("spec", "volumes", "why"), [
    (DrainSpec(force=False, delete_empty_dir=True), (), "declare no controller"),
    (DrainSpec(force=True, delete_empty_dir=False), ({"name": "v", "emptyDir": {}},), "local storage")])
def test_a_drain_without_force_or_permission_stops_before_it_evicts(
        spec: DrainSpec, volumes: tuple[dict[str, Any], ...], why: str) -> None:
    t = town("h1")
    t.pod("bare", "h1", ready=True, volumes=volumes)
    t.pod("web", "h1", ready=True, controller="ReplicaSet")
    maintain(t, "h1", drain_spec=spec)

    t.run(320)

    assert len(t.all(Pod)) == 2
    failed = condition(t.get(NodeMaintenance, "h1").status.conditions, "Failed")  # type: ignore[union-attr]
    assert failed is not None
    assert failed.status == "True"
    assert why in failed.message


def budget(t: Town, **bounds: Any) -> None:
    t.create(PodDisruptionBudget(
        metadata=ObjectMeta(namespace=SPACE, name="web"),
        spec=PodDisruptionBudgetSpec(selector=LabelSelector(match_labels={"app": "web"}), **bounds)))


def test_a_budget_holds_a_drain_until_it_allows_the_eviction_and_a_time_out_shows() -> None:
    t = town("h1", "h2")
    t.pod("web-1", "h1", ready=True, labels={"app": "web"}, controller="ReplicaSet")
    budget(t, min_available=1)
    maintain(t, "h1")

    t.run(200)
    assert state(t, "h1") == "Draining"
    assert condition(t.get(NodeMaintenance, "h1").status.conditions, "Failed") is None  # type: ignore[union-attr]
    t.run(110)
    failed = condition(t.get(NodeMaintenance, "h1").status.conditions, "Failed")  # type: ignore[union-attr]
    assert failed is not None
    assert failed.message == (
        "drain did not complete in time: dpf-operator-system/web-1: Cannot evict pod as it would violate the pod's "
        "disruption budget.")
    t.pod("web-2", "h2", ready=True, labels={"app": "web"}, controller="ReplicaSet")
    t.run(12)

    assert [p.metadata.name for p in t.all(Pod)] == ["web-2"]
    assert state(t, "h1") == "Ready"
    failed = condition(t.get(NodeMaintenance, "h1").status.conditions, "Failed")  # type: ignore[union-attr]
    assert failed is not None
    assert failed.status == "False"


def test_two_drains_never_take_more_pods_at_once_than_their_budget_allows() -> None:
    t = town("h1", "h2", "h3")
    for i in (1, 2, 3):
        t.pod(f"web-{i}", f"h{i}", ready=True, labels={"app": "web"}, controller="ReplicaSet",
              termination_grace_period_seconds=30)
    budget(t, min_available=2)
    lowest = [3]

    def count(*_: object) -> None:
        lowest.append(sum(1 for p in t.all(Pod) if not p.deleting))

    t.server.observers.setdefault(Pod, []).append(count)
    for host in ("h1", "h2", "h3"):
        maintain(t, host)

    t.run(100)

    assert min(lowest) == 2
    assert sorted(state(t, f"h{i}") for i in (1, 2, 3)) == ["Draining", "Draining", "Ready"]


def test_only_so_many_nodes_are_under_maintenance_at_once_and_the_next_follows_at_once() -> None:
    t = town(*(f"h{i}" for i in range(1, 6)), limits=Limits(max_parallel="60%"))
    for i in range(1, 6):
        maintain(t, f"h{i}")

    t.run(10)
    assert [state(t, f"h{i}") for i in range(1, 6)] == ["Ready"] * 3 + ["Pending"] * 2
    release(t, "h2")
    t.run(10)

    assert [state(t, f"h{i}") for i in (1, 3, 4, 5)] == ["Ready", "Ready", "Ready", "Pending"]


def test_unavailable_nodes_count_against_max_unavailable_but_may_be_maintained_themselves() -> None:
    t = town("h1", "h2", "h3", limits=Limits(max_parallel=3, max_unavailable=1))
    node = t.get(Node, "h3")
    t.update(node, spec=replace(node.spec, unschedulable=True))
    for i in (1, 2, 3):
        maintain(t, f"h{i}")

    t.run(30)

    assert [state(t, f"h{i}") for i in (1, 2, 3)] == ["Pending", "Pending", "Ready"]


def test_a_node_cordoned_before_stays_cordoned_afterwards() -> None:
    t = town("h1")
    node = t.get(Node, "h1")
    t.update(node, spec=replace(node.spec, unschedulable=True))
    maintain(t, "h1")
    t.run(10)
    assert t.get(NodeMaintenance, "h1").metadata.annotations[INITIALLY_UNSCHEDULABLE] == "true"

    release(t, "h1")
    t.run(10)

    assert t.find(NodeMaintenance, "h1") is None
    assert t.get(Node, "h1").spec.unschedulable


def test_a_ready_maintenance_that_somebody_still_wants_is_not_given_up() -> None:
    t = town("h1")
    maintain(t, "h1")
    t.run(10)

    t.delete(NodeMaintenance, "h1")
    t.run(100)
    assert t.get(NodeMaintenance, "h1").deleting
    m = t.get(NodeMaintenance, "h1")
    t.update(m, spec=replace(m.spec, additional_requestors=()))
    t.run(5)

    assert t.find(NodeMaintenance, "h1") is None
    assert not t.get(Node, "h1").spec.unschedulable


def test_a_pending_maintenance_goes_at_once_even_if_a_requestor_joins_it() -> None:
    # Golden case c4: a re-created DPU adds itself to the object that is terminating.
    t = town("h1", "h2", limits=Limits(max_parallel=1))
    maintain(t, "h1")
    t.run(10)
    maintain(t, "h2")
    t.run(10)
    assert state(t, "h2") == "Pending"

    t.delete(NodeMaintenance, "h2")
    t.run(0.5)
    m = t.get(NodeMaintenance, "h2")
    t.update(m, spec=replace(m.spec, additional_requestors=("provisioning.dpu.nvidia.com", "another")))
    t.run(2)

    assert t.find(NodeMaintenance, "h2") is None


def test_a_maintenance_deleted_while_draining_uncordons_and_frees_its_slot() -> None:
    t = town("h1", "h2", limits=Limits(max_parallel=1))
    t.pod("web", "h1", ready=True, controller="ReplicaSet", labels={"app": "web"})
    budget(t, min_available=1)
    maintain(t, "h1")
    maintain(t, "h2")
    t.run(20)
    assert (state(t, "h1"), state(t, "h2")) == ("Draining", "Pending")

    t.delete(NodeMaintenance, "h1")
    t.run(10)

    assert not t.get(Node, "h1").spec.unschedulable
    assert state(t, "h2") == "Ready"


def test_waiting_for_pods_ends_with_the_pods_or_with_its_own_time_out() -> None:
    t = town("h1", "h2")
    for host in ("h1", "h2"):
        t.pod(f"job-{host}", host, ready=True, labels={"app": "batch"}, controller="Job")
        maintain(t, host, drain_spec=None, wait_for_pod_completion={
            "podSelector": "app=batch", "timeoutSeconds": 100 if host == "h2" else 0})

    t.run(50)
    assert [state(t, h) for h in ("h1", "h2")] == ["WaitForPodCompletion"] * 2
    status = t.get(NodeMaintenance, "h1").status
    assert status is not None
    assert status.wait_for_completion == (f"{SPACE}/job-h1",)
    t.delete(Pod, "job-h1")
    t.run(10)
    assert [state(t, h) for h in ("h1", "h2")] == ["Ready", "WaitForPodCompletion"]
    t.run(100)

    assert state(t, "h2") == "Ready"
    assert t.find(Pod, "job-h2") is not None


def test_maintenance_of_a_node_that_is_gone_is_let_go() -> None:
    t = town("h1")
    maintain(t, "h1")
    t.run(10)

    t.delete(Node, "h1")
    t.delete(NodeMaintenance, "h1")
    t.run(2)

    assert t.find(NodeMaintenance, "h1") is None


def test_a_blocked_drain_polls_without_writing() -> None:
    t = town("h1")
    t.pod("web", "h1", ready=True, labels={"app": "web"}, controller="ReplicaSet")
    budget(t, min_available=1)
    maintain(t, "h1", drain_spec=DrainSpec(force=True, timeout_seconds=0))
    t.run(20)
    before = len(t.writes())

    t.run(86_400)

    assert len(t.writes()) == before
    assert state(t, "h1") == "Draining"


def test_collapsed_and_exact_polling_write_the_same() -> None:
    def story(collapse: bool) -> str:
        t = town("h1", "h2", "h3", limits=Limits(max_parallel=2), collapse=collapse)
        for i in (1, 2, 3):
            t.pod(f"web-{i}", f"h{i}", ready=True, labels={"app": "web"}, controller="ReplicaSet")
        budget(t, max_unavailable=1)
        for i in (1, 2, 3):
            maintain(t, f"h{i}")
        t.run(400)
        t.pod("web-4", "h3", ready=True, labels={"app": "web"}, controller="ReplicaSet")
        t.run(400)
        return t.trace.digest

    assert story(True) == story(False)
