"""The CRDs derived from the Structs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import pytest

from twin.model.kinds import KINDS
from twin.model.meta import Conditions, Object, Part
from twin.model.rules import ABSENT, AGE_COLUMN, Cel, Rule
from twin.model.schema import crd, has_crd, structural, unwrap

OURS = [kind for kind in KINDS.values() if has_crd(kind)]


class Leaf(Part):
    RULE: ClassVar[Rule] = Rule(cel=(Cel("has(self.name)", "name it"),))

    name: Annotated[str, Rule(pattern="^a", required=True)] = ""
    count: Annotated[int | None, Rule(default=3, minimum=1)] = None
    size: int | str | None = None


class ThingSpec(Part):
    leaf: Annotated[Leaf, Rule(cel=(Cel("true", "fine"),))]
    leaves: Annotated[tuple[Leaf, ...], Rule(max_items=2)] = ()
    free: Annotated[dict[str, Any] | None, Rule(preserve_unknown=True)] = None


class ThingStatus(Part):
    conditions: Conditions = ()


class Thing(Object):
    KIND: ClassVar[str] = "Thing"
    GROUP: ClassVar[str] = "x.dpu.nvidia.com"
    PLURAL: ClassVar[str] = "things"
    HAS_STATUS: ClassVar[bool] = True
    COLUMNS: ClassVar[tuple[tuple[str, str, str], ...]] = (AGE_COLUMN,)

    spec: ThingSpec
    status: ThingStatus | None = None


def spec() -> dict[str, Any]:
    out: dict[str, Any] = structural(Thing)["properties"]["spec"]
    return out


def test_a_field_without_default_is_required_and_a_rule_may_say_otherwise() -> None:
    assert structural(Thing)["required"] == ["spec"]
    assert spec()["required"] == ["leaf"]
    assert spec()["properties"]["leaf"]["required"] == ["name"]


def test_rules_of_the_type_and_of_the_field_add_up() -> None:
    rules = spec()["properties"]["leaf"]["x-kubernetes-validations"]
    assert [r["message"] for r in rules] == ["name it", "fine"]
    assert [r["message"] for r in spec()["properties"]["leaves"]["items"]["x-kubernetes-validations"]] == ["name it"]


def test_optional_scalars_keep_their_constraints_and_defaults() -> None:
    leaf = spec()["properties"]["leaf"]["properties"]
    assert leaf["count"] == {"type": "integer", "default": 3, "minimum": 1}
    assert leaf["size"] == {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    assert spec()["properties"]["free"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def test_conditions_are_metav1_conditions() -> None:
    items = structural(Thing)["properties"]["status"]["properties"]["conditions"]["items"]
    assert items["required"] == ["lastTransitionTime", "message", "reason", "status", "type"]
    assert "lastHeartbeatTime" not in items["properties"]


def test_a_crd_says_name_scope_columns_and_status() -> None:
    document = crd(Thing)
    assert document["metadata"] == {"name": "things.x.dpu.nvidia.com",
                                    "annotations": {"helm.sh/resource-policy": "keep"}}
    assert document["spec"]["names"] == {"kind": "Thing", "listKind": "ThingList", "plural": "things",
                                         "singular": "thing"}
    version = document["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    assert version["additionalPrinterColumns"] == [
        {"name": "Age", "jsonPath": ".metadata.creationTimestamp", "type": "date"}]


def test_unwrap_finds_the_bare_type_and_the_rule() -> None:
    bare, rule = unwrap(Annotated[str | None, Rule(pattern="x")])
    assert (bare, rule.pattern, rule.default) == (str, "x", ABSENT)


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, sub in schema.get("properties", {}).items():
        yield from _nodes(sub, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from _nodes(schema[keyword], f"{path}.{keyword}")


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.KIND)
def test_every_schema_is_structural(kind: type[Object]) -> None:
    """Every node has a type or is int-or-string; no references; lists and maps do not mix with properties."""
    for path, node in _nodes(structural(kind)):
        assert "$ref" not in node, path
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert list(node.get("properties", {})) == sorted(node.get("properties", {})), path
        assert node.get("required", []) == sorted(node.get("required", [])), path


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.KIND)
def test_every_rule_compiles(kind: type[Object]) -> None:
    from twin.model.cel import native

    for path, node in _nodes(structural(kind)):
        for rule in node.get("x-kubernetes-validations", ()):
            assert native().compile(rule["rule"]) is not None, path
