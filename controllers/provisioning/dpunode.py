"""DPUNode: one host with DPUs. Is its DMS reachable, and which devices are its own (provisioning.md 8.2).

The pass stops silently where upstream does; what it found until then is written at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Final

from controllers.provisioning.flags import GNOI, client_secret, install_interface
from twin.backends.base import ApiError, Dms, DmsTarget, KubeApi, NotFound, RpcError, Settings
from twin.model.core import Node, Pod
from twin.model.meta import (
    Conditions,
    Key,
    Object,
    condition_status,
    new_key,
    parse_time,
    replace,
    set_condition,
    strip_finalizer,
)
from twin.model.names import Finalizer, Label, dms_pod
from twin.model.provisioning import Dpu, DpuDevice, DpuDeviceSpec, DpuNode, DpuNodeStatus
from twin.runtime.backends import Backends
from twin.runtime.reconcile import DONE, Context, Result, Watch, labels_changed

NEW: Final = DpuNodeStatus()

LABELS_PER_DEVICE: Final = "dpudevice-labels-per-device"
RECHECK_DMS: Final = "dpunode-rechecks-dms"
DROP_STALE_LABELS: Final = "dpunode-drops-stale-features"
PREFLIGHT: Final = "rshim-preflight"


class NotReady(Exception):
    """The DPUNode's condition Ready is False for this reason; looked at again after `again_s`, if given."""

    def __init__(self, reason: str, message: str, again_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.again_s = again_s


class Stop(Exception):
    """The pass ends here without a word."""


def _of_node(reconciler: DpuNodeReconciler, node: Object) -> Iterable[Key]:
    """The DPUNodes whose kubeNodeRef is this Node."""
    key = Key(reconciler.settings.namespace, node.metadata.name)
    found = reconciler.kube.get(DpuNode, key)
    return () if found is None or found.status is None or found.status.kube_node_ref != node.metadata.name else (key,)


def _of_dpu(_: DpuNodeReconciler, dpu: Object) -> Iterable[Key]:
    return (new_key(Key, (dpu.metadata.namespace, dpu.spec.dpu_node_name)),)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class DpuNodeReconciler:
    kube: KubeApi
    dms: Dms
    settings: Settings
    policies: frozenset[str]

    name: ClassVar[str] = "dpunode"
    watches: ClassVar[tuple[Watch, ...]] = (
        Watch(DpuNode), Watch(Node, _of_node, labels_changed, unchanged=False),
        Watch(Dpu, _of_dpu, by=attrgetter("spec")))

    @classmethod
    def make(cls, backends: Backends) -> DpuNodeReconciler:
        return cls(backends.kube, backends.dms, backends.settings, backends.policies)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        dpunode = self.kube.get(DpuNode, key)
        if dpunode is None:
            return DONE
        node = None
        for ref in dpunode.metadata.owner_references:
            if ref.kind == Node.KIND:
                node = self.kube.get(Node, Key("", ref.name))
                if node is None:
                    return self._host_gone(dpunode)
                break
        if dpunode.metadata.deletion_timestamp:
            return DONE
        if node is not None:
            dpunode = self._merge(dpunode, node)
        return self._look(ctx, dpunode, node)

    def _host_gone(self, dpunode: DpuNode) -> Result:
        """upstream: dpunode-goes-with-its-node. Its DPUs then wait in Deleting for a DMS that never comes back."""
        if not dpunode.deleting:
            try:
                self.kube.delete(DpuNode, dpunode.key)
            except NotFound:
                return DONE
            if Finalizer.DPUNODE in dpunode.metadata.finalizers:
                return DONE  # The watch event of the deletion brings it back.
        elif Finalizer.DPUNODE in dpunode.metadata.finalizers:
            self.kube.update(replace(dpunode, metadata=strip_finalizer(dpunode.metadata, Finalizer.DPUNODE)))
        return DONE

    def _merge(self, dpunode: DpuNode, node: Node) -> DpuNode:
        """Labels and annotations of the Node, over the DPUNode's own."""
        meta = dpunode.metadata
        # upstream: dpunode-keeps-node-labels. Merged, never removed: a gate once seen open stays open.
        labels = _with(self._own_labels(meta.labels, node), node.metadata.labels)
        annotations = _with(meta.annotations, node.metadata.annotations)
        if (labels is meta.labels or labels == meta.labels) and annotations is meta.annotations:
            return dpunode
        return self.kube.update(replace(dpunode, metadata=replace(meta, labels=labels, annotations=annotations)))

    def _own_labels(self, labels: Mapping[str, str], node: Node) -> Mapping[str, str]:
        if DROP_STALE_LABELS not in self.policies:
            return labels
        feature = Label.OOB_BRIDGE.partition("/")[0] + "/"
        return {k: v for k, v in labels.items() if not k.startswith(feature) or k in node.metadata.labels}

    def _look(self, ctx: Context, dpunode: DpuNode, node: Node | None) -> Result:
        """Everything that ends up in the status, written once at the end."""
        before = status = dpunode.status or NEW
        interface = install_interface(self.kube, self.settings)
        result, failure = DONE, ""
        ready: tuple[str, str, str] | None = None
        try:
            if node is not None:
                if status.kube_node_ref is None:
                    status = replace(status, kube_node_ref=node.metadata.name)
                self._check_pod(ctx, node.metadata.name)
            if status.dpu_install_interface != interface:
                status = replace(status, dpu_install_interface=interface)
            status = _with_conditions(status, self._label_devices(ctx, dpunode, status.conditions, interface))
            if interface == GNOI:
                self._dial(dpunode)
            ready = ("True", "Ready", "")
            if RECHECK_DMS in self.policies:
                result = Result(requeue_after_s=self.settings.requeue_s)
        except NotReady as no:
            ready = ("False", no.reason, str(no))
            result = Result(requeue_after_s=no.again_s)
        except Stop:
            pass
        except ApiError as error:
            failure = str(error)
        if ready is not None:
            status = _with_conditions(status, set_condition(status.conditions, "Ready", *ready, ctx.now))
        if status is not before and status != before:
            self.kube.update_status(replace(dpunode, status=status))
        return Result(error=failure) if failure else result

    # --- checks: each raises NotReady or Stop

    def _check_pod(self, ctx: Context, node: str) -> None:
        """Where the host's DMS pod stands. It decides, not the DMS itself, whether we go on."""
        pod = self.kube.get(Pod, Key(self.settings.namespace, dms_pod(node)))
        if pod is None:
            raise Stop  # upstream: dpunode-ready-without-dms-pod. Ready keeps what it last said.
        if pod.deleting:
            raise NotReady("NotReady", f"the DMS server {pod.metadata.name} is terminating", self.settings.requeue_s)
        phase = pod.status.phase
        if phase == "Running":
            return
        waiting = f"the DMS server {pod.metadata.name} is not ready yet, wait for"
        match phase:
            case "Failed":
                raise NotReady("ErrorOccurred", "DMS Pod Failed")
            case "Pending" | "":
                rshim = _preflight_failure(pod)
                if rshim:
                    raise NotReady("NotReady", f'{waiting} "{rshim}"', self.settings.requeue_s)
                if condition_status(pod.status.conditions, "PodReadyToStartContainers") == "False":
                    raise NotReady("NotReady", f"{waiting} the NFS server to become available", self.settings.requeue_s)
                # upstream: dms-pod-pending-for-ever. The time-out below never reaches a pod that stays Pending.
                raise NotReady("NotReady", f"{waiting} it to run", self.settings.requeue_s)
            case _:
                created = parse_time(pod.metadata.creation_timestamp)
                if ctx.reached(created + self.settings.dms_pod_timeout_s):
                    raise NotReady("ErrorOccurred", "DMS Pod didn't run and timed out")
                raise NotReady("NotReady", f"{waiting} it to run", self.settings.requeue_s)

    def _label_devices(self, ctx: Context, dpunode: DpuNode, conditions: Conditions, interface: str) -> Conditions:
        """Label the node's devices with the node and their own details; InvalidDPUDetails where one lacks them."""
        gnoi = interface == GNOI
        labels: dict[str, str] = {}
        meta = dpunode.metadata
        for ref in dpunode.spec.dpus:
            device = self.kube.get(DpuDevice, Key(meta.namespace, ref.name))
            wrong = ""
            if device is None:
                wrong = f'DPUDevice "{ref.name}" not found'
            elif gnoi and not device.spec.pci_address:
                wrong = f"DPUDevice {ref.name} has no PCI address"
            elif not gnoi and not device.spec.bmc_ip:
                wrong = f"DPUDevice {ref.name} has no BMC IP"
            if wrong or device is None:
                # upstream: invalid-dpu-details-stays. Nothing ever turns it False again.
                conditions = set_condition(conditions, "InvalidDPUDetails", "True", "InvalidDPUDetails", wrong, ctx.now)
                continue
            if LABELS_PER_DEVICE in self.policies:
                labels = {}
            # upstream: dpudevice-labels-leak. One map for all: what a device lacks keeps the value of the one before.
            labels |= device_labels(meta.name, device.spec)
            merged = _with(device.metadata.labels, labels)
            if merged is not device.metadata.labels:
                self.kube.update(replace(device, metadata=replace(device.metadata, labels=merged)))
        return conditions

    def _dial(self, dpunode: DpuNode) -> None:
        address = dpunode.spec.node_dms_address
        if address is None:
            raise NotReady("NoNodeDMSAddress", "nodeDMSAddress is not set")
        secret = Key(self.settings.namespace, client_secret(self.kube, self.settings))
        try:
            self.dms.dial(DmsTarget(address.ip, address.port, secret))
        except RpcError as error:
            raise NotReady("DMSServerNotReady", str(error), self.settings.requeue_s) from error
        # upstream: dpunode-checked-once. A DMS lost later shows at the next watch event or resync.


def _with(own: Mapping[str, str], more: Mapping[str, str]) -> Mapping[str, str]:
    """These labels and more, which win; the same mapping if it has them all."""
    return own if more.items() <= own.items() else {**own, **more}


def _with_conditions(status: DpuNodeStatus, conditions: Conditions) -> DpuNodeStatus:
    return status if conditions is status.conditions else replace(status, conditions=conditions)


def device_labels(node: str, spec: DpuDeviceSpec) -> dict[str, str]:
    """What a device's fields become as labels; absent fields give none."""
    found: dict[str, object] = {
        Label.DPUNODE_NAME: node, Label.DEVICE_PCI_ADDRESS: spec.pci_address, Label.DEVICE_PSID: spec.psid,
        Label.DEVICE_OPN: spec.opn, Label.DEVICE_BMC_IP: spec.bmc_ip, Label.DEVICE_NUM_OF_PFS: spec.number_of_pfs,
        Label.DEVICE_PF0_NAME: spec.pf0_name,
    }
    return {label: str(value) for label, value in found.items() if value is not None}


def _preflight_failure(pod: Pod) -> str:
    """What the rshim check left in its termination log, or ''."""
    for status in pod.status.init_container_statuses:
        if status.name == PREFLIGHT:
            for state in (status.state, status.last_state):
                ended = state.get("terminated", {})
                if ended.get("exitCode"):
                    return str(ended.get("message", ""))
    return ""
