"""What happens to the worker while its DPU is re-provisioned, and how it is undone (provisioning.md 6)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import msgspec

from controllers.provisioning import custom_action
from controllers.provisioning.dpu_pass import Pass, Unmet, fatal, not_found, parse_bool, siblings
from twin.backends.base import ApiError, NotFound
from twin.model.core import DrainSpec, Node, NodeMaintenance, NodeMaintenanceSpec
from twin.model.meta import Key, ObjectMeta, condition_status, replace
from twin.model.names import DMS_COMPONENT, Annotation, Label
from twin.model.provisioning import GROUP, Dpu, DpuNode, NodeEffect, Phase, Taint

HOLD: Final = Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT
REQUESTOR_ID: Final = "dpu.nvidia.com"
REQUESTOR: Final = GROUP
NOT_THE_DMS_POD: Final = f"{Label.COMPONENT}!={DMS_COMPONENT}"
REF_COUNT: Final = "node-effect-ref-count"
"""Policy: the effect on a worker stays until none of its DPUs needs it."""

NEEDS_EFFECT: Final = frozenset((
    Phase.NODE_EFFECT, Phase.INITIALIZE_INTERFACE, Phase.CONFIG_FW_PARAMETERS, Phase.OS_INSTALLING,
    Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.REBOOTING, Phase.HOST_NETWORK_CONFIGURATION, Phase.DPU_CLUSTER_CONFIG,
))


def kind_of_effect(effect: NodeEffect | None) -> str:
    """Which branch an effect takes; 'none' when its only field is false (presence passed validation, truth decides).

    upstream: node-effect-presence-not-truth. `drain: false` is no effect, yet lifting it still wants the core Node.
    """
    if effect is None or effect.no_effect:
        return "noEffect"
    if effect.taint is not None:
        return "taint"
    if effect.custom_label is not None:
        return "customLabel"
    if effect.drain:
        return "drain"
    if effect.custom_action is not None:
        return "customAction"
    return "hold" if effect.hold else "none"


# --- apply


def apply(p: Pass) -> None:
    """Put the effect on the worker. Returns when it is in force; raises Unmet while it is not."""
    effect = p.dpu.spec.node_effect
    kind = kind_of_effect(effect)
    if effect is None or kind == "noEffect":
        return
    dpu_node = p.node()
    node: Node | None = None
    if dpu_node.status is not None and dpu_node.status.kube_node_ref is not None:
        # upstream: node-by-dpunode-name. The reference says that there is a Node; its name is taken from the DPU.
        node = p.find(Node, Key("", p.dpu.spec.dpu_node_name), "NodeNotFound", "GetNodeError")
    elif kind in ("taint", "customLabel", "drain"):
        raise Unmet("InvalidNodeEffect", f"node effect ({kind}) is not supported for non k8s environment")
    if effect.taint is not None and node is not None:
        _taint(p, node, effect.taint)
    elif effect.custom_label is not None:
        _label(p, dpu_node, dict(effect.custom_label))
    elif kind == "drain":
        _drain(p)
    elif kind == "customAction":
        custom_action.run(p, str(effect.custom_action))
    elif kind == "hold":
        _hold(p)


def _taint(p: Pass, node: Node, taint: Taint) -> None:
    """Append, unless a taint of this key is there, whatever its value. Nobody waits for evictions."""
    if any(t.key == taint.key for t in node.spec.taints):
        return
    try:
        p.kube.update(replace(node, spec=replace(node.spec, taints=(*node.spec.taints, taint))))
    except ApiError as error:
        raise Unmet(p.condition, str(error)) from error


def _label(p: Pass, node: DpuNode, labels: dict[str, str]) -> None:
    """upstream: custom-label-on-dpunode. Set on the DPUNode, taken from the core Node when the DPU goes."""
    have = node.metadata.labels
    if all(have.get(name) == value for name, value in labels.items()):
        return
    try:
        p.kube.patch(DpuNode, node.key, {"metadata": {"labels": labels}})
    except ApiError as error:
        raise Unmet(p.condition, str(error)) from error


def _drain(p: Pass) -> None:
    """Ask the maintenance operator for the worker, or join whoever asked before."""
    key = _maintenance_key(p.dpu)
    try:
        found = p.kube.get(NodeMaintenance, key)
    except ApiError as error:
        raise fatal("ErrorOccured", str(error)) from error
    if found is None:
        try:
            p.kube.create(_maintenance(p, key))
        except ApiError as error:
            raise Unmet("ErrorOccured", str(error)) from error
    else:
        _join(p, found)
        if condition_status(found.status.conditions if found.status else (), "Ready") == "True":
            return
    raise Unmet("NodeMaintenanceIsNotReady", "node maintenance is not ready", waiting=True)


def _maintenance_key(dpu: Dpu) -> Key:
    return Key(dpu.metadata.namespace, dpu.spec.dpu_node_name)


def _maintenance(p: Pass, key: Key) -> NodeMaintenance:
    """upstream: drain-owned-by-first-dpu. It goes with the first DPU even while another needs it."""
    return NodeMaintenance(
        metadata=ObjectMeta(namespace=key.namespace, name=key.name, owner_references=(p.dpu.owner_reference(),)),
        spec=NodeMaintenanceSpec(
            requestor_id=REQUESTOR_ID, additional_requestors=(REQUESTOR,), node_name=key.name, cordon=True,
            drain_spec=DrainSpec(force=True, delete_empty_dir=True, timeout_seconds=p.b.settings.drain_timeout_s,
                                 pod_selector=NOT_THE_DMS_POD)))


def _join(p: Pass, found: NodeMaintenance) -> None:
    """Request what is there already; under the policy, own it too, so that it outlives the DPU that asked first.

    upstream: joins-terminating-maintenance. Nobody asks whether the object is being deleted.
    """
    merge: dict[str, Any] = {}
    if REQUESTOR not in found.spec.additional_requestors:
        merge["spec"] = {"additionalRequestors": [*found.spec.additional_requestors, REQUESTOR]}
    owners = found.metadata.owner_references
    if REF_COUNT in p.b.policies and all(o.uid != p.dpu.metadata.uid for o in owners):
        mine = p.dpu.owner_reference(controller=False, block=None)
        merge["metadata"] = {"ownerReferences": msgspec.to_builtins((*owners, mine))}
    if not merge:
        return
    try:
        p.kube.patch(NodeMaintenance, found.key, merge)
    except ApiError as error:
        raise fatal("ErrorOccured", str(error)) from error


def _hold(p: Pass) -> None:
    """Wait until somebody sets the annotation to a false value.

    upstream: hold-annotation-set-again. Removing the key, as the documentation says, starts the wait anew.
    """
    value = p.dpu.metadata.annotations.get(HOLD)
    if value is None:
        try:
            p.dpu = p.kube.patch(Dpu, p.key, {"metadata": {"annotations": {HOLD: "true"}}})
        except ApiError as error:
            raise Unmet("ExternalNodeEffect", str(error)) from error
    else:
        try:
            if not parse_bool(value):
                return
        except ValueError as error:
            raise Unmet("ExternalNodeEffect", str(error)) from error
    raise Unmet("ExternalNodeEffect", "waiting for external node effect", waiting=True)


# --- lift


class LiftFailed(Exception):
    """The effect cannot be undone; the text goes into the condition, as that of an ApiError does."""


def lift_in_ready(p: Pass) -> None:
    """Undo the effect of a DPU that is Ready. Raises LiftFailed, ApiError.

    upstream: ready-needs-core-node. Every effect but noEffect wants the core Node here, so a host outside Kubernetes
    ends in Error with hold or customAction. customLabel stays.
    """
    effect = p.dpu.spec.node_effect
    if effect is None or effect.no_effect:
        return
    name = p.dpu.spec.dpu_node_name
    node = p.kube.get(Node, Key("", name))
    if node is None:
        raise LiftFailed(not_found(Node, name))
    if (effect.taint is not None or effect.drain) and not _needed_by_others(p):
        _undo(p, effect, node)


def lift_at_end(p: Pass) -> None:
    """Undo the effect of a DPU in Error or Deleting. Raises ApiError."""
    effect = p.dpu.spec.node_effect
    if effect is None or effect.no_effect or _needed_by_others(p):
        return
    if effect.custom_action is not None:
        with suppress(NotFound):
            custom_action.clean_up(p, str(effect.custom_action))
        return
    node = p.kube.get(Node, Key("", p.dpu.spec.dpu_node_name))
    if effect.custom_label is not None:
        gone = {name: None for name in effect.custom_label if node is not None and name in node.metadata.labels}
        if node is not None and gone:
            with suppress(NotFound):
                p.kube.patch(Node, node.key, {"metadata": {"labels": gone}})
        return
    _undo(p, effect, node)


def _undo(p: Pass, effect: NodeEffect, node: Node | None) -> None:
    if effect.taint is not None:
        if node is not None:
            _untaint(p, node, effect.taint.key)
    elif effect.drain:
        _end_maintenance(p)


def _untaint(p: Pass, node: Node, key: str) -> None:
    """upstream: foreign-taint-removed. The first taint of this key goes, whoever put it there."""
    taints = node.spec.taints
    at = next((i for i, taint in enumerate(taints) if taint.key == key), None)
    if at is not None:
        left = (*taints[:at], *taints[at + 1:])
        with suppress(NotFound):
            p.kube.update(replace(node, spec=replace(node.spec, taints=left)))


def _end_maintenance(p: Pass) -> None:
    """Withdraw our request, then delete; the operator keeps the object until nobody requests it.

    upstream: node-effect-not-counted. The first DPU of a host to get here ends it for all.
    """
    found = p.kube.get(NodeMaintenance, _maintenance_key(p.dpu))
    if found is None:
        return
    if REQUESTOR in found.spec.additional_requestors:
        left = [r for r in found.spec.additional_requestors if r != REQUESTOR]
        with suppress(NotFound):
            p.kube.patch(NodeMaintenance, found.key, {"spec": {"additionalRequestors": left or None}})
    if not found.deleting:
        with suppress(NotFound):
            p.kube.delete(NodeMaintenance, found.key)


def _needed_by_others(p: Pass) -> bool:
    """Under the policy: is another DPU of this host on its way to Ready?"""
    return REF_COUNT in p.b.policies and any(
        d.status is not None and d.status.phase in NEEDS_EFFECT for d in siblings(p))
