"""Node effects: applied, waited for, lifted (provisioning.md 6)."""

from __future__ import annotations

from typing import Any

import pytest
from dpu_bench import Bench, meta

from twin.model.core import ConfigMap, Job, JobStatus, Node, NodeMaintenance, NodeMaintenanceSpec, NodeMaintenanceStatus
from twin.model.meta import Condition, Object, format_time, replace
from twin.model.names import Annotation
from twin.model.provisioning import Dpu, DpuNode, NodeEffect, Phase, Taint
from twin.sim.clock import EPOCH

DRAIN = NodeEffect(drain=True)
TAINT = Taint(key="dpu", value="provisioning", effect="NoSchedule")


def effect(what: NodeEffect | None, phase: str = Phase.NODE_EFFECT, **more: Any) -> Bench:
    bench = Bench(**more)
    bench.at(phase, node_effect=what)
    return bench


def said(bench: Bench) -> tuple[str, str, str]:
    return bench.is_("NodeEffectReady")


def passed(bench: Bench) -> bool:
    return said(bench) == ("True", "NodeEffectReady", "")


def worker(bench: Bench) -> Node:
    return bench.get(Node, bench.host, "")


def put(bench: Bench, obj: Object) -> None:
    bench.kube.update(obj, "test", bench.env.now)


# --- none


@pytest.mark.parametrize("what", [NodeEffect(no_effect=True), NodeEffect(no_effect=False), NodeEffect(drain=False),
                                  NodeEffect(hold=False)])
def test_no_effect_passes_at_once_whatever_says_so(what: NodeEffect) -> None:
    assert passed(effect(what).run(0.1))


def test_no_effect_needs_no_node_at_all() -> None:
    bench = effect(NodeEffect(no_effect=True))
    bench.delete(DpuNode, bench.host)
    assert passed(bench.run(0.1))


def test_a_false_effect_still_needs_the_worker_in_ready() -> None:
    bench = effect(NodeEffect(drain=False), Phase.READY)
    bench.node()
    bench.delete(Node, bench.host, "")
    bench.run(1)
    assert bench.is_("Ready") == ("False", "NodeEffectError", f'Node "{bench.host}" not found')
    assert bench.phase() == Phase.ERROR


# --- the worker


@pytest.mark.parametrize("what", [NodeEffect(taint=TAINT), NodeEffect(custom_label={"a": "b"}), DRAIN])
def test_a_host_outside_kubernetes_cannot_have(what: NodeEffect) -> None:
    bench = effect(what, host={"kubernetes": False})
    bench.run(600)
    kind = next(k for k in ("taint", "customLabel", "drain") if getattr(what, k.replace("L", "_l")) is not None)
    assert said(bench) == (
        "False", "InvalidNodeEffect", f"node effect ({kind}) is not supported for non k8s environment")
    assert bench.phase() == Phase.NODE_EFFECT


def test_a_missing_worker_is_waited_for() -> None:
    bench = effect(DRAIN)
    bench.delete(Node, bench.host, "")
    bench.run(30)
    assert said(bench) == ("False", "NodeNotFound", f'Node "{bench.host}" not found')


def test_a_missing_dpunode_is_waited_for() -> None:
    bench = effect(DRAIN)
    bench.delete(DpuNode, bench.host)
    bench.run(30)
    assert said(bench)[:2] == ("False", "DPUNodeNotFound")


# --- taint


def test_a_taint_is_put_on_the_worker_and_nobody_waits() -> None:
    bench = effect(NodeEffect(taint=TAINT)).run(0.1)
    assert worker(bench).spec.taints == (TAINT,)
    assert passed(bench)


def test_a_taint_of_the_same_key_is_kept_as_it_is_and_removed_in_ready() -> None:
    theirs = Taint(key="dpu", value="theirs", effect="NoExecute")
    bench = effect(NodeEffect(taint=TAINT))
    put(bench, replace(worker(bench), spec=replace(worker(bench).spec, taints=(theirs,))))
    bench.run(0.1)
    assert worker(bench).spec.taints == (theirs,)
    bench = effect(NodeEffect(taint=TAINT), Phase.READY)
    bench.node()
    put(bench, replace(worker(bench), spec=replace(worker(bench).spec, taints=(theirs,))))
    bench.run(0.1)
    assert worker(bench).spec.taints == ()


def test_a_taint_that_the_server_refuses_is_told() -> None:
    bench = effect(NodeEffect(taint=TAINT))
    bench.refuse("update")
    bench.run(1)
    assert said(bench)[:2] == ("False", "NodeEffectReady")
    assert said(bench)[2].endswith("connection refused")


def test_a_taint_that_cannot_be_lifted_in_ready_ends_in_error() -> None:
    bench = effect(NodeEffect(taint=TAINT), Phase.READY)
    bench.node()
    put(bench, replace(worker(bench), spec=replace(worker(bench).spec, taints=(TAINT,))))
    bench.refuse("update")
    bench.run(0.1)
    assert bench.phase() == Phase.ERROR
    assert bench.is_("Ready")[:2] == ("False", "NodeEffectError")


# --- customLabel


def test_a_label_goes_to_the_dpunode_and_stays_in_ready() -> None:
    bench = effect(NodeEffect(custom_label={"a": "b"})).run(0.1)
    assert bench.get(DpuNode, bench.host).metadata.labels["a"] == "b"
    assert "a" not in worker(bench).metadata.labels
    assert passed(bench)
    bench = effect(NodeEffect(custom_label={"a": "b"}), Phase.READY)
    bench.node()
    bench.patch(DpuNode, bench.host, {"metadata": {"labels": {"a": "b"}}})
    bench.run(6)
    assert bench.get(DpuNode, bench.host).metadata.labels["a"] == "b"


def test_a_label_is_taken_from_the_core_node_when_the_dpu_goes() -> None:
    bench = effect(NodeEffect(custom_label={"a": "b"}), Phase.READY)
    bench.patch(Node, bench.host, {"metadata": {"labels": {"a": "theirs", "c": "d"}}}, "")
    bench.delete(Dpu, bench.name)
    bench.run(5)
    assert bench.gone(Dpu, bench.name)
    assert worker(bench).metadata.labels == {"c": "d"}


def test_a_label_that_the_server_refuses_is_told() -> None:
    bench = effect(NodeEffect(custom_label={"bad label": "b"})).run(1)
    assert said(bench)[:2] == ("False", "NodeEffectReady")


# --- drain


def maintenance(bench: Bench) -> NodeMaintenance:
    return bench.get(NodeMaintenance, bench.host)


def drained(bench: Bench, status: str = "True") -> None:
    condition = Condition(type="Ready", status=status, reason="Ready", last_transition_time="2025-05-01T00:00:00Z")
    bench.stored(bench.host, NodeMaintenanceStatus(conditions=(condition,)), NodeMaintenance)


def test_the_default_asks_the_maintenance_operator() -> None:
    bench = effect(None).run(20)
    made = maintenance(bench)
    assert made.spec.requestor_id == "dpu.nvidia.com"
    assert made.spec.additional_requestors == ("provisioning.dpu.nvidia.com",)
    assert (made.spec.node_name, made.spec.cordon) == (bench.host, True)
    drain = made.spec.drain_spec
    assert drain is not None
    assert (drain.force, drain.delete_empty_dir, drain.timeout_seconds) == (True, True, 300)
    assert drain.pod_selector == "provisioning.dpu.nvidia.com/component!=dms"
    (owner,) = made.metadata.owner_references
    assert (owner.kind, owner.name, owner.controller) == ("DPU", bench.name, True)
    assert said(bench)[:2] == ("False", "NodeMaintenanceIsNotReady")
    drained(bench, "False")
    bench.run(20)
    assert bench.phase() == Phase.NODE_EFFECT
    drained(bench)
    bench.run(6)
    assert passed(bench)


def test_a_maintenance_that_cannot_be_asked_for_is_tried_again() -> None:
    bench = effect(DRAIN)
    bench.refuse("create")
    bench.run(20)
    assert said(bench)[:2] == ("False", "ErrorOccured")
    assert bench.phase() == Phase.NODE_EFFECT


def other(bench: Bench, requestors: tuple[str, ...] = ()) -> NodeMaintenance:
    return bench.create(NodeMaintenance(metadata=meta(bench.host, finalizers=("maintenance.nvidia.com/finalizer",)),
                                        spec=NodeMaintenanceSpec(requestor_id="else.example.com", node_name=bench.host,
                                                                 additional_requestors=requestors)))


def test_somebody_elses_maintenance_is_joined() -> None:
    bench = effect(DRAIN)
    other(bench, ("x.example.com",))
    bench.run(1)
    assert maintenance(bench).spec.additional_requestors == ("x.example.com", "provisioning.dpu.nvidia.com")
    assert said(bench)[:2] == ("False", "NodeMaintenanceIsNotReady")


def test_a_maintenance_that_is_being_deleted_is_joined_all_the_same() -> None:
    bench = effect(DRAIN)
    other(bench)
    bench.delete(NodeMaintenance, bench.host)
    bench.run(1)
    assert maintenance(bench).deleting
    assert maintenance(bench).spec.additional_requestors == ("provisioning.dpu.nvidia.com",)


def test_a_maintenance_that_cannot_be_joined_ends_in_error() -> None:
    bench = effect(DRAIN)
    other(bench)
    bench.refuse("patch")
    bench.run(1)
    assert said(bench)[:2] == ("False", "ErrorOccured")
    assert bench.phase() == Phase.ERROR


def test_ready_withdraws_the_request_before_it_deletes() -> None:
    bench = effect(DRAIN, Phase.READY)
    bench.node()
    other(bench, ("provisioning.dpu.nvidia.com", "x.example.com"))
    bench.run(0.1)
    assert bench.writes[:2] == ["patch", "delete"]
    assert maintenance(bench).spec.additional_requestors == ("x.example.com",)
    assert maintenance(bench).deleting
    told = len(bench.writes)
    bench.run(30)
    assert bench.writes[told:] == []


def pair(*policies: str) -> tuple[Bench, str]:
    """Two DPUs of one host: the first is Ready, the second asks for a drain."""
    bench = Bench(dpus_per_host=2, policies=policies)
    second = bench.fleet.cards[1].name
    bench.at(Phase.READY, node_effect=DRAIN)
    bench.node()
    bench.at(Phase.NODE_EFFECT, name=second, node_effect=DRAIN)
    return bench, second


def test_a_ready_sibling_ends_the_maintenance_that_another_dpu_waits_for() -> None:
    bench, second = pair()
    bench.run(2)
    first = maintenance(bench)
    bench.run(20)
    assert bench.gone(NodeMaintenance, bench.host) or maintenance(bench).metadata.uid != first.metadata.uid
    assert bench.phase(second) == Phase.NODE_EFFECT


def test_under_the_policy_the_effect_stays_while_a_sibling_needs_it() -> None:
    bench, second = pair("node-effect-ref-count")
    bench.run(2)
    first = maintenance(bench)
    bench.run(20)
    assert maintenance(bench).metadata.uid == first.metadata.uid
    drained(bench)
    bench.run(6)
    assert bench.phase(second) != Phase.NODE_EFFECT
    assert not bench.gone(NodeMaintenance, bench.host)


def test_under_the_policy_the_maintenance_outlives_the_dpu_that_asked_first() -> None:
    for policies, survives in ((("node-effect-ref-count",), True), ((), False)):
        bench = Bench(dpus_per_host=2, policies=policies)
        second = bench.fleet.cards[1].name
        bench.at(Phase.NODE_EFFECT, node_effect=DRAIN)
        bench.run(1)
        made = maintenance(bench)
        bench.at(Phase.NODE_EFFECT, name=second, node_effect=DRAIN)
        bench.run(1)
        bench.delete(Dpu, bench.name)
        bench.run(20)
        assert bench.gone(Dpu, bench.name)
        kept = not bench.gone(NodeMaintenance, bench.host) and maintenance(bench).metadata.uid == made.metadata.uid
        assert kept == survives


# --- customAction


def action(bench: Bench, data: dict[str, str] | None = None) -> Bench:
    bench.create(ConfigMap(metadata=meta("my-actions-are-long"), data=data if data is not None else {
        "pod.yaml": "metadata: {labels: {a: b}}\nspec: {containers: [{name: x}]}"}))
    bench.at(Phase.NODE_EFFECT, node_effect=NodeEffect(custom_action="my-actions-are-long"))
    return bench


def the_job(bench: Bench) -> Job:
    (job,) = (j for j in bench.kube.table(Job).values() if isinstance(j, Job))
    return job


def job_says(bench: Bench, *types: str, start: float = 0.0) -> None:
    conditions = tuple(Condition(type=t, status="True") for t in types)
    bench.stored(the_job(bench).metadata.name, JobStatus(
        conditions=conditions, start_time=format_time(EPOCH + start)), Job)


def test_an_action_runs_as_a_job_with_the_sheets_name() -> None:
    bench = action(Bench()).run(20)
    assert bench.reasons() == ["JobIsStarted", "JobIsNotFinished"]
    job = the_job(bench)
    created = f"{int(EPOCH * 1000):x}"
    assert job.metadata.name == f"custom-action-my-actions-are--worker1-0000-2b-{created}"
    assert job.spec.backoff_limit == 0
    assert job.spec.template == {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "x"}]}}
    assert said(bench)[:2] == ("False", "JobIsNotFinished")
    job_says(bench, "Complete")
    bench.run(6)
    assert passed(bench)


def test_a_failed_action_ends_in_error() -> None:
    bench = action(Bench()).run(1)
    job_says(bench, "Failed")
    bench.run(6)
    assert said(bench)[:2] == ("False", "FailedToProcessJobConditions")
    assert bench.phase() == Phase.ERROR
    bench.run(1)
    assert not bench.kube.table(Job)


def test_an_action_with_other_conditions_is_given_up_ten_minutes_after_its_start() -> None:
    bench = action(Bench()).run(1)
    job_says(bench, "Suspended", start=1.0)
    bench.run(595)
    assert said(bench)[:2] == ("False", "JobIsNotFinished")
    bench.run(12)
    assert said(bench)[:2] == ("False", "FailedToProcessJobConditions")
    assert bench.phase() == Phase.ERROR


def test_an_action_without_conditions_is_waited_for_without_end() -> None:
    bench = action(Bench()).run(24 * 3600)
    assert said(bench)[:2] == ("False", "JobIsNotFinished")


@pytest.mark.parametrize("data", [{}, {"pod.json": "{}"}, {"pod.yaml": "a: ["}, {"pod.yaml": "just text"},
                                  {"pod.yaml": "metadata: {}"}])
def test_what_holds_no_pod_makes_no_job(data: dict[str, str]) -> None:
    bench = action(Bench(), data).run(30)
    assert said(bench)[:2] == ("False", "FailedToCreateJob")
    assert bench.phase() == Phase.NODE_EFFECT


def test_a_missing_configmap_makes_no_job() -> None:
    bench = effect(NodeEffect(custom_action="absent")).run(30)
    assert said(bench) == ("False", "FailedToCreateJob", 'ConfigMap "absent" not found')


def test_the_job_goes_with_the_dpu() -> None:
    bench = action(Bench()).run(1)
    bench.delete(Dpu, bench.name)
    bench.run(5)
    assert bench.gone(Dpu, bench.name)
    assert not bench.kube.table(Job)


# --- hold


def annotate(bench: Bench, value: str | None) -> None:
    bench.patch(Dpu, bench.name, {"metadata": {"annotations": {Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT: value}}})


def held(bench: Bench) -> str:
    return bench.get(Dpu, bench.name).metadata.annotations[Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT]


def test_a_hold_lasts_until_its_annotation_is_false() -> None:
    bench = effect(NodeEffect(hold=True)).run(60)
    assert held(bench) == "true"
    assert said(bench)[:2] == ("False", "ExternalNodeEffect")
    annotate(bench, "false")
    bench.run(0.1)
    assert passed(bench)


def test_removing_the_annotation_sets_it_again() -> None:
    bench = effect(NodeEffect(hold=True)).run(1)
    annotate(bench, None)
    bench.run(1)
    assert held(bench) == "true"
    assert bench.phase() == Phase.NODE_EFFECT


def test_a_value_that_is_no_bool_holds() -> None:
    bench = effect(NodeEffect(hold=True)).run(1)
    annotate(bench, "released")
    bench.run(1)
    assert said(bench) == ("False", "ExternalNodeEffect", 'strconv.ParseBool: parsing "released": invalid syntax')


def test_an_annotation_that_cannot_be_written_is_told() -> None:
    bench = effect(NodeEffect(hold=True))
    bench.refuse("patch")
    bench.run(1)
    assert said(bench)[1] == "ExternalNodeEffect"
    assert said(bench)[2].endswith("connection refused")


def test_a_host_outside_kubernetes_may_hold_and_ends_in_error_once_ready() -> None:
    bench = effect(NodeEffect(hold=True), host={"kubernetes": False}).run(1)
    annotate(bench, "0")
    assert passed(bench.run(0.1))
    bench = effect(NodeEffect(hold=True), Phase.READY, host={"kubernetes": False})
    bench.node()
    bench.run(1)
    assert bench.phase() == Phase.ERROR
    assert bench.is_("Ready")[1] == "NodeEffectError"


