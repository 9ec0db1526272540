"""The simulated API server beyond what its contract tests compare with a real one: metered moments."""

from __future__ import annotations

import base64

import pytest

from twin.backends.base import NotFound
from twin.model.core import ConfigMap, Namespace, Secret
from twin.model.meta import Key, ObjectMeta
from twin.sim.clock import SECOND, TwinEnvironment
from twin.sim.kube import ApiServer
from twin.sim.trace import Trace

KEY = Key("ns", "it")


def server() -> ApiServer:
    made = ApiServer(TwinEnvironment(), Trace(objects=True))
    made.create(Namespace(metadata=ObjectMeta(name="ns")), "test", 0)
    return made


def test_what_goes_later_can_still_be_deleted_before() -> None:
    """A pass removes at its end, 2 s from now; another's deletion in between meets an object that is there."""
    kube = server()
    kube.create(ConfigMap(metadata=ObjectMeta(namespace="ns", name="it")), "test", 0)
    kube.delete(ConfigMap, KEY, "slow", 2 * SECOND)
    kube.delete(ConfigMap, KEY, "quick", 1 * SECOND)
    with pytest.raises(NotFound):
        kube.delete(ConfigMap, KEY, "late", 3 * SECOND)
    assert [v.op for v in kube.trace.versions if v.object.metadata.name == "it"] == ["ADDED", "DELETED"]


def test_what_was_made_again_is_deleted_as_usual() -> None:
    kube = server()
    for _ in range(2):
        kube.create(ConfigMap(metadata=ObjectMeta(namespace="ns", name="it")), "test", 0)
        kube.delete(ConfigMap, KEY, "test", 2 * SECOND)
    assert [v.op for v in kube.trace.versions if v.object.metadata.name == "it"] == ["ADDED", "DELETED"] * 2


@pytest.mark.parametrize("typed", [True, False])
def test_string_data_is_stored_as_data(typed: bool) -> None:
    kube = server()
    if typed:
        kube.create(Secret(metadata=ObjectMeta(namespace="ns", name="it"), data={"a": "eA=="},
                           string_data={"a": "new", "b": "two"}), "test", 0)
    else:
        kube.create_manifest({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "ns", "name": "it"},
                              "data": {"a": "eA=="}, "stringData": {"a": "new", "b": "two"}}, "test", 0)
    secret = kube.get(Secret, KEY)
    assert secret.string_data == {}
    assert {k: base64.b64decode(v).decode() for k, v in secret.data.items()} == {"a": "new", "b": "two"}
