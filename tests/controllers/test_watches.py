"""What a watch promises of its own functions, so that they need not be asked, is true."""

from __future__ import annotations

from typing import Any

import pytest

from controllers import CONTROLLERS
from controllers.provisioning.dpuset import WATCH_NODES
from controllers.provisioning.node import SELF_HEAL
from tests.controllers.stage import SPACE, Stage, meta
from twin.model.meta import Object, OwnerReference, replace
from twin.model.provisioning import Dpu, DpuSet, DpuSpec, DpuStatus
from twin.runtime.reconcile import Reconciler, Watch


def watches() -> list[tuple[Reconciler, Watch]]:
    stage = Stage(*(c.name for c in CONTROLLERS), policies=(WATCH_NODES, SELF_HEAL))
    return [(r.reconciler, w) for m in stage.world.managers.values() for r in m.runners.values()
            for w in r.reconciler.watches]


WATCHES = watches()


def named(which: list[tuple[Reconciler, Watch]]) -> Any:
    return pytest.mark.parametrize(
        ("reconciler", "watch"), which, ids=[f"{r.name}-{w.kind.KIND}" for r, w in which])


@named([(r, w) for r, w in WATCHES if w.unchanged is not None])
def test_a_watch_that_says_what_its_filter_makes_of_an_unchanged_object_is_right(
        reconciler: Reconciler, watch: Watch) -> None:
    bare: Object = watch.kind(metadata=meta("x"))
    full = watch.kind(metadata=meta("x", labels={"a": "1"}, annotations={"b": "2"}, resource_version="7"))
    assert watch.when is not None
    assert [watch.when(obj, obj) for obj in (bare, full)] == [watch.unchanged] * 2


def dpu_versions() -> list[Dpu]:
    """A DPU, and what it looks like after a change of one part."""
    owner = DpuSet(metadata=meta("s", uid="1")).owner_reference()
    dpu = Dpu(metadata=meta("d", owner_references=(owner,)),
              spec=DpuSpec(dpu_node_name="n", dpu_device_name="d", bfb="b", dpu_flavor="f"))
    changes: list[dict[str, Any]] = [
        {"labels": {"a": "1"}}, {"annotations": {"a": "1"}}, {"finalizers": ("f",)}, {"resource_version": "9"},
        {"deletion_timestamp": "2025-05-01T00:00:00Z"}, {"owner_references": ()},
        {"owner_references": (OwnerReference(api_version="v1", kind="DPUSet", name="t", uid="2", controller=True),)}]
    return [dpu, replace(dpu, status=DpuStatus(phase="Ready")), replace(dpu, spec=replace(dpu.spec, bfb="c")),
            replace(dpu, spec=replace(dpu.spec, dpu_node_name="m")),
            *(replace(dpu, metadata=replace(dpu.metadata, **change)) for change in changes)]


@named([(r, w) for r, w in WATCHES if w.by is not None and w.kind is Dpu])
def test_versions_with_the_same_part_wake_the_same_keys(reconciler: Reconciler, watch: Watch) -> None:
    assert watch.by is not None
    assert watch.to is not None
    old, *others = dpu_versions()
    keys = list(watch.to(reconciler, old))
    assert [k.namespace for k in keys] == [SPACE]
    same = [new for new in others if watch.by(new) is watch.by(old)]
    assert all(list(watch.to(reconciler, new)) == keys for new in same)
    assert any(list(watch.to(reconciler, new)) != keys for new in others if new not in same)
    assert len(same) >= 6


def test_the_promises_are_checked_for_every_controller_that_makes_them() -> None:
    assert {(r.name, w.kind.KIND) for r, w in WATCHES if w.by is not None} == {("dpuset", "DPU"), ("dpunode", "DPU")}
