"""DPUSet: selection, creation, roll-out arithmetic, labels, deletion, counts (provisioning.md 5.1-5.4)."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.provisioning.dpuset import max_unavailable
from tests.controllers.stage import SPACE, Stage, meta
from twin.model.meta import Condition, replace
from twin.model.names import Finalizer, Label
from twin.model.provisioning import (
    BfbRef,
    Dpu,
    DpuDevice,
    DpuDeviceSpec,
    DpuNode,
    DpuSet,
    DpuSetSpec,
    DpuSetStrategy,
    DpuStatus,
    DpuTemplate,
    DpuTemplateSpec,
    LabelSelector,
    LabelSelectorRequirement,
    NodeEffect,
    Phase,
    RollingUpdate,
    TemplateCluster,
)

READY = DpuStatus(phase=Phase.READY, conditions=(Condition(
    type="Ready", status="True", reason="DPUReady", last_transition_time="2025-05-01T00:00:00Z"),))


def ready(status: str) -> DpuStatus:
    return replace(READY, conditions=(replace(READY.conditions[0], status=status),))


def stage(nodes: int = 3, devices: int = 1, **more: Any) -> Stage:
    """Nodes n1.. with devices n1-0.. each."""
    s = Stage("dpuset", start=False, **more)
    s.world.managers["provisioning"].start()
    for n in range(1, nodes + 1):
        s.create(DpuNode(metadata=meta(f"n{n}", labels={"rack": str(n % 2)})))
        for d in range(devices):
            s.create(device(f"n{n}", f"n{n}-{d}"))
    return s


def device(node: str, name: str, **labels: str) -> DpuDevice:
    return DpuDevice(
        metadata=meta(name, labels={Label.DPUNODE_NAME: node, **labels}), spec=DpuDeviceSpec(pci_address="0000-2b-00"))


def dpuset(name: str = "set", *, bfb: str = "old", rolling: int | str | None = None, **more: Any) -> DpuSet:
    strategy = None if rolling is None else DpuSetStrategy(
        type="RollingUpdate", rolling_update=RollingUpdate(max_unavailable=rolling))
    template = DpuTemplateSpec(
        bfb=BfbRef(name=bfb), dpu_flavor="flavor", node_effect=NodeEffect(no_effect=True),
        cluster=TemplateCluster(node_labels=more.pop("node_labels", {})))
    return DpuSet(metadata=meta(name, labels=more.pop("labels", {})), spec=DpuSetSpec(
        strategy=strategy, dpu_template=DpuTemplate(annotations={"a": "1"}, spec=template), **more))


def retemplate(s: Stage, **changes: Any) -> None:
    old = s.the(DpuSet, "set")
    template = old.spec.dpu_template
    s.respec(DpuSet, "set", dpu_template=replace(template, spec=replace(template.spec, **changes)))


def all_ready(s: Stage) -> None:
    for name in s.names(Dpu):
        s.restatus(Dpu, name, READY)
    s.run(1)


def hold(s: Stage) -> None:
    """Give the DPUs their finalizer, so that a deleted one stays until `let_go`."""
    for name in s.names(Dpu):
        dpu = s.the(Dpu, name)
        if Finalizer.DPU not in dpu.metadata.finalizers:
            s.update(replace(dpu, metadata=replace(dpu.metadata, finalizers=(Finalizer.DPU,))))


def deleting(s: Stage) -> list[str]:
    return [n for n in s.names(Dpu) if s.the(Dpu, n).deleting]


def let_go(s: Stage) -> None:
    for name in deleting(s):
        dpu = s.the(Dpu, name)
        s.update(replace(dpu, metadata=replace(dpu.metadata, finalizers=())))
    s.run(1)


def count(s: Stage) -> dict[str, int]:
    status = s.the(DpuSet, "set").status
    return dict(status.dpu_statistics) if status is not None else {}


# --- selection and creation


def test_a_set_without_selectors_makes_a_dpu_for_every_device_all_at_once() -> None:
    s = stage(nodes=3, devices=2)
    s.create(dpuset(labels={"team": "x"}))
    s.run(1)
    assert s.names(Dpu) == ["n1-0", "n1-1", "n2-0", "n2-1", "n3-0", "n3-1"]
    dpu = s.the(Dpu, "n2-1")
    assert dpu.metadata.labels == {
        "team": "x", Label.DPUSET_NAME: "set", Label.DPUSET_NAMESPACE: SPACE, Label.DPUNODE_NAME: "n2",
        Label.DPUDEVICE_NAME: "n2-1"}
    assert dpu.metadata.annotations == {"a": "1"}
    (owner,) = dpu.metadata.owner_references
    assert (owner.kind, owner.name, owner.controller, owner.block_owner_deletion) == ("DPUSet", "set", True, True)
    spec = dpu.spec
    assert (spec.dpu_node_name, spec.dpu_device_name, spec.bfb, spec.dpu_flavor, spec.pci_address) == (
        "n2", "n2-1", "old", "flavor", "0000-2b-00")
    assert spec.node_effect == NodeEffect(no_effect=True)
    assert s.the(DpuSet, "set").metadata.finalizers == (Finalizer.DPUSET,)
    assert count(s) == {"Initializing": 6}
    assert sorted(s.events("set")) == [
        ("Normal", "SuccessfulCreate", f"Created DPU: ({SPACE}/{n})", 1) for n in s.names(Dpu)]


def test_a_cache_behind_its_own_creations_is_no_error() -> None:
    s = stage(nodes=5)
    s.world.host_cluster.lag_ns = 20_000_000
    s.create(dpuset())
    s.run(0.03)
    s.create(device("n1", "late"))  # wakes the set while its cache knows none of its DPUs
    s.run(1)
    assert len(s.names(Dpu)) == 6
    assert {reason for _, reason, _, _ in s.events("set")} == {"SuccessfulCreate"}
    assert s.error_of("dpuset", f"{SPACE}/set") == ""


def test_a_label_of_the_device_wins_over_the_sets() -> None:
    s = stage(nodes=0)
    s.create(DpuNode(metadata=meta("n")))
    s.create(device("n", "d", team="device"))
    s.create(dpuset(labels={"team": "set"}))
    s.run(1)
    assert s.the(Dpu, "d").metadata.labels["team"] == "device"


@pytest.mark.parametrize(("selectors", "chosen"), [
    ({"dpu_node_selector": LabelSelector(match_labels={"rack": "1"})}, ["n1-0", "n3-0"]),
    ({"dpu_node_selector": LabelSelector(match_expressions=(
        LabelSelectorRequirement(key="rack", operator="NotIn", values=("1",)),))}, ["n2-0"]),
    ({"dpu_node_selector": LabelSelector(match_expressions=(
        LabelSelectorRequirement(key="rack", operator="Exists"),))}, ["n1-0", "n2-0", "n3-0"]),
    ({"dpu_node_selector": LabelSelector(match_labels={"rack": "7"})}, []),
    ({"dpu_selector": {Label.DPUNODE_NAME: "n2"}}, ["n2-0"]),
    ({"dpu_selector": {"no": "such"}}, []),
])
def test_selectors_choose_nodes_and_devices(selectors: dict[str, Any], chosen: list[str]) -> None:
    s = stage()
    s.create(dpuset(**selectors))
    s.run(1)
    assert s.names(Dpu) == chosen


def test_a_device_without_the_node_label_or_in_another_namespace_is_never_chosen() -> None:
    s = stage(nodes=1)
    s.world.ensure_namespace("elsewhere")
    s.create(DpuDevice(metadata=meta("bare")))
    s.create(DpuNode(metadata=meta("far", "elsewhere")))
    s.create(DpuDevice(metadata=meta("far-0", "elsewhere", labels={Label.DPUNODE_NAME: "far"})))
    s.create(dpuset())
    s.run(1)
    assert s.names(Dpu) == ["n1-0"]


def test_a_new_device_gets_a_dpu_and_a_removed_one_loses_it() -> None:
    s = stage(nodes=1)
    s.create(dpuset())
    s.run(1)
    s.create(device("n1", "late"))
    s.run(1)
    assert s.names(Dpu) == ["late", "n1-0"]
    s.delete(DpuDevice, "n1-0")
    s.run(1)
    assert s.names(Dpu) == ["late"]
    assert s.events("set")[-1][1:3] == ("SuccessfulDelete", f"Delete DPU: ({SPACE}/n1-0) from node n1")


def test_a_dpu_deleted_by_hand_comes_back_under_its_name() -> None:
    s = stage(nodes=1)
    s.create(dpuset())
    s.run(1)
    uid = s.the(Dpu, "n1-0").metadata.uid
    s.delete(Dpu, "n1-0")
    s.run(1)
    assert s.the(Dpu, "n1-0").metadata.uid != uid


def test_a_node_label_acts_at_the_next_resync_or_at_once_with_the_policy() -> None:
    for policies, left in (((), 3), (("dpuset-watches-dpunodes",), 2)):
        s = stage(policies=policies)
        s.create(dpuset(dpu_node_selector=LabelSelector(match_expressions=(
            LabelSelectorRequirement(key="rack", operator="Exists"),))))
        s.run(1)
        s.relabel(DpuNode, "n2", {})
        s.run(60)
        assert len(s.names(Dpu)) == left
        s.run(600)
        assert len(s.names(Dpu)) == 2


def test_two_sets_on_one_device_the_second_fails_over_and_over_and_counts_nothing() -> None:
    s = stage(nodes=3)
    s.create(dpuset("first", dpu_selector={Label.DPUNODE_NAME: "n2"}))
    s.run(1)
    s.create(dpuset())
    s.run(30)
    (type_, reason, message, times), = [e for e in s.events("set") if e[1] == "FailedCreate"]
    assert (type_, reason) == ("Warning", "FailedCreate")
    assert message == 'failed to created DPU index 0 on node n2 dpus.provisioning.dpu.nvidia.com "n2-0" already exists'
    assert times > 5
    assert count(s) == {}
    assert s.error_of("dpuset", f"{SPACE}/set") == message


def test_with_dpuset_skips_taken_devices_the_second_set_goes_on() -> None:
    s = stage(nodes=3, policies=("dpuset-skips-taken-devices",))
    s.create(dpuset("first", dpu_selector={Label.DPUNODE_NAME: "n2"}))
    s.run(1)
    s.create(dpuset())
    s.run(30)
    assert count(s) == {"Initializing": 2}
    assert s.error_of("dpuset", f"{SPACE}/set") == ""


def test_first_creation_is_not_throttled_unless_the_policy_says_so() -> None:
    s = stage(nodes=5)
    s.create(dpuset(rolling=2))
    s.run(1)
    assert len(s.names(Dpu)) == 5
    s = stage(nodes=5, policies=("throttle-initial-create",))
    s.create(dpuset(rolling=2))
    s.run(1)
    assert len(s.names(Dpu)) == 2
    s.restatus(Dpu, s.names(Dpu)[0], READY)
    s.run(1)
    assert len(s.names(Dpu)) == 3
    for _ in range(3):
        all_ready(s)
    assert len(s.names(Dpu)) == 5


# --- roll-out


@pytest.mark.parametrize(("value", "total", "budget"), [
    ("10%", 15, 2), ("34%", 3, 2), ("50%", 4, 2), ("100%", 7, 7), ("1%", 100, 1), ("1%", 101, 2), ("10%", 0, 0),
    (1, 4, 1), (3, 2, 2), (0, 4, 1), (100000, 5, 5), (None, 4, 1),
])
def test_the_budget_is_rounded_up_then_at_least_one_then_at_most_all(
        value: int | str | None, total: int, budget: int) -> None:
    assert max_unavailable(value, total) == budget


@given(st.integers(1, 100), st.integers(1, 10_000))
def test_a_percentage_is_the_exact_ceiling(percent: int, total: int) -> None:
    exact = max_unavailable(f"{percent}%", total)
    assert (exact - 1) * 100 < percent * total <= exact * 100
    assert exact == max(1, min(total, math.ceil(percent * total / 100 - 1e-9)))


@pytest.mark.parametrize("text", ["50", "", "x%", "0.5%", "-1%", "%"])
def test_text_that_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="string is not a percentage"):
        max_unavailable(text, 10)


def test_a_rolling_update_takes_down_as_many_as_the_budget_and_the_next_when_one_is_ready() -> None:
    s = stage(nodes=4)
    s.create(dpuset(rolling="50%"))
    s.run(1)
    all_ready(s)
    hold(s)
    retemplate(s, bfb=BfbRef(name="new"))
    s.run(1)
    first = deleting(s)
    assert len(first) == 2
    s.run(60)
    assert deleting(s) == first, "nothing more while they are down"
    let_go(s)
    assert all(s.the(Dpu, n).spec.bfb == "new" for n in first)
    s.run(60)
    assert deleting(s) == []
    s.restatus(Dpu, first[0], READY)
    s.run(1)
    assert len(deleting(s)) == 1, "the third starts the moment the first is Ready, not when the pair is"


def test_on_delete_nothing_happens_until_the_user_deletes() -> None:
    s = stage(nodes=2)
    s.create(dpuset())
    s.run(1)
    all_ready(s)
    retemplate(s, bfb=BfbRef(name="new"), cluster=TemplateCluster(node_labels={"x": "1"}))
    s.run(700)
    assert {s.the(Dpu, n).spec.bfb for n in s.names(Dpu)} == {"old"}
    assert {tuple(s.the(Dpu, n).spec.cluster.node_labels) for n in s.names(Dpu)} == {()}
    s.delete(Dpu, "n1-0")
    s.run(1)
    assert s.the(Dpu, "n1-0").spec.bfb == "new"


def test_outdated_dpus_that_are_down_are_swept_at_once_beyond_the_budget_and_no_healthy_one_is_touched() -> None:
    s = stage(nodes=15)
    s.create(dpuset(rolling="10%"))
    s.run(1)
    all_ready(s)
    for name, status in (("n1-0", ready("False")), ("n2-0", DpuStatus(phase=Phase.ERROR)), ("n3-0", ready("False"))):
        s.restatus(Dpu, name, status)
    s.run(1)
    hold(s)
    retemplate(s, dpu_flavor="other")
    s.run(1)
    assert deleting(s) == ["n1-0", "n2-0", "n3-0"]


def test_ready_unknown_counts_as_available() -> None:
    s = stage(nodes=2)
    s.create(dpuset(rolling=1))
    s.run(1)
    all_ready(s)
    s.restatus(Dpu, "n1-0", ready("Unknown"))
    s.run(1)
    hold(s)
    retemplate(s, bfb=BfbRef(name="new"))
    s.run(1)
    assert len(deleting(s)) == 1


def test_a_missing_dpu_uses_up_the_budget() -> None:
    s = stage(nodes=3, policies=("throttle-initial-create",))
    s.create(dpuset(rolling=1))
    s.run(1)
    s.restatus(Dpu, s.names(Dpu)[0], READY)
    s.run(1)
    hold(s)
    retemplate(s, bfb=BfbRef(name="new"))
    s.run(1)
    swept = deleting(s)
    assert len(swept) == 1, "the one that is not Ready; the Ready one stays, for two of three are down"
    assert s.the(Dpu, swept[0]).status != READY


def test_a_template_changed_back_leaves_the_untouched_dpus_alone() -> None:
    s = stage(nodes=3)
    s.create(dpuset(rolling=1))
    s.run(1)
    all_ready(s)
    hold(s)
    retemplate(s, bfb=BfbRef(name="new"))
    s.run(1)
    (gone,) = deleting(s)
    let_go(s)
    retemplate(s, bfb=BfbRef(name="old"))
    s.run(1)
    assert s.the(Dpu, gone).spec.bfb == "old", "the half-done one is replaced"
    all_ready(s)
    s.run(60)
    assert deleting(s) == []
    assert {s.the(Dpu, n).spec.bfb for n in s.names(Dpu)} == {"old"}


def test_each_pass_deletes_a_dpu_that_is_going_again_unless_the_policy_says_once() -> None:
    for policies, again in (((), 4), (("dpuset-deletes-once",), 1)):
        s = stage(nodes=2, policies=policies)
        s.create(dpuset(rolling=1))
        s.run(1)
        all_ready(s)
        hold(s)
        retemplate(s, bfb=BfbRef(name="new"))
        s.run(1)
        (name,) = deleting(s)
        for i in range(2):
            s.create(device("n1", f"extra{i}"))
            s.run(1)
        ((message, times),) = [(m, n) for _, reason, m, n in s.events("set") if reason == "SuccessfulDelete"]
        assert message == f"Delete DPU: ({SPACE}/{name}) from node {name[:2]}"
        assert times >= again if again > 1 else times == 1


def test_a_failed_deletion_is_a_normal_event_and_an_error() -> None:
    s = stage(nodes=1)
    s.create(dpuset())
    s.run(1)
    server = s.world.host_cluster
    server.lag_ns = 10**9
    s.delete(Dpu, "n1-0")  # the cache learns of it a second later
    server.lag_ns = 0
    s.delete(DpuDevice, "n1-0")
    s.run(0.001)
    assert s.events("set")[-1][:3] == ("Normal", "FailedDelete", f"Failed to delete DPU: ({SPACE}/n1-0) from node n1")
    assert s.error_of("dpuset", f"{SPACE}/set") == 'dpus.provisioning.dpu.nvidia.com "n1-0" not found'


# --- labels, counts, deletion


def test_node_labels_are_merged_into_dpus_and_never_removed() -> None:
    s = stage(nodes=2)
    s.create(dpuset(rolling=1, node_labels={"a": "1", "b": "1"}))
    s.run(1)
    all_ready(s)
    retemplate(s, cluster=TemplateCluster(node_labels={"a": "2", "c": "1"}))
    s.run(1)
    for name in s.names(Dpu):
        dpu = s.the(Dpu, name)
        assert dpu.spec.cluster.node_labels == {"a": "2", "b": "1", "c": "1"}
        assert not dpu.deleting


def test_the_counts_follow_the_phases_and_drop_empty_ones() -> None:
    s = stage(nodes=3)
    s.create(dpuset())
    s.run(1)
    s.restatus(Dpu, "n1-0", DpuStatus(phase=Phase.PENDING))
    s.run(1)
    assert count(s) == {"Initializing": 2, "Pending": 1}
    all_ready(s)
    assert count(s) == {"Ready": 3}


def test_a_change_that_changes_no_answer_costs_no_write() -> None:
    s = stage(nodes=3)
    s.create(dpuset())
    s.run(1)
    all_ready(s)
    before = s.writes("dpuset")
    s.relabel(Dpu, "n1-0", {**s.the(Dpu, "n1-0").metadata.labels, "note": "x"})
    s.run(700)
    assert s.writes("dpuset") == before


def test_a_deleted_set_is_gone_at_once_and_its_dpus_after_it() -> None:
    s = stage(nodes=2)
    s.create(dpuset())
    s.run(1)
    hold(s)
    s.delete(DpuSet, "set")
    s.run(5)
    assert s.names(DpuSet) == []
    assert deleting(s) == ["n1-0", "n2-0"]


def test_a_set_created_again_adopts_by_label_and_makes_them_anew_as_they_vanish() -> None:
    s = stage(nodes=2)
    s.create(dpuset())
    s.run(1)
    hold(s)
    s.delete(DpuSet, "set")
    s.run(5)
    s.create(dpuset())
    s.run(1)
    assert count(s) == {"Initializing": 2}
    let_go(s)
    assert deleting(s) == []
    assert len(s.names(Dpu)) == 2


@pytest.mark.parametrize("seeds", [range(6)])
def test_the_order_of_a_roll_out_depends_on_the_seed_and_on_nothing_else(seeds: range) -> None:
    def order(seed: int) -> tuple[str, ...]:
        s = stage(nodes=6, seed=seed)
        s.create(dpuset(rolling=1))
        s.run(1)
        all_ready(s)
        retemplate(s, bfb=BfbRef(name="new"))
        gone: list[str] = []
        for _ in range(6):
            s.run(1)
            (fresh,) = [n for n in s.names(Dpu) if s.the(Dpu, n).spec.bfb == "new" and n not in gone]
            gone.append(fresh)
            s.restatus(Dpu, fresh, READY)
        return tuple(gone)

    orders = Counter(order(seed) for seed in seeds)
    assert len(orders) >= 5
    assert order(3) in orders
