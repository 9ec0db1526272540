"""Admission of JSON and typed writes, without any recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from twin.backends.base import ApiError, Forbidden, Invalid
from twin.model.core import Node
from twin.model.kinds import from_manifest, to_manifest
from twin.model.meta import Condition, Object, ObjectMeta, replace, set_condition
from twin.model.provisioning import Bfb, BfbSpec, BfbStatus, BfbVersions, Dpu, DpuSet, DpuSpec, NodeEffect
from twin.model.typed import with_defaults
from twin.runtime.webhook import Denied, Webhook
from twin.sim.admission import Webhooks, admit, admit_object, admit_typed, warnings

Json = dict[str, Any]
META = {"name": "a", "namespace": "n"}
DPU_SPEC = {"dpuNodeName": "n", "dpuDeviceName": "d", "bfb": "b"}


def dpu(**status: Any) -> Dpu:
    made: Dpu = with_defaults(Dpu(metadata=ObjectMeta(name="a", namespace="n"),
                                  spec=DpuSpec(dpu_node_name="n", dpu_device_name="d", bfb="b")))
    return replace(made, status=replace(made.status, **status)) if status else made


@dataclass
class Log:
    """A webhook that writes down what it is shown."""

    calls: list[tuple[str, str, Json]] = field(default_factory=list)

    def hooks(self, kind: type[Object] = Bfb) -> Webhooks:
        return Webhooks([Webhook(name, f"/{name}", kind, ("CREATE", "UPDATE"), mutating, self.of(name))
                         for name, mutating in (("v", False), ("m", True))], url="https://w")

    def of(self, name: str) -> Any:
        def decide(operation: str, obj: Json, old: Json | None, reader: Any) -> Json:
            self.calls.append((name, operation, obj))
            return {**obj, "spec": {**obj.get("spec", {}), "url": "http://h/mutated.bfb"}} if name == "m" else obj
        return decide


# --- the order of things


def test_a_write_is_pruned_then_mutated_then_checked_then_validated() -> None:
    log = Log()
    stored = admit(Bfb, {"metadata": META, "spec": {"url": "no", "x": 1}}, None, operation="CREATE",
                   webhooks=log.hooks())
    assert [(name, obj["spec"]["url"], "x" in obj["spec"]) for name, _, obj in log.calls] == [
        ("m", "no", False), ("v", "http://h/mutated.bfb", False)]
    assert stored["spec"] == {"url": "http://h/mutated.bfb"}


def test_what_the_schema_refuses_never_reaches_the_validating_webhook() -> None:
    log = Log()
    hooks = Webhooks([h for h in log.hooks().hooks if not h.mutating])
    with pytest.raises(Invalid):
        admit(Bfb, {"metadata": META, "spec": {"url": "no"}}, None, operation="CREATE", webhooks=hooks)
    assert log.calls == []


def test_a_status_write_calls_no_webhook_and_changes_status_only() -> None:
    log = Log()
    old = {"metadata": META, "spec": {"url": "http://h/a.bfb"}, "status": {"phase": "Initializing"}}
    new = {"metadata": {**META, "labels": {"a": "b"}}, "spec": {"url": "x"}, "status": {"phase": "Ready"}}
    stored = admit(Bfb, new, old, operation="UPDATE", subresource="status", webhooks=log.hooks())
    assert stored == {**old, "status": {"phase": "Ready"}}
    assert log.calls == []


def test_a_plain_write_keeps_the_stored_status() -> None:
    old = {"metadata": META, "spec": {"url": "http://h/a.bfb"}, "status": {"phase": "Ready"}}
    stored = admit(Bfb, {**old, "status": {"phase": "Error"}}, old, operation="UPDATE")
    assert stored["status"] == {"phase": "Ready"}


def test_the_given_object_is_left_as_it_is() -> None:
    new = {"metadata": META, "spec": dict(DPU_SPEC)}
    admit(Dpu, new, None, operation="CREATE")
    assert new == {"metadata": META, "spec": DPU_SPEC}


def test_every_unknown_field_is_named_when_validation_is_strict() -> None:
    new = {"metadata": META, "spec": {**DPU_SPEC, "b": 1, "a": 1}}
    with pytest.raises(ApiError) as refused:
        admit(Dpu, new, None, operation="CREATE", field_validation="Strict")
    assert (refused.value.code, refused.value.reason) == (400, "BadRequest")
    assert str(refused.value).endswith('strict decoding error: unknown field "spec.a", unknown field "spec.b"')
    assert warnings(Dpu, new) == ['unknown field "spec.a"', 'unknown field "spec.b"']


def test_a_number_as_label_value_is_a_bad_request() -> None:
    with pytest.raises(ApiError) as refused:
        admit(Dpu, {"metadata": {**META, "labels": {"a": 1}}, "spec": DPU_SPEC}, None, operation="CREATE")
    assert refused.value.code == 400
    assert "cannot unmarshal number into Go struct field ObjectMeta.labels of type string" in str(refused.value)


def test_an_invalid_answer_lists_its_causes() -> None:
    with pytest.raises(Invalid) as refused:
        admit(Dpu, {"metadata": META, "spec": {**DPU_SPEC, "pciAddress": "x"}}, None, operation="CREATE")
    (cause,) = refused.value.details["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldValueInvalid", "spec.pciAddress")


# --- webhooks' answers


@pytest.mark.parametrize(("denied", "error", "code", "reason"), [
    (Denied("x", 422, "Invalid"), Invalid, 422, "Invalid"),
    (Denied("x", 403, "Forbidden"), Forbidden, 403, "Forbidden"),
    (Denied("x", 400), ApiError, 400, ""), (Denied("x", 500), ApiError, 500, ""),
])
def test_a_denial_keeps_the_code_of_the_webhooks_answer(
        denied: Denied, error: type[ApiError], code: int, reason: str) -> None:
    def decide(*_: Any) -> Json:
        raise denied

    hooks = Webhooks([Webhook("v.kb.io", "/v", Bfb, ("DELETE",), False, decide)])
    with pytest.raises(error) as refused:
        admit(Bfb, {"metadata": META}, {"metadata": META}, operation="DELETE", webhooks=hooks)
    assert (refused.value.code, refused.value.reason) == (code, reason)
    assert str(refused.value) == 'admission webhook "v.kb.io" denied the request: x'


def test_a_webhook_server_that_is_down_fails_writes_of_its_kinds_only() -> None:
    hooks = Log().hooks(Bfb)
    hooks.down = "dial tcp 10.0.0.1:443: connect: connection refused"
    with pytest.raises(ApiError) as refused:
        admit(Bfb, {"metadata": META, "spec": {"url": "http://h/a.bfb"}}, None, operation="CREATE", webhooks=hooks)
    assert refused.value.code == 500
    assert str(refused.value) == (
        'Internal error occurred: failed calling webhook "m": failed to call webhook: Post "https://w/m?timeout=10s": '
        "dial tcp 10.0.0.1:443: connect: connection refused")
    assert admit(Dpu, {"metadata": META, "spec": DPU_SPEC}, None, operation="CREATE", webhooks=hooks)


# --- typed writes


def test_a_typed_write_is_refused_in_the_same_words_as_its_json() -> None:
    old = dpu()
    assert old.status is not None
    for new in (
        replace(old, spec=replace(old.spec, dpu_node_name="other")),
        replace(old, spec=replace(old.spec, pci_address="00:1")),
        replace(old, spec=replace(old.spec, node_effect=NodeEffect(drain=True, hold=True))),
        replace(old, spec=replace(old.spec, dpu_device_name="", node_effect=NodeEffect())),
        replace(old, metadata=replace(old.metadata, labels={"a b": "c d"})),
    ):
        with pytest.raises(Invalid) as typed:
            admit_typed(Dpu, new, old)
        with pytest.raises(Invalid) as by_json:
            admit(Dpu, to_manifest(new) | {"spec": {"dpuDeviceName": "", **to_manifest(new)["spec"]}}, to_manifest(old),
                  operation="UPDATE")
        assert str(typed.value) == str(by_json.value)


def test_a_phase_outside_the_enum_is_refused() -> None:
    with pytest.raises(Invalid, match=r'status\.phase: Unsupported value: "Nonsense"'):
        admit_typed(Dpu, dpu(phase="Nonsense"), dpu(), "status")


def test_a_condition_without_reason_is_refused() -> None:
    bad = Condition(type="Ready", status="True", last_transition_time="2025-01-01T00:00:00Z")
    with pytest.raises(Invalid, match=r"status\.conditions\[0\]\.reason in body should be at least 1 chars long"):
        admit_typed(Dpu, dpu(conditions=(bad,)), dpu(), "status")
    good = set_condition((), "Ready", "True", "DPUReady", "", 0.0)
    admit_typed(Dpu, dpu(conditions=good), dpu(), "status")
    with pytest.raises(Invalid, match='status: Unsupported value: "Maybe"'):
        admit_typed(Dpu, dpu(conditions=(replace(good[0], status="Maybe"),)), dpu(), "status")


def test_a_bad_condition_is_named_by_its_place_behind_good_ones() -> None:
    good = set_condition((), "Initialized", "True", "R", "", 0.0)
    bad = replace(good[0], type="Ready", reason="")
    admit_typed(Dpu, dpu(conditions=(*good, replace(bad, reason="R"))), dpu(conditions=good), "status")
    with pytest.raises(Invalid) as refused:
        admit_typed(Dpu, dpu(conditions=(*good, replace(bad, reason="R"), bad, bad)), dpu(conditions=good), "status")
    assert [c["field"] for c in refused.value.details["causes"] if "at least" in c["message"]] == [
        "status.conditions[2].reason", "status.conditions[3].reason"]


def test_a_value_that_breaks_a_rule_breaks_it_again_whatever_passed_in_between() -> None:
    def write(effect: NodeEffect) -> None:
        admit_typed(Dpu, replace(dpu(), spec=replace(dpu().spec, node_effect=effect)), None)

    for _ in range(2):
        with pytest.raises(Invalid, match="only one of"):
            write(NodeEffect(drain=True, hold=True))
        write(NodeEffect(drain=True))
        write(NodeEffect(drain=True))
        write(NodeEffect(hold=True))


def test_versions_of_a_bfb_are_set_once() -> None:
    empty, first = Bfb(status=BfbStatus()), Bfb(status=BfbStatus(versions=BfbVersions(bsp="4.9.0", doca="2.9.0")))
    admit_typed(Bfb, first, empty, "status")
    with pytest.raises(Invalid) as refused:
        admit_typed(Bfb, Bfb(status=BfbStatus(versions=BfbVersions(bsp="4.9.1", doca="2.9.0"))), first, "status")
    assert str(refused.value).endswith('status.versions.bsp: Invalid value: "string": BSP version is immutable')


def test_a_bfb_without_spec_cannot_be_written_by_a_go_client() -> None:
    """Case a7: stored without spec, then `url: ""` of the finalizer's update is refused for ever."""
    old = Bfb(metadata=ObjectMeta(name="a", namespace="n"))
    new = replace(old, metadata=replace(old.metadata, finalizers=("provisioning.dpu.nvidia.com/bfb-protection",)))
    for write in (lambda: admit_typed(Bfb, new, old),
                  lambda: admit_object(Bfb, new, old, webhooks=Webhooks([Webhook(
                      "v", "/v", Bfb, ("UPDATE",), False, lambda operation, obj, stored, reader: obj)]))):
        with pytest.raises(Invalid) as refused:
            write()
        assert str(refused.value) == (
            'BFB.provisioning.dpu.nvidia.com "a" is invalid: spec.url: Invalid value: "": '
            "spec.url in body should match '^(http|https)://.+\\.bfb$'")


def test_an_object_being_deleted_takes_no_new_finalizer() -> None:
    old = replace(dpu(), metadata=ObjectMeta(name="a", namespace="n", deletion_timestamp="2025-01-01T00:00:00Z",
                                             finalizers=("a/b",)))
    admit_typed(Dpu, replace(old, metadata=replace(old.metadata, finalizers=())), old)
    with pytest.raises(Invalid, match=r'found new finalizers \[\]string{"c/d"}'):
        admit_typed(Dpu, replace(old, metadata=replace(old.metadata, finalizers=("a/b", "c/d"))), old)


def test_a_node_refuses_a_taint_that_a_dpuset_accepted() -> None:
    """Case c10: an unknown effect and an empty key pass the DPUSet's CRD and fail at the Node."""
    old = from_manifest({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w"}})
    new = from_manifest({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w"}, "spec": {"taints": [
        {"key": "", "effect": "Nope"}]}})
    with pytest.raises(Invalid) as refused:
        admit_typed(Node, new, old)
    assert "metadata.taints[0].key: Invalid value: \"\": name part must be non-empty" in str(refused.value)
    assert ('metadata.taints[0].effect: Unsupported value: "Nope": supported values: "NoSchedule", '
            '"PreferNoSchedule", "NoExecute"') in str(refused.value)
    with pytest.raises(Invalid):
        admit_typed(Node, new, from_manifest({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w"}, "spec": {
            "taints": [{"key": "a", "effect": "NoSchedule"}]}}))


def test_a_typed_create_gets_the_schemas_defaults() -> None:
    stored = admit_object(Dpu, Dpu(metadata=ObjectMeta(name="a", namespace="n"), spec=DpuSpec(
        dpu_node_name="n", dpu_device_name="d", bfb="b")), None)
    assert stored.spec.node_effect == NodeEffect(drain=True)
    assert stored.status is not None
    assert stored == with_defaults(stored)
    assert with_defaults(stored) is stored


def test_a_typed_write_of_a_kind_with_webhooks_passes_them() -> None:
    log = Log()
    stored = admit_object(Bfb, Bfb(metadata=ObjectMeta(name="a", namespace="n"), spec=BfbSpec(url="http://h/a.bfb")),
                          None, webhooks=log.hooks())
    assert stored.spec == BfbSpec(url="http://h/mutated.bfb")
    assert [name for name, _, _ in log.calls] == ["m", "v"]
    admit_object(DpuSet, DpuSet(metadata=ObjectMeta(name="a", namespace="n")), None, webhooks=log.hooks())
    assert len(log.calls) == 2
