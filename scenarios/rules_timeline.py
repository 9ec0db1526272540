"""Pre-flight rules about what a timeline is going to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from scenarios.base import Delete, Patch, Scale, Step
from scenarios.rules import Picture, Place, part, rule
from twin.model.units import duration

INSTALL_S: Final = 3600.0
"""How long after its start a provisioning may still be installing: the 30-minute budget and the way there."""


def _deletions(p: Picture, *kinds: str) -> list[tuple[Step, Delete]]:
    return [(s, s.action) for s in p.timeline if isinstance(s.action, Delete) and s.action.kind in kinds]


def _patches(p: Picture, kind: str) -> list[tuple[Step, Patch]]:
    return [(s, s.action) for s in p.timeline if isinstance(s.action, Patch) and s.action.kind == kind]


@rule("bfb-deleted", "A BFB deleted while its DPUs may be installing", "4426349", "warning")
def _bfb_deleted(p: Picture) -> Iterator[Place]:
    users = [(s, d) for s, d in _deletions(p, "DPUSet", "DPUDeployment")]
    for step, bfb in _deletions(p, "BFB"):
        naming = [s for s in p.selections if s.bfb == bfb.name]
        gone = [s for s, d in users if s.at_s <= step.at_s and any(n.name == d.name or n.manifest.id.name == d.name
                                                                   for n in naming)]
        if naming and not gone:
            yield Place(step, ("delete",), f"refused with 403: {naming[0].name} names BFB {bfb.name}")
        elif gone and step.at_s - gone[-1].at_s < INSTALL_S:
            yield Place(
                step, ("delete",),
                f"{duration(step.at_s - gone[-1].at_s)} after its DPUSet: a DPU that is still in OS Installing stays "
                "there for ever, deleted or not, until a BFB of that name exists again", bfb.name)


@rule("operator-config-deleted", "Deleting the DPFOperatorConfig deletes BFBs and DPUSets together", "4426349",
      "warning")
def _operator_config_deleted(p: Picture) -> Iterator[Place]:
    for step, _ in _deletions(p, "DPFOperatorConfig"):
        yield Place(step, ("delete",), "a DPU that is installing then stays in OS Installing and cannot be deleted "
                    "(a rehearsal does not show it: the DPF operator, which deletes them, is not modelled)")


@rule("cluster-deleted", "A DPUCluster deleted with DPUs in it", "provisioning.md 7.1, 10.1 (15)", "warning")
def _cluster_deleted(p: Picture) -> Iterator[Place]:
    for step, cluster in _deletions(p, "DPUCluster"):
        yield Place(
            step, ("delete",),
            "nothing guards it: its Nodes stay, and if a cluster of that name returns, DPUs are Ready without "
            "having joined", cluster.name)


@rule("host-removed", "A host removed for good leaves its DPUs in Deleting", "4403130, 4426516", "warning")
def _host_removed(p: Picture) -> Iterator[Place]:
    shown = len(p.fleet.hosts) if p.fleet else 0
    for step in p.timeline:
        if getattr(step.action, "kind", "") == "host-lost" and step.what == "fault" and step.for_s is None:
            yield Place(
                step, ("fault",),
                "without `for` the host never returns: its DPUs stay in Deleting for lack of DMS")
        if isinstance(step.action, Delete) and step.action.kind == "Node":
            yield Place(
                step, ("delete",),
                "its DPUNode goes with it, and its DPUs stay in Deleting for lack of DMS", step.action.name)
        if isinstance(step.action, Scale):
            if step.action.hosts < shown and step.at_s > 0:
                yield Place(
                    step, ("scale", "hosts"),
                    "hosts that go take their DMS along: their DPUs stay in Deleting until the hosts return",
                    step.action.hosts)
            shown = step.action.hosts


@rule("mtu-edit", "The MTU cannot change after the installation", "3917006", "warning")
def _mtu(p: Picture) -> Iterator[Place]:
    for step, patch in _patches(p, "DPFOperatorConfig"):
        if part(patch.merge, "spec", "networking") is not None:
            yield Place(
                step, ("patch", "merge", "spec", "networking"),
                "DPUs that are installed keep the MTU they have", part(patch.merge, "spec", "networking"))


@rule("deployment-effect-edit", "A DPUDeployment's nodeEffect is not reconciled", "4410218", "warning")
def _effect_edit(p: Picture) -> Iterator[Place]:
    for step, patch in _patches(p, "DPUDeployment"):
        if part(patch.merge, "spec", "dpus", "nodeEffect") is not None:
            yield Place(
                step, ("patch", "merge", "spec", "dpus", "nodeEffect"),
                "its DPUSets keep the old one: it takes a new DPUDeployment, which re-provisions")


@rule("label-removal", "A node label taken from a template is never removed", "provisioning.md 10.1 (13)", "warning")
def _label_removal(p: Picture) -> Iterator[Place]:
    for step, patch in _patches(p, "DPUSet"):
        path = ("spec", "dpuTemplate", "spec", "cluster", "nodeLabels")
        labels = part(patch.merge, *path)
        gone = [k for k, v in labels.items() if v is None] if isinstance(labels, dict) else []
        if gone or (labels is None and "nodeLabels" in (part(patch.merge, *path[:-1]) or {})):
            yield Place(
                step, ("patch", "merge", *path),
                "labels are merged: DPUs and Nodes keep those that are taken away", gone or None)


@rule("reboot-method-edit", "nodeRebootMethod edited while a DPU is on its way", "4641260 (25.10)", "note")
def _reboot_method_edit(p: Picture) -> Iterator[Place]:
    for step, patch in _patches(p, "DPUNode"):
        if part(patch.merge, "spec", "nodeRebootMethod") is not None:
            yield Place(
                step, ("patch", "merge", "spec", "nodeRebootMethod"),
                "a DPU that is rebooting when it changes stays in Rebooting: delete it")


@rule("immutable-edit", "A field that can never change", "provisioning.md 1, 5.3")
def _immutable(p: Picture) -> Iterator[Place]:
    for kind, path, instead in (("BFB", ("spec", "url"), "make a new BFB and name it"),
                                ("BFB", ("spec", "fileName"), "make a new BFB and name it"),
                                ("DPUFlavor", ("spec",), "make a new DPUFlavor and name it")):
        for step, patch in _patches(p, kind):
            if part(patch.merge, *path) is not None:
                yield Place(
                    step, ("patch", "merge", *path),
                    f"it is immutable, the patch is refused with 422: {instead}", part(patch.merge, *path))
