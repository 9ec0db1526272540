"""PodDisruptionBudget arithmetic, evictions, and the slots of the maintenance operator's scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbours import SPACE, Town

from twin.actors.disruption import SEVERAL, VIOLATES, Disruption, Evictions, scaled
from twin.actors.slots import Limits, Slots, Waiting
from twin.backends.base import ApiError
from twin.model.core import Pod, PodDisruptionBudget, PodDisruptionBudgetSpec, ReplicaSet, ReplicaSetSpec
from twin.model.meta import Condition, Key, ObjectMeta, replace
from twin.model.provisioning import LabelSelector, LabelSelectorRequirement

WEB = LabelSelector(match_labels={"app": "web"})


def town() -> tuple[Town, Evictions]:
    t = Town()
    t.add(lambda k: Disruption(k, t.clock, t.durations))
    kube, _ = t.client("evictor")
    return t, Evictions(kube)


def budget(t: Town, name: str = "web", selector: LabelSelector = WEB, **bounds: Any) -> None:
    t.create(PodDisruptionBudget(metadata=ObjectMeta(namespace=SPACE, name=name),
                                 spec=PodDisruptionBudgetSpec(selector=selector, **bounds)))


def web(t: Town, n: int, **pod: Any) -> None:
    for i in range(n):
        t.pod(f"web-{len(t.all(Pod))}-{i}", "h1", ready=True, labels={"app": "web"}, **pod)


def figures(t: Town, name: str = "web") -> tuple[int, int, int, int]:
    """allowed, healthy, desired, expected"""
    t.run(0.1)
    s = t.get(PodDisruptionBudget, name).status
    return s.disruptions_allowed, s.current_healthy, s.desired_healthy, s.expected_pods


@pytest.mark.parametrize(("bounds", "allowed", "desired"), [
    ({"min_available": 3}, 2, 3), ({"min_available": "50%"}, 2, 3), ({"max_unavailable": 1}, 1, 4),
    ({"max_unavailable": "30%"}, 2, 3), ({"max_unavailable": "0%"}, 0, 5), ({"min_available": 9}, 0, 9), ({}, 4, 1)])
def test_percentages_round_up_to_whole_pods(bounds: dict[str, Any], allowed: int, desired: int) -> None:
    t, _ = town()
    web(t, 5)
    budget(t, **bounds)

    assert figures(t) == (allowed, 5, desired, 5)


def test_pods_not_ready_leaving_or_not_selected_are_not_healthy() -> None:
    t, _ = town()
    web(t, 3)
    t.pod("starting", "h1", labels={"app": "web"})
    t.pod("other", "h1", ready=True, labels={"app": "db"})
    budget(t, max_unavailable=2)
    assert figures(t) == (1, 3, 2, 4)

    t.delete(Pod, "web-0-0")

    assert figures(t) == (0, 2, 2, 4)


def test_a_controllers_replicas_are_expected_even_while_they_are_missing() -> None:
    t, _ = town()
    owner = t.create(ReplicaSet(metadata=ObjectMeta(namespace=SPACE, name="web"), spec=ReplicaSetSpec(replicas=4)))
    web(t, 2, controller="ReplicaSet", owner_uid=owner.metadata.uid)
    budget(t, max_unavailable=1)
    assert figures(t) == (0, 2, 3, 4)

    t.update(owner, spec=ReplicaSetSpec(replicas=2))

    assert figures(t) == (1, 2, 1, 2)


def test_a_selector_with_expressions_counts_as_one_with_labels() -> None:
    t, _ = town()
    web(t, 2)
    budget(t, "expressed", LabelSelector(match_expressions=(
        LabelSelectorRequirement(key="app", operator="In", values=("web", "api")),)), min_available=1)
    budget(t, "all", LabelSelector(), min_available=1)

    assert figures(t, "expressed") == figures(t, "all") == (1, 2, 1, 2)


def test_an_eviction_charges_the_budget_before_the_pod_is_seen_leaving() -> None:
    t, evictions = town()
    web(t, 3)
    budget(t, min_available=2)
    t.run(0.1)
    first, second, _ = t.all(Pod)

    evictions.evict(first, t.clock.now())
    with pytest.raises(ApiError, match=VIOLATES) as refused:
        evictions.evict(second, t.clock.now())

    assert (refused.value.code, refused.value.reason) == (429, "TooManyRequests")
    t.run(0.1)
    assert [p.deleting for p in t.all(Pod)] == [True, False, False]
    assert t.get(PodDisruptionBudget, "web").status.disrupted_pods == {}


def test_a_pod_whose_eviction_led_to_nothing_counts_again_after_two_minutes() -> None:
    t, _ = town()
    web(t, 2)
    budget(t, min_available=1)
    assert figures(t)[0] == 1
    found = t.get(PodDisruptionBudget, "web")
    t.server.update(replace(found, status=replace(found.status, disrupted_pods={
        "web-0-0": "2025-05-01T00:00:00Z"})), "test", t.env.now, status=True)
    assert figures(t)[:2] == (0, 1)

    t.run(120)

    assert figures(t)[:2] == (1, 2)


def test_an_unready_pod_is_evicted_freely_only_while_the_budget_is_healthy() -> None:
    t, evictions = town()
    web(t, 2)
    broken = t.pod("broken", "h1", labels={"app": "web"})
    broken = t.server.update(replace(broken, status=replace(broken.status, phase="Running", conditions=(
        Condition(type="Ready", status="False"),))), "test", t.env.now, status=True)
    budget(t, min_available=2)
    t.run(0.1)

    evictions.evict(broken, t.clock.now())

    assert t.get(Pod, "broken").deleting


def test_a_pod_of_two_budgets_cannot_be_evicted_at_all() -> None:
    t, evictions = town()
    web(t, 1)
    budget(t, min_available=0)
    budget(t, "again", min_available=0)
    t.run(0.1)

    with pytest.raises(ApiError, match=SEVERAL) as refused:
        evictions.evict(t.all(Pod)[0], t.clock.now())

    assert refused.value.code == 500


def test_a_budget_is_written_only_when_its_figures_change() -> None:
    t, _ = town()
    web(t, 3)
    budget(t, min_available=1)
    t.run(1)
    before = len(t.writes())

    pod = t.all(Pod)[0]
    t.server.update(replace(pod, status=replace(pod.status, host_ip="10.0.0.9")), "test", t.env.now, status=True)
    t.run(10_000)

    assert len(t.writes()) == before


@given(st.lists(st.tuples(st.sampled_from(["add", "ready", "unready", "delete", "budget"]), st.integers(0, 5)),
                max_size=30))
@settings(max_examples=40, deadline=None)
def test_counting_one_by_one_equals_counting_all(story: list[tuple[str, int]]) -> None:
    t, _ = town()
    for act, n in story:
        name = f"p{n}"
        pod = t.find(Pod, name)
        if act == "add" and pod is None:
            t.pod(name, "h1", ready=n % 2 == 0, labels={"app": "web"} if n != 3 else {"app": "db"})
        elif act in ("ready", "unready") and pod is not None:
            status = "True" if act == "ready" else "False"
            t.server.update(replace(pod, status=replace(pod.status, conditions=(
                Condition(type="Ready", status=status),))), "test", t.env.now, status=True)
        elif act == "delete" and pod is not None:
            t.server.kill(pod.key, "test")
        elif act == "budget" and t.find(PodDisruptionBudget, "web") is None:
            budget(t, max_unavailable="40%")
        t.run(1)
    if t.find(PodDisruptionBudget, "web") is None:
        return

    pods = [p for p in t.all(Pod) if p.metadata.labels == {"app": "web"}]
    healthy = sum(1 for p in pods if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions))
    desired = max(0, len(pods) - scaled("40%", len(pods)))
    assert figures(t) == (max(0, healthy - desired) if pods else 0, healthy, desired, len(pods))


# --- slots


def request(node: str, *, created: str = "2025-05-01T00:00:00Z", requestor: str = "dpf", name: str = "") -> Waiting:
    return Waiting(created, node, requestor, Key("ns", name or node))


def names(keys: list[Key]) -> list[str]:
    return [k.name for k in keys]


def test_requests_are_served_by_age_then_by_node_name() -> None:
    slots = Slots(Limits(max_parallel=2))
    for r in (request("c"), request("b"), request("a", created="2025-05-01T00:00:09Z")):
        slots.wait(r)

    assert names(slots.grant(10, {})) == ["b", "c"]
    assert names(slots.grant(10, {})) == []
    slots.end(Key("ns", "b"))
    assert names(slots.grant(10, {})) == ["a"]


@pytest.mark.parametrize(("total", "slots"), [(1, 1), (2, 2), (5, 3), (10, 6), (11, 7)])
def test_a_share_of_parallel_operations_rounds_up(total: int, slots: int) -> None:
    line = Slots(Limits(max_parallel="60%"))
    for i in range(total):
        line.wait(request(f"n{i:02}"))

    assert len(line.grant(total, {})) == slots


def test_one_node_is_under_one_maintenance_at_a_time() -> None:
    slots = Slots(Limits(max_parallel=5))
    slots.wait(request("a", name="first"))
    slots.wait(request("a", name="second"))

    assert names(slots.grant(5, {})) == ["first"]
    slots.end(Key("ns", "first"))
    assert names(slots.grant(5, {})) == ["second"]


def test_a_requestor_with_work_in_progress_comes_first_then_the_one_with_less_to_do() -> None:
    slots = Slots(Limits(max_parallel=1))
    for r in (request("a", requestor="busy"), request("b", requestor="large"), request("c", requestor="large"),
              request("d", requestor="small"), request("e", requestor="busy")):
        slots.wait(r)
    served = []
    while keys := slots.grant(10, {}):
        served.append(keys[0].name)
        if keys[0].name == "d":
            assert slots.end(keys[0])
            slots.limits = Limits(max_parallel=2)
            slots.begin(Key("ns", "elsewhere"), "z", "large")
        else:
            slots.end(keys[0])

    assert served == ["d", "b", "c", "a", "e"]


def test_a_request_that_left_the_line_is_never_granted() -> None:
    slots = Slots(Limits(max_parallel=5))
    slots.wait(request("a"))

    assert not slots.end(Key("ns", "a"))
    assert slots.grant(5, {}) == []
    assert slots.wait(request("a"))


@given(st.integers(1, 12), st.integers(1, 6), st.one_of(st.none(), st.integers(0, 6)),
       st.lists(st.integers(0, 11), max_size=20), st.sets(st.integers(0, 11)))
def test_limits_are_never_exceeded(total: int, parallel: int, maximum: int | None, ends: list[int],
                                   down: set[int]) -> None:
    slots = Slots(Limits(max_parallel=parallel, max_unavailable=maximum))
    unavailable = {f"n{i:02}": None for i in sorted(down) if i < total}
    active: set[str] = set()
    for i in range(total):
        slots.wait(request(f"n{i:02}"))
    for end in [*ends, 0]:
        begun = names(slots.grant(total, unavailable))
        before = len(active | set(unavailable))
        active.update(begun)
        assert len(active) <= parallel
        if maximum is not None:
            assert len(active | set(unavailable)) <= max(maximum, before)
        if f"n{end:02}" in active:
            slots.end(Key("ns", f"n{end:02}"))
            active.discard(f"n{end:02}")
