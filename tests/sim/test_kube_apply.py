"""Server-side apply and JSON patch: texts and results as seen at kube-apiserver v1.34."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.api import SPACE, Api, config, key
from twin.backends.base import ApiError, Conflict, Invalid
from twin.model.core import ConfigMap, Node, Pod
from twin.model.meta import ObjectMeta, replace
from twin.model.provisioning import DpuSet, DpuSetStatus
from twin.sim.fieldset import from_fields, shape_of, to_fields
from twin.sim.jsonpatch import patched
from twin.sim.status import status_body


def manifest(data: dict[str, Any], name: str = "m", **meta: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": SPACE, **meta},
            "data": data}


def owners(obj: Any) -> dict[str, Any]:
    return {f"{e['manager']}/{e['operation']}": e["fieldsV1"] for e in obj.metadata.managed_fields}


def test_an_applied_object_is_made_and_its_fields_are_its_managers() -> None:
    api = Api()
    made = api.apply(manifest({"a": "1"}, labels={"x": "y"}), "one")
    assert made.data == {"a": "1"}
    assert owners(made) == {"one/Apply": {"f:data": {"f:a": {}}, "f:metadata": {"f:labels": {"f:x": {}}}}}


def test_applying_the_same_again_writes_nothing() -> None:
    api = Api()
    made = api.apply(manifest({"a": "1"}), "one")
    before = api.server.resource_version
    api.run()
    assert api.apply(manifest({"a": "1"}), "one") is made
    assert api.server.resource_version == before


def test_what_is_no_longer_applied_goes_unless_somebody_else_applies_it() -> None:
    api = Api()
    api.apply(manifest({"a": "1", "b": "1", "c": "1"}), "one")
    api.apply(manifest({"b": "1"}), "two")
    assert api.apply(manifest({"c": "1"}), "one").data == {"b": "1", "c": "1"}


def test_a_change_of_anothers_field_is_refused_with_his_name() -> None:
    api = Api()
    api.apply(manifest({"a": "1"}), "one")
    with pytest.raises(Conflict) as refused:
        api.apply(manifest({"a": "2"}), "two")
    assert str(refused.value) == 'Apply failed with 1 conflict: conflict with "one": .data.a'
    assert status_body(refused.value) == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Conflict", "code": 409,
        "message": 'Apply failed with 1 conflict: conflict with "one": .data.a',
        "details": {"causes": [
            {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.a"}]}}


def test_several_conflicts_are_listed_by_manager_and_updaters_with_their_version() -> None:
    api = Api(follow_managers=True)
    api.apply(manifest({"a": "1"}), "one")
    api.server.patch(ConfigMap, key("m"), {"data": {"c": "3", "d": "4"}}, "upd", api.env.now)
    with pytest.raises(Conflict) as refused:
        api.apply(manifest({"a": "2", "c": "4", "d": "5"}), "two")
    assert str(refused.value) == (
        'Apply failed with 3 conflicts: conflicts with "one":\n- .data.a\n'
        'conflicts with "upd" using v1:\n- .data.c\n- .data.d')


def test_force_takes_the_fields_from_the_others() -> None:
    api = Api()
    api.apply(manifest({"a": "1", "b": "1"}), "one")
    forced = api.apply(manifest({"a": "2"}), "two", force=True)
    assert forced.data == {"a": "2", "b": "1"}
    assert owners(forced) == {"one/Apply": {"f:data": {"f:b": {}}}, "two/Apply": {"f:data": {"f:a": {}}}}


def test_two_who_apply_the_same_value_share_the_field() -> None:
    api = Api()
    api.apply(manifest({"a": "1"}), "one")
    shared = api.apply(manifest({"a": "1"}), "two")
    assert owners(shared) == {"one/Apply": {"f:data": {"f:a": {}}}, "two/Apply": {"f:data": {"f:a": {}}}}


def test_what_was_there_before_anybody_applied_belongs_to_a_manager_of_that_name() -> None:
    api = Api()
    api.create(config("m", {"a": "1"}))
    with pytest.raises(Conflict, match=r'conflict with "before-first-apply" using v1: \.data\.a'):
        api.apply(manifest({"a": "2"}), "one")


def test_an_update_takes_what_it_changes_from_the_applier() -> None:
    api = Api()
    made = api.apply(manifest({"a": "1", "b": "1"}), "one")
    changed = api.update(replace(made, data={"a": "2"}))
    assert owners(changed) == {"me/Update": {"f:data": {"f:a": {}}}}


def test_a_status_written_by_its_controller_is_managed_apart_and_survives_an_apply() -> None:
    api = Api()
    body = {"apiVersion": DpuSet.api_version(), "kind": "DPUSet", "metadata": {"name": "s", "namespace": SPACE},
            "spec": {"dpuTemplate": {"spec": {
                "bfb": {"name": "b"}, "dpuFlavor": "f", "nodeEffect": {"noEffect": True}}}}}
    made = api.apply(body, "one")
    api.update(replace(made, status=DpuSetStatus(dpu_statistics={"Ready": 1})), status=True)
    again = api.apply({**body, "status": {"dpuStatistics": {"Ready": 9}}}, "one")
    assert again.status.dpu_statistics == {"Ready": 1}
    assert [e.get("subresource") for e in again.metadata.managed_fields] == [None, "status"]


def test_an_undeclared_field_of_a_custom_resource_is_refused_before_anything_else() -> None:
    body = {"apiVersion": DpuSet.api_version(), "kind": "DPUSet", "metadata": {"name": "s", "namespace": SPACE},
            "spec": {"bogus": 1}}
    with pytest.raises(ApiError) as refused:
        Api().apply(body, "one")
    assert (refused.value.code, str(refused.value)) == (500, (
        f"failed to create typed patch object ({SPACE}/s; provisioning.dpu.nvidia.com/v1alpha1, Kind=DPUSet): "
        ".spec.bogus: field not declared in schema"))


def test_conditions_of_several_managers_lie_side_by_side() -> None:
    api = Api()
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    api.create(Node(metadata=ObjectMeta(name="n")))

    def condition(type_: str) -> dict[str, Any]:
        return {**node, "status": {"conditions": [{"type": type_, "status": "True"}]}}

    api.apply(condition("Ready"), "kubelet", status=True)
    both = api.apply(condition("Drained"), "operator", status=True)
    assert [c.type for c in both.status.conditions] == ["Ready", "Drained"]
    left = api.apply({**node, "status": {}}, "kubelet", status=True)
    assert [c.type for c in left.status.conditions] == ["Drained"]


def test_an_apply_needs_a_manager_no_managed_fields_and_a_version_that_holds() -> None:
    api = Api()
    api.apply(manifest({}), "one")
    with pytest.raises(Invalid, match="fieldManager: Required value: is required for apply patch"):
        api.apply(manifest({}), "")
    with pytest.raises(ApiError, match=r"metadata\.managedFields must be nil"):
        api.apply(manifest({}, managedFields=[]), "one")
    with pytest.raises(Conflict, match="the object has been modified"):
        api.apply(manifest({}, resourceVersion="1"), "one")
    with pytest.raises(Conflict, match="uid mismatch: the provided object specified uid x, and no existing object"):
        api.apply(manifest({}, name="new", uid="x"), "one")


def test_fields_are_written_and_read_back_as_fieldsv1() -> None:
    paths = {("f:a",), ("f:a", "f:b"), ("f:c", 'k:{"type":"x"}', "f:d"), ("f:c", 'v:"y"')}
    assert to_fields(paths) == {"f:a": {".": {}, "f:b": {}}, "f:c": {'k:{"type":"x"}': {"f:d": {}}, 'v:"y"': {}}}
    assert from_fields(to_fields(paths)) == paths


def test_ports_of_a_container_are_told_apart_by_number_and_protocol() -> None:
    spec, _ = shape_of(Pod).field("spec")
    ports, _ = spec.field("containers")[0].items().field("ports")
    assert ports.element({"containerPort": 80}) == 'k:{"containerPort":80,"protocol":"TCP"}'


# --- JSON patch


@pytest.mark.parametrize(("operations", "result"), [
    ([{"op": "add", "path": "/data/y", "value": "2"}], {"data": {"x": "1", "y": "2"}, "l": ["a", "b"]}),
    ([{"op": "replace", "path": "/data/none", "value": "n"}], {"data": {"x": "1", "none": "n"}, "l": ["a", "b"]}),
    ([{"op": "move", "from": "/data/x", "path": "/data/y"}], {"data": {"y": "1"}, "l": ["a", "b"]}),
    ([{"op": "copy", "from": "/data/x", "path": "/y"}], {"data": {"x": "1"}, "l": ["a", "b"], "y": "1"}),
    ([{"op": "add", "path": "/l/0", "value": "c"}, {"op": "remove", "path": "/l/1"}, {"op": "add", "path": "/l/-",
     "value": "d"}], {"data": {"x": "1"}, "l": ["c", "b", "d"]}),
    ([{"op": "add", "path": "/a~1b~0c", "value": 1}], {"data": {"x": "1"}, "l": ["a", "b"], "a/b~c": 1}),
    ([{"op": "test", "path": "/data/gone", "value": None}], {"data": {"x": "1"}, "l": ["a", "b"]}),
])
def test_a_json_patch_does_what_the_real_server_makes_of_it(operations: Any, result: Any) -> None:
    document = {"data": {"x": "1"}, "l": ["a", "b"]}
    assert patched(document, operations) == result
    assert document == {"data": {"x": "1"}, "l": ["a", "b"]}


@pytest.mark.parametrize("operation", [
    {"op": "test", "path": "/data/x", "value": "no"}, {"op": "remove", "path": "/data/none"},
    {"op": "add", "path": "/none/a", "value": 1}, {"op": "bogus", "path": "/a"}, {"op": "add", "path": "/l/9"},
    {"op": "add", "path": "data"}, {"op": "move", "path": "/a"}, {"op": "replace", "path": "/l/x", "value": 1},
])
def test_a_json_patch_that_does_not_fit_is_refused_without_a_reason(operation: Any) -> None:
    with pytest.raises(Invalid) as refused:
        patched({"data": {"x": "1"}, "l": ["a"]}, [operation])
    body = status_body(refused.value)
    assert (body["message"], body["details"]) == ("the server rejected our request due to an error in our request", {})


def test_a_json_patch_goes_through_admission_and_cannot_rename() -> None:
    api = Api()
    api.create(config("m", {"a": "1"}))
    changed = api.server.json_patch(ConfigMap, key("m"), [{"op": "remove", "path": "/data/a"}], "me", 0)
    assert changed.data == {}  # type: ignore[attr-defined]
    for operation, message in (
            ({"op": "replace", "path": "/metadata/name", "value": "z"},
             r"the name of the object \(z\) does not match the name on the URL \(m\)"),
            ({"op": "add", "path": "/data", "value": {"a": 5}}, "cannot be handled as a ConfigMap"),
            ({"op": "add", "path": "/metadata/labels", "value": {"a": "not a value"}}, "a valid label must be")):
        with pytest.raises(ApiError, match=message):
            api.server.json_patch(ConfigMap, key("m"), [operation], "me", 0)
