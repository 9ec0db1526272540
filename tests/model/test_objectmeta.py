"""Names, labels, owners and finalizers as a kube-apiserver judges them."""

from __future__ import annotations

from typing import Any

import pytest

from twin.model.core import Namespace
from twin.model.objectmeta import (
    label_value_problems,
    metadata_errors,
    qualified_name_problems,
    subdomain_problems,
)
from twin.model.provisioning import Dpu


@pytest.mark.parametrize("name", ["a", "a.b-c.d", "0", "worker1-0000-2b-00", "a" * 253])
def test_a_dns_subdomain_is_a_name(name: str) -> None:
    assert subdomain_problems(name) == ()


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a..b", "a_b", "a" * 254, "a\n"])
def test_anything_else_is_no_name(name: str) -> None:
    assert subdomain_problems(name)


@pytest.mark.parametrize(("key", "good"), [
    ("a", True), ("example.com/a", True), ("A_b.c-D", True), ("x/", False), ("/x", False), ("a/b/c", False),
    ("Ex.com/a", False), ("a" * 64, False), ("", False), ("a b", False),
])
def test_a_label_key_is_a_qualified_name(key: str, good: bool) -> None:
    assert (qualified_name_problems(key) == ()) is good


@pytest.mark.parametrize(("value", "good"), [
    ("", True), ("a", True), ("v1.2_3", True), ("-a", False), ("a" * 64, False)])
def test_a_label_value_may_be_empty(value: str, good: bool) -> None:
    assert (label_value_problems(value) == ()) is good


def meta(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a", "namespace": "n", **fields}}


def texts(obj: dict[str, Any], old: dict[str, Any] | None = None, kind: Any = Dpu) -> list[str]:
    return [str(e) for e in metadata_errors(kind, obj, old)]


def test_a_namespaced_object_needs_a_name_and_a_namespace() -> None:
    assert texts({"metadata": {}}) == ["metadata.name: Required value: name or generateName is required"]
    assert texts({"metadata": {"name": "a"}}) == ["metadata.namespace: Required value"]
    assert texts({"metadata": {"name": "a"}}, kind=Namespace) == []
    assert texts({"metadata": {"generateName": "a-", "namespace": "n"}}) == []
    assert texts({"metadata": {"generateName": "A_", "namespace": "n"}})


def test_owners_are_complete_and_one_controls() -> None:
    owner = {"apiVersion": "v1", "kind": "Node", "name": "w", "uid": "1", "controller": True}
    assert texts(meta(ownerReferences=[owner])) == []
    assert texts(meta(ownerReferences=[{**owner, "uid": ""}])) == [
        'metadata.ownerReferences.uid: Invalid value: "": must not be empty']
    (text,) = texts(meta(ownerReferences=[owner, {**owner, "name": "x"}]))
    assert text.endswith('Found "true" in references for Node/w and Node/x')


def test_name_namespace_and_uid_never_change() -> None:
    old = meta(uid="1")
    assert texts(meta(uid="1"), old) == []
    assert texts(meta(uid="2"), old) == ['metadata.uid: Invalid value: "2": field is immutable']


def test_an_event_owns_nothing_and_a_version_has_one_slash_at_most() -> None:
    owner = {"apiVersion": "v1", "kind": "Event", "name": "w", "uid": "1"}
    assert texts(meta(ownerReferences=[owner])) == [
        ('metadata.ownerReferences: Invalid value: {"apiVersion":"v1","kind":"Event","name":"w","uid":"1"}: '
        "/v1, Kind=Event is disallowed from being an owner")]
    assert texts(meta(ownerReferences=[{**owner, "apiVersion": "a/b/c"}])) == [
        'metadata.ownerReferences.apiVersion: Invalid value: "a/b/c": version must not be empty']


def test_orphan_and_foreground_deletion_exclude_each_other() -> None:
    (text,) = texts(meta(finalizers=["foregroundDeletion", "orphan"]))
    assert text.endswith("finalizer orphan and foregroundDeletion cannot be both set")


def test_annotations_may_be_large_but_not_huge() -> None:
    assert texts(meta(annotations={"a": "x" * 1000})) == []
    assert texts(meta(annotations={"a": "x" * 262144})) == [
        "metadata.annotations: Too long: may not be more than 262144 bytes"]
