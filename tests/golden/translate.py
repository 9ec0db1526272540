"""Objects of the tree of 2025-02 as v25.4 spells them (provisioning.md 1.2, 1.7, 2.5)."""

from __future__ import annotations

import copy
from typing import Any, Final

from twin.model.names import Label

Json = dict[str, Any]
NAMESPACE: Final = "dpf-operator-system"
FEATURE: Final = "feature.node.kubernetes.io/"


def manifest(document: Json) -> Json:
    """A manifest to create."""
    found = copy.deepcopy(document)
    spec = found.get("spec") or {}
    if found["kind"] == "DPUSet":
        _dpuset(spec)
    elif found["kind"] == "DPU":
        _dpu(found, spec)
    return found


def merge_patch(kind: str, patch: Json) -> Json:
    found = copy.deepcopy(patch)
    if kind == "DPUSet":
        _dpuset(found.get("spec") or {})
    return found


def _dpuset(spec: Json) -> None:
    """The set selects DPUNodes by what selected Nodes; reboots are the DPUNode's business."""
    if "nodeSelector" in spec:
        spec["dpuNodeSelector"] = spec.pop("nodeSelector")
    ((spec.get("dpuTemplate") or {}).get("spec") or {}).pop("automaticNodeReboot", None)


def _dpu(document: Json, spec: Json) -> None:
    """A hand-made DPU names its DPUNode and DPUDevice, and carries the labels that a DPUSet would give it."""
    meta = document["metadata"]
    node = spec.pop("nodeName")
    pci = meta["name"].removeprefix(f"{node}-")
    spec.pop("automaticNodeReboot", None)
    spec.update(dpuNodeName=node, dpuDeviceName=meta["name"], pciAddress=pci)
    meta["labels"] = {Label.DPUNODE_NAME: node, Label.DEVICE_PCI_ADDRESS: pci}


def host_entry(node: Json) -> Json:
    """A recorded worker Node as a host of a fleet: DPUs from its detector labels.

    `pci_rescan`: in the recordings every install is followed by a host reboot, so our cards ask for one
    (provisioning.md 2.2, phase 7).
    """
    meta = node["metadata"]
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != "kubernetes.io/hostname"}
    oob = FEATURE + "dpu-oob-bridge-configured"
    pci = labels.get(FEATURE + "dpu-0-pci-address", "0000-2b-00" if "labels" not in meta else "")
    card = {"pci": pci, "pf0": labels.get(FEATURE + "dpu-0-pf0-name", "ens1f0np0"), "pci_rescan": True}
    return {
        "name": meta["name"], "labels": labels, "annotations": dict(meta.get("annotations") or {}),
        "oob_bridge": "labels" not in meta or oob in labels,
        "dpus": [card] if pci else [],
    }
