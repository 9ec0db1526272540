"""Merge patches on typed objects against RFC 7396 on their JSON."""

from __future__ import annotations

import msgspec
import pytest

from twin.model.core import Node, NodeSpec
from twin.model.kinds import to_manifest
from twin.model.merge import merge_json, merged
from twin.model.meta import ObjectMeta
from twin.model.provisioning import Dpu, DpuSet, DpuSetStatus, DpuSpec, DpuStatus

SET = DpuSet(metadata=ObjectMeta(name="s", namespace="n", labels={"a": "b"}),
             status=DpuSetStatus(dpu_statistics={"Ready": 2, "Error": 1}))
DPU = Dpu(metadata=ObjectMeta(name="d", namespace="n"), status=DpuStatus(phase="Pending", bfb_file="f"),
          spec=DpuSpec(dpu_node_name="h", dpu_device_name="d", bfb="b", pci_address="0000-2b-00"))
NODE = Node(metadata=ObjectMeta(name="h"), spec=NodeSpec(unschedulable=True))


@pytest.mark.parametrize(("obj", "patch"), [
    (SET, {"status": {"dpuStatistics": {"Ready": 3, "Error": None, "Pending": 1}}}),
    (SET, {"metadata": {"labels": {"a": None, "c": "d"}}}),
    (SET, {"spec": {"dpuTemplate": {"spec": {"cluster": {"nodeLabels": {"x": "y"}}}}}}),
    (DPU, {"status": {"phase": "Ready", "bfbFile": None}, "spec": {"pciAddress": "0000-3b-00"}}),
    (DPU, {"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "nothing": {"known": 1}}),
    (NODE, {"spec": {"unschedulable": None, "taints": [{"key": "a", "effect": "NoSchedule"}]}}),
], ids=range(6))
def test_a_patch_of_an_object_is_the_patch_of_its_json(obj: Dpu, patch: dict[str, object]) -> None:
    known = {k: v for k, v in patch.items() if k != "nothing"}
    assert to_manifest(merged(obj, patch)) == merge_json(to_manifest(obj), known)
    assert merged(obj, patch) != obj


@pytest.mark.parametrize("patch", [
    {}, {"status": {"phase": "Pending"}}, {"spec": {"bmcIP": None, "cluster": {}}},
    {"metadata": {"labels": {"z": None}}}])
def test_a_patch_that_changes_nothing_returns_the_very_object(patch: dict[str, object]) -> None:
    assert merged(DPU, patch) is DPU


@pytest.mark.parametrize("patch", [
    {"status": {"phase": 5}}, {"spec": {"dpuNodeName": ["h"]}}, {"spec": {"dpuNodeName": None}},
    {"status": {"requiredReset": "yes"}}, {"status": 1}])
def test_a_value_of_a_wrong_type_is_refused(patch: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        merged(DPU, patch)
