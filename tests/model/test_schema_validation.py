"""Prune, default, validate and CEL on JSON-like objects, without any recording."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from twin.model import fielderror as fe
from twin.model.cel import broken, native
from twin.model.kinds import KINDS
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuDeviceSpec, DpuFlavor, DpuNode, DpuSet
from twin.model.rules import ABSENT, Cel
from twin.model.schema import has_crd
from twin.model.services import DpuDeployment, DpuService, DpuServiceConfiguration
from twin.model.validation import fill_defaults, go_regex, prune, rule_errors, same, schema_errors, violations

Json = dict[str, Any]
OURS = [kind for kind in KINDS.values() if has_crd(kind)]


def texts(errors: list[fe.FieldError]) -> list[str]:
    return [str(e) for e in errors]


# --- pruning


def test_unknown_fields_go_at_every_depth_and_are_named() -> None:
    obj = {"kind": "DPUFlavor", "foo": 1, "metadata": {"name": "a", "bar": 1},
           "spec": {"x": 1, "nvconfig": [{"device": "*", "y": 2}], "dpuResources": {"cpu": 1}}}
    out, unknown = prune(DpuFlavor, obj)
    assert out == {"kind": "DPUFlavor", "metadata": {"name": "a"},
                   "spec": {"nvconfig": [{"device": "*"}], "dpuResources": {"cpu": 1}}}
    assert [fe.path_text(p) for p in unknown] == ["foo", "metadata.bar", "spec.nvconfig[0].y", "spec.x"]
    assert obj["foo"] == 1


def test_free_form_values_stay_and_an_empty_object_takes_nothing() -> None:
    service = {"spec": {"helmChart": {"values": {"deep": [{"x": 1}]}}}}
    assert prune(DpuService, service)[0] == service
    assert prune(DpuNode, {"spec": {"nodeRebootMethod": {"gNOI": {"x": 1}}}})[0] == {
        "spec": {"nodeRebootMethod": {"gNOI": {}}}}


# --- defaults


def test_defaults_fill_absent_and_null_fields_but_not_false_ones() -> None:
    obj: Json = {"spec": {"dpuNodeName": "n", "nodeEffect": None}}
    fill_defaults(Dpu, obj)
    assert obj["spec"]["nodeEffect"] == {"drain": True}
    assert obj["status"] == {"phase": "Initializing"}
    kept: Json = {"spec": {"nodeEffect": {"drain": False}}}
    fill_defaults(Dpu, kept)
    assert kept["spec"]["nodeEffect"] == {"drain": False}


def test_a_default_is_a_copy() -> None:
    first: Json = {"spec": {}}
    fill_defaults(Dpu, first)
    first["spec"]["nodeEffect"]["hold"] = True
    second: Json = {"spec": {}}
    fill_defaults(Dpu, second)
    assert second["spec"]["nodeEffect"] == {"drain": True}


def test_no_default_is_filled_in_where_the_parent_is_absent() -> None:
    obj: Json = {"metadata": {}}
    fill_defaults(DpuSet, obj)
    assert obj == {"metadata": {}}
    nested: Json = {"spec": {"dpuTemplate": {"spec": {}}}}
    fill_defaults(DpuSet, nested)
    assert nested["spec"]["dpuTemplate"]["spec"] == {"nodeEffect": {"drain": True}}


# --- schema


CASES: list[tuple[type, Json, list[str]]] = [
    (DpuCluster, {"spec": {"type": "static"}}, ["spec.version: Required value"]),
    (DpuCluster, {"spec": {"type": "openshift", "version": "v"}},
     ['spec.type: Invalid value: "openshift": spec.type in body should match \'kamaji|static|[^/]+/.*\'']),
    (DpuCluster, {"spec": {"type": "static", "version": 1, "maxNodes": True}},
     ['spec.maxNodes: Invalid value: "boolean": spec.maxNodes in body must be of type integer: "boolean"',
      'spec.version: Invalid value: "integer": spec.version in body must be of type string: "integer"']),
    (DpuCluster, {"spec": {"type": "static", "version": "", "maxNodes": 0}},
     ["spec.maxNodes: Invalid value: 0: spec.maxNodes in body should be greater than or equal to 1"]),
    (DpuCluster, {"spec": {"type": "static", "version": "", "maxNodes": 1.5}},
     ['spec.maxNodes: Invalid value: "number": spec.maxNodes in body must be of type integer: "number"']),
    (DpuFlavor, {"spec": {"dpuResources": {"cpu": True}}},
     [('spec.dpuResources.cpu: Invalid value: "boolean": spec.dpuResources.cpu in body must be of type '
       'integer,string: "boolean"'),
      '<nil>: Invalid value: "": "spec.dpuResources.cpu" must validate at least one schema (anyOf)',
      ('spec.dpuResources.cpu: Invalid value: "boolean": spec.dpuResources.cpu in body must be of type integer: '
      '"boolean"')]),
    (DpuFlavor, {"spec": {"dpuMode": "x"}},
     ['spec.dpuMode: Unsupported value: "x": supported values: "dpu", "zero-trust", "nic"']),
    (DpuNode, {"spec": {"dpus": [{"name": "a"}, {"name": ""}, {}]}},
     ['spec.dpus[1].name: Invalid value: "": spec.dpus[1].name in body should be at least 1 chars long',
      "spec.dpus[2].name: Required value"]),
    (DpuNode, {"spec": []}, ['spec: Invalid value: "array": spec in body must be of type object: "array"']),
    (DpuNode, {"status": {"conditions": [{"type": "R", "status": "True", "reason": "R", "message": "",
                                          "lastTransitionTime": "yesterday"}]}},
     [('status.conditions[0].lastTransitionTime: Invalid value: "yesterday": status.conditions[0].lastTransitionTime '
      'in body must be of type date-time: "yesterday"')]),
    (DpuDeployment, {"spec": {"dpus": {"bfb": "b", "flavor": "f"}, "services": {"a": {"serviceTemplate": "t"}},
                              "serviceChains": {"switches": []}}},
     ["spec.serviceChains.switches: Invalid value: 0: spec.serviceChains.switches in body should have at least 1 items",
      "spec.services.a.serviceConfiguration: Required value"]),
]


@pytest.mark.parametrize(("kind", "obj", "want"), CASES, ids=[case[2][0][:40] for case in CASES])
def test_a_mistake_is_told_in_the_servers_words(kind: Any, obj: Json, want: list[str]) -> None:
    assert texts(schema_errors(kind, obj)) == want


def test_an_update_is_not_blamed_for_a_mistake_it_leaves_alone() -> None:
    old: Json = {"spec": {"url": "ftp://x", "fileName": "bad"}}
    assert schema_errors(Bfb, old, old) == []
    changed = {"spec": {"url": "ftp://x", "fileName": "worse"}}
    assert [e.path for e in schema_errors(Bfb, changed, old)] == [("spec", "fileName")]
    assert len(schema_errors(Bfb, changed)) == 2


def test_one_and_true_are_not_the_same_to_an_update() -> None:
    old: Json = {"spec": {"drain": True}}
    assert schema_errors(Dpu, {"spec": {"nodeEffect": {"drain": 1}}}, {"spec": {"nodeEffect": {"drain": True}}})
    assert same(old, {"spec": {"drain": True}})
    assert not same(old, {"spec": {"drain": 1}})
    assert not same([0], [False])


def test_a_null_is_an_absent_field() -> None:
    assert prune(Dpu, {"spec": {"bfb": None, "cluster": {"nodeLabels": {"a": None}}}}) == (
        {"spec": {"cluster": {"nodeLabels": {}}}}, [])


def test_go_patterns_mean_in_python_what_they_mean_in_go() -> None:
    assert not go_regex("^a$").search("a\n")
    assert not go_regex(r"^\d$").search("٣")
    assert go_regex("^[[:xdigit:]]+$").search("aF0")


# --- CEL


def test_a_transition_rule_needs_an_old_value() -> None:
    new: Json = {"spec": {"url": "http://a/b.bfb", "fileName": "a.bfb"}}
    assert rule_errors(Bfb, new) == []
    assert rule_errors(Bfb, new, {"spec": {"url": "http://a/b.bfb"}}) == []
    assert texts(rule_errors(Bfb, new, {"spec": {"url": "http://a/c.bfb"}})) == [
        'spec.url: Invalid value: "string": Value is immutable']


def test_removing_an_immutable_field_is_not_seen() -> None:
    assert rule_errors(Bfb, {"spec": {}}, {"spec": {"fileName": "a.bfb"}}) == []


def test_exactly_one_node_effect_by_presence() -> None:
    for effect, good in (({}, False), ({"drain": False}, True), ({"hold": True, "drain": True}, False),
                         ({"customLabel": {}}, True)):
        assert (rule_errors(Dpu, {"spec": {"nodeEffect": effect}}) == []) is good, effect


def test_a_rule_that_cannot_be_evaluated_refuses_and_says_why() -> None:
    obj: Json = {"spec": {"interfaces": [{"name": "a", "network": "b"}], "upgradePolicy": {"applyNodeEffect": True}}}
    assert texts(rule_errors(DpuServiceConfiguration, obj)) == [
        ('spec: Invalid value: "object": no such key: serviceConfiguration evaluating rule: '
        "interfaces are not supported when deploying in cluster")]


def test_a_whole_immutable_spec_compares_deeply() -> None:
    old: Json = {"spec": {"nvconfig": [{"parameters": ["a"]}]}}
    assert rule_errors(DpuFlavor, {"spec": {"nvconfig": [{"parameters": ["a"]}]}}, old) == []
    assert texts(rule_errors(DpuFlavor, {"spec": {"nvconfig": [{"parameters": ["b"]}]}}, old)) == [
        'spec: Invalid value: "object": DPUFlavor spec is immutable']


def test_equality_is_answered_as_the_interpreter_would() -> None:
    same = Cel("self == oldSelf", "no")
    for a, b in ((1, 1), (1, 2), ("a", "a"), ({"a": [1]}, {"a": [1]}), ({"a": 1}, {"a": 2})):
        by_cel = native().compile("self == oldSelf").execute({"self": a, "oldSelf": b})
        assert (broken(same, a, b) == "") == by_cel


# --- violations: for people


def test_all_mistakes_of_a_manifest_at_once_with_their_places() -> None:
    found = violations(DpuSet, {"spec": {
        "nodeSelector": {}, "strategy": {"type": "Recreate"}, "dpuSelector": {"a": 1}, "dpuTemplate": {"spec": {
            "bfb": "name"}}}})
    assert [(v.path, v.rule, v.value) for v in found] == [
        (("spec", "dpuSelector", "a"), 'must be of type string: "integer"', 1),
        (("spec", "dpuTemplate", "spec", "bfb"), 'must be of type object: "string"', "name"),
        (("spec", "nodeSelector"), "unknown field", {}),
        (("spec", "strategy", "type"), 'supported values: "OnDelete", "RollingUpdate"', "Recreate"),
    ]


def test_a_required_field_has_no_value_to_show() -> None:
    (found,) = violations(Bfb, {"spec": {}})
    assert (found.path, found.rule, found.value) == (("spec", "url"), "required", ABSENT)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["spec", "status", "metadata", "nodeEffect", "dpus", "conditions", "strategy",
                                         "name", "x", "dpuTemplate", "services", "serviceChains"]), inner, max_size=4),
                    max_leaves=12)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(OURS), st.dictionaries(st.sampled_from(["spec", "status", "metadata", "x"]), JSON, max_size=3))
def test_no_manifest_makes_validation_fail(kind: Any, manifest: Json) -> None:
    for violation in violations(kind, manifest):
        assert violation.rule
        assert re.search(r"\S", str(violation.path)) or violation.path == ()


@pytest.mark.parametrize("text", [
    "1.2.3.4", "255.255.255.255", "0.0.0.0", "256.1.1.1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1..2.3", "", "1.2.3.4\n",
    " 1.2.3.4", "1.2.3.4/24", "+1.2.3.4", "1_0.2.3.4", "\u0661.2.3.4", "1.2.3.100", "1.2.3.199", "1.2.3.249",
    "1.2.3.300"])
def test_an_address_is_four_numbers_to_255_without_leading_zeros(text: str) -> None:
    try:
        good = bool(ipaddress.IPv4Address(text))
    except ValueError:
        good = False
    name = next(f.encode_name for f in fields(DpuDeviceSpec) if f.name == "bmc_ip")
    assert (not schema_errors(DpuDevice, {"spec": {name: text}}, None)) is good
