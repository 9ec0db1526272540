"""DPUDeployment: its DPUSets, its hold on what they use, its conditions (services.md 2.2)."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.services.conditions import ensure, set_false, set_true, summarize
from controllers.services.dpudeployment import consumed_by
from tests.controllers.stage import SPACE, URL, Stage, meta
from twin.model.meta import Key, condition, replace
from twin.model.names import Finalizer, Label
from twin.model.provisioning import (
    Bfb,
    BfbSpec,
    BfbStatus,
    DpuFlavor,
    DpuSet,
    DpuSetStatus,
    LabelSelector,
    NodeEffect,
    RollingUpdate,
)
from twin.model.services import (
    DeploymentChains,
    DeploymentDpus,
    DeploymentDpuSet,
    DeploymentPort,
    DeploymentService,
    DeploymentSwitch,
    DpuDeployment,
    DpuDeploymentSpec,
)

CHAINS = DeploymentChains(switches=(DeploymentSwitch(ports=(
    DeploymentPort(service=DeploymentService(name="s", interface="i")),)),))
CONSUMED = consumed_by(Key(SPACE, "dep"))


def entry(suffix: str, **more: Any) -> DeploymentDpuSet:
    return DeploymentDpuSet(name_suffix=suffix, **more)


def deployment(*entries: DeploymentDpuSet, bfb: str = "b", **more: Any) -> DpuDeployment:
    return DpuDeployment(metadata=meta("dep"), spec=DpuDeploymentSpec(
        dpus=DeploymentDpus(bfb=bfb, flavor="f", dpu_sets=entries, **more), services={}, service_chains=CHAINS))


def stage(**more: Any) -> Stage:
    """With a Ready BFB `b` and a DPUFlavor `f`."""
    s = Stage("dpudeployment", **more)
    bfb(s, "b")
    s.create(DpuFlavor(metadata=meta("f")))
    return s


def bfb(s: Stage, name: str) -> None:
    s.create(Bfb(metadata=meta(name), spec=BfbSpec(url=URL)))
    s.restatus(Bfb, name, BfbStatus(phase="Ready"))


def seen(s: Stage) -> dict[str, tuple[str, str, str]]:
    status = s.the(DpuDeployment, "dep").status
    assert status is not None
    return {c.type: (c.status, c.reason, c.message) for c in status.conditions}


def edit(s: Stage, **dpus: Any) -> None:
    spec = s.the(DpuDeployment, "dep").spec
    assert spec is not None
    s.respec(DpuDeployment, "dep", dpus=replace(spec.dpus, **dpus))
    s.run(1)


def test_the_consumed_by_label_is_upstreams_digest_of_namespace_and_name() -> None:
    assert CONSUMED == "svc.dpu.nvidia.com/consumed-by-dpudeployment-738db274e5"


def test_each_entry_becomes_a_dpuset() -> None:
    s = stage()
    s.create(deployment(
        entry("one", node_selector=LabelSelector(match_labels={"rack": "1"}), dpu_selector={"x": "y"},
              dpu_annotations={"n": "1"}),
        entry("two"), node_effect=NodeEffect(no_effect=True)))
    s.run(1)
    assert s.names(DpuSet) == ["dep-one", "dep-two"]
    made = s.the(DpuSet, "dep-one")
    assert made.metadata.labels == {Label.OWNED_BY_DPUDEPLOYMENT: f"{SPACE}_dep"}
    (owner,) = made.metadata.owner_references
    assert (owner.kind, owner.name, owner.controller) == ("DPUDeployment", "dep", True)
    spec = made.spec
    assert spec.dpu_node_selector == LabelSelector(match_labels={"rack": "1"})
    assert spec.dpu_selector == {"x": "y"}
    assert spec.strategy is not None
    assert spec.strategy.type == "RollingUpdate"
    template = spec.dpu_template
    assert template.annotations == {"n": "1"}
    assert (template.spec.bfb.name, template.spec.dpu_flavor) == ("b", "f")
    assert template.spec.node_effect == NodeEffect(no_effect=True)
    assert template.spec.cluster is not None
    assert template.spec.cluster.node_labels == {Label.OWNED_BY_DPUDEPLOYMENT: f"{SPACE}_dep"}


def test_its_conditions_follow_its_dpusets() -> None:
    s = stage()
    s.create(deployment(entry("one"), entry("two")))
    s.run(1)
    conditions = seen(s)
    assert list(conditions) == ["Ready", "DPUSetsReady", "DPUSetsReconciled", "PrerequisitesReady"]
    assert conditions["PrerequisitesReady"] == ("True", "Success", "")
    assert conditions["DPUSetsReconciled"] == ("True", "Success", "")
    assert conditions["DPUSetsReady"] == (
        "False", "Pending", f"Objects not ready:\n* {SPACE}/dep-one\n* {SPACE}/dep-two")
    assert conditions["Ready"] == ("False", "Pending", "The following conditions are not ready:\n* DPUSetsReady")
    s.restatus(DpuSet, "dep-one", DpuSetStatus(dpu_statistics={"Ready": 2}))
    s.restatus(DpuSet, "dep-two", DpuSetStatus(dpu_statistics={"Ready": 2, "Rebooting": 1}))
    s.run(1)
    assert seen(s)["DPUSetsReady"][2] == f"Objects not ready:\n* {SPACE}/dep-two"
    s.restatus(DpuSet, "dep-two", DpuSetStatus(dpu_statistics={"Ready": 3}))
    s.run(1)
    assert seen(s)["Ready"] == ("True", "Success", "")


@pytest.mark.parametrize(("missing", "message"), [
    ("bfb", ("error while getting provisioning.dpu.nvidia.com/v1alpha1, Kind=BFB dpf-operator-system/b: "
             'BFB.provisioning.dpu.nvidia.com "b" not found')),
    ("ready", "BFB is not ready yet"),
    ("flavor", ("error while getting provisioning.dpu.nvidia.com/v1alpha1, Kind=DPUFlavor dpf-operator-system/f: "
                'DPUFlavor.provisioning.dpu.nvidia.com "f" not found')),
])
def test_without_its_prerequisites_it_makes_nothing_and_says_why(missing: str, message: str) -> None:
    s = Stage("dpudeployment")
    if missing != "bfb":
        bfb(s, "b")
    if missing == "ready":
        s.restatus(Bfb, "b", BfbStatus(phase="Downloading"))
    if missing != "flavor":
        s.create(DpuFlavor(metadata=meta("f")))
    s.create(deployment(entry("one")))
    s.run(30)
    assert seen(s)["PrerequisitesReady"] == (
        "False", "Pending", f"Error occurred: error while getting the DPUDeployment dependencies: {message}")
    assert s.names(DpuSet) == []
    writes = s.writes("dpudeployment")
    s.run(600)
    assert s.writes("dpudeployment") == writes, "a retry that finds the same writes nothing"
    if missing == "bfb":
        bfb(s, "b")
    elif missing == "ready":
        s.restatus(Bfb, "b", BfbStatus(phase="Ready"))
    else:
        s.create(DpuFlavor(metadata=meta("f")))
    s.run(1)
    assert s.names(DpuSet) == ["dep-one"], "its prerequisites are watched"


def test_a_new_bfb_only_patches_the_dpuset_and_the_old_one_is_let_go() -> None:
    s = stage()
    s.create(deployment(entry("one")))
    s.run(1)
    assert Finalizer.DPUDEPLOYMENT in s.the(Bfb, "b").metadata.finalizers
    assert CONSUMED in s.the(Bfb, "b").metadata.labels
    assert CONSUMED in s.the(DpuFlavor, "f").metadata.labels
    uid = s.the(DpuSet, "dep-one").metadata.uid
    bfb(s, "c")
    edit(s, bfb="c")
    assert s.the(DpuSet, "dep-one").metadata.uid == uid
    assert s.the(DpuSet, "dep-one").spec.dpu_template.spec.bfb.name == "c"
    assert s.the(Bfb, "b").metadata.finalizers == ()
    assert s.the(Bfb, "b").metadata.labels == {}
    assert CONSUMED in s.the(Bfb, "c").metadata.labels


def test_a_bfb_used_by_two_deployments_is_held_until_both_let_go() -> None:
    s = stage()
    s.create(deployment(entry("one")))
    s.create(replace(deployment(entry("one")), metadata=meta("other")))
    s.run(1)
    bfb(s, "c")
    edit(s, bfb="c")
    held = s.the(Bfb, "b").metadata
    assert Finalizer.DPUDEPLOYMENT in held.finalizers
    assert list(held.labels) == [consumed_by(Key(SPACE, "other"))]


def test_entries_that_go_take_their_dpusets_with_them_and_others_keep_their_uid() -> None:
    s = stage()
    s.create(deployment(entry("one"), entry("two")))
    s.run(1)
    uid = s.the(DpuSet, "dep-one").metadata.uid
    edit(s, dpu_sets=(entry("one"), entry("three")))
    assert s.names(DpuSet) == ["dep-one", "dep-three"]
    assert s.the(DpuSet, "dep-one").metadata.uid == uid
    edit(s, dpu_sets=())
    assert s.names(DpuSet) == []


def test_a_manual_edit_of_its_fields_is_undone_and_of_others_kept() -> None:
    s = stage()
    s.create(deployment(entry("one", dpu_annotations={"n": "1"})))
    s.run(1)
    made = s.the(DpuSet, "dep-one")
    assert made.spec.strategy is not None
    s.respec(DpuSet, "dep-one", dpu_selector={"mine": "1"}, strategy=replace(
        made.spec.strategy, type="OnDelete", rolling_update=RollingUpdate(max_unavailable=3)))
    s.run(1)
    spec = s.the(DpuSet, "dep-one").spec
    assert spec.strategy is not None
    assert spec.strategy.type == "RollingUpdate"
    assert spec.strategy.rolling_update == RollingUpdate(max_unavailable=3)
    assert spec.dpu_selector == {"mine": "1"}  # nobody else says anything about it (services.md 2.2.4, d12)


def test_equal_suffixes_overwrite_each_other_without_end_unless_the_policy_takes_the_first() -> None:
    for policies, endless in (((), True), (("dpudeployment-first-suffix-wins",), False)):
        s = stage(policies=policies)
        s.world.host_cluster.lag_ns = 10_000_000
        s.create(deployment(entry("one", dpu_annotations={"n": "1"}), entry("one", dpu_annotations={"n": "2"})))
        s.run(1)
        generation = s.the(DpuSet, "dep-one").metadata.generation
        s.run(10)
        grown = s.the(DpuSet, "dep-one").metadata.generation - generation
        assert grown > 100 if endless else grown == 0


def test_a_deleted_deployment_goes_after_its_dpusets_and_then_lets_go_of_the_rest() -> None:
    s = stage()
    s.create(deployment(entry("one")))
    s.run(1)
    made = s.the(DpuSet, "dep-one")
    s.update(replace(made, metadata=replace(made.metadata, finalizers=(Finalizer.DPUSET,))))
    s.run(1)
    s.delete(DpuDeployment, "dep")
    s.run(40)
    assert seen(s)["DPUSetsReconciled"] == (
        "False", "AwaitingDeletion", "There are still 1 DPUSets that are not completely deleted")
    assert seen(s)["Ready"][1] == "AwaitingDeletion"
    assert s.the(DpuSet, "dep-one").deleting
    assert CONSUMED in s.the(Bfb, "b").metadata.labels
    going = s.the(DpuSet, "dep-one")
    s.update(replace(going, metadata=replace(going.metadata, finalizers=())))
    s.run(1)
    assert s.names(DpuDeployment) == s.names(DpuSet) == []
    assert s.the(Bfb, "b").metadata.finalizers == ()


def test_a_flavor_in_use_stays_terminating_until_no_deployment_uses_it() -> None:
    s = stage()
    s.create(deployment())
    s.run(1)
    s.delete(DpuFlavor, "f")
    s.run(60)
    assert s.the(DpuFlavor, "f").deleting
    s.delete(DpuDeployment, "dep")
    s.run(1)
    assert s.names(DpuFlavor) == []


def test_a_settled_deployment_costs_no_writes() -> None:
    s = stage()
    s.create(deployment(entry("one")))
    s.run(1)
    before = s.writes("dpudeployment")
    s.run(1300)
    assert s.writes("dpudeployment") == before


def test_the_summary_takes_the_gravest_reason_and_an_error_counts_as_pending() -> None:
    conditions = ensure((), ("Ready", "A", "B"), 0.0, 1)
    conditions = set_false(set_true(conditions, "A", 0.0, 1), "B", "Error", "x", 0.0, 1)
    found = condition(summarize(conditions, 0.0, 1), "Ready")
    assert found is not None
    assert (found.status, found.reason) == ("False", "Pending")
    conditions = set_false(conditions, "A", "Failure", "y", 0.0, 1)
    found = condition(summarize(conditions, 0.0, 1), "Ready")
    assert found is not None
    assert found.reason == "Failure"
