"""DPUSet: a DPU for every selected device, roll-out of a changed template, counts (provisioning.md 5.1-5.4).

"Update" of a DPU is deletion; it is created again once it has gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from controllers.provisioning.dpuset_view import DpuSetView, Look, seeded
from twin.backends.base import AlreadyExists, ApiError, KubeApi, NotFound
from twin.model.meta import Key, Object, ObjectMeta, new_key, replace, strip_finalizer
from twin.model.names import Finalizer, Label
from twin.model.provisioning import (
    Dpu,
    DpuClusterRef,
    DpuDevice,
    DpuFlavor,
    DpuNode,
    DpuSet,
    DpuSpec,
    TemplateCluster,
)
from twin.model.rollout import max_unavailable as max_unavailable
from twin.runtime.backends import Backends
from twin.runtime.reconcile import DONE, Context, Result, Watch, labels_changed, owner_key, owners

THROTTLE: Final = "throttle-initial-create"
WATCH_NODES: Final = "dpuset-watches-dpunodes"
SKIP_TAKEN: Final = "dpuset-skips-taken-devices"
DELETE_ONCE: Final = "dpuset-deletes-once"


def _every_set(reconciler: DpuSetReconciler, changed: Object) -> Iterable[Key]:
    return [s.key for s in reconciler.kube.list(DpuSet)]


def _sets_naming(reconciler: DpuSetReconciler, changed: Object) -> Iterable[Key]:
    return [s.key for s in reconciler.kube.list(DpuSet, changed.metadata.namespace)
            if s.spec.dpu_template.spec.dpu_flavor == changed.metadata.name]


@dataclass(frozen=True)
class DpuSetReconciler:
    kube: KubeApi
    view: type[DpuSetView]
    policies: frozenset[str]

    name: ClassVar[str] = "dpuset"

    @classmethod
    def make(cls, backends: Backends) -> DpuSetReconciler:
        return cls(backends.kube, seeded(backends.settings.seed), backends.policies)

    @property
    def watches(self) -> tuple[Watch, ...]:
        # upstream: dpuset-blind-to-dpunodes
        watched = (Watch(DpuSet), Watch(Dpu, owner_key(DpuSet), by=owners),
                   Watch(DpuDevice, _every_set, alike=True), Watch(DpuFlavor, _sets_naming))
        if WATCH_NODES not in self.policies:
            return watched
        return (*watched, Watch(DpuNode, _every_set, labels_changed, alike=True, unchanged=False))

    def reconcile(self, ctx: Context, key: Key) -> Result:
        dpuset = self.kube.get(DpuSet, key)
        if dpuset is None:
            return DONE
        if dpuset.metadata.deletion_timestamp:
            return self._release(dpuset)
        if Finalizer.DPUSET not in dpuset.metadata.finalizers:
            finalizers = (*dpuset.metadata.finalizers, Finalizer.DPUSET)
            self.kube.update(replace(dpuset, metadata=replace(dpuset.metadata, finalizers=finalizers)))
            return DONE
        # upstream: dpuset-only-own-namespace. Nodes and devices of other namespaces never match.
        view = self.kube.view(self.view, key)
        found = view.look(key)
        if found is None:
            return DONE
        error = ""
        if found.missing:
            error = self._create_missing(dpuset, found)
        if found.unselected and not error:
            error = self._delete(dpuset, found.unselected)
        if (found.unlabelled or found.swept or found.outdated) and not error:
            error = self._roll_out(dpuset, found, view)
        if error:
            return Result(error=error)
        self._count(key, dpuset, found.phases)
        return DONE

    # --- steps: each returns '' or the error that ends the pass

    def _release(self, dpuset: DpuSet) -> Result:
        # upstream: dpuset-gone-before-its-dpus. The garbage collector deletes them afterwards.
        if Finalizer.DPUSET in dpuset.metadata.finalizers:
            self.kube.update(replace(dpuset, metadata=strip_finalizer(dpuset.metadata, Finalizer.DPUSET)))
        return DONE

    def _create_missing(self, dpuset: DpuSet, found: Look) -> str:
        missing = found.missing
        if THROTTLE in self.policies and (budget := _budget(dpuset, found.total)) is not None:
            missing = missing[:max(0, budget - found.unavailable)]
        # upstream: no-throttle-on-create
        for device in missing:
            dpu = new_dpu(dpuset, device)
            try:
                self.kube.create(dpu)
            except ApiError as error:
                if isinstance(error, AlreadyExists) and self._is_ours(dpuset, dpu.key):
                    continue
                text = f"failed to created DPU index 0 on node {dpu.spec.dpu_node_name} {error}"
                self.kube.event(dpuset, "Warning", "FailedCreate", text)
                if isinstance(error, AlreadyExists) and SKIP_TAKEN in self.policies:
                    continue
                return text  # upstream: two-sets-one-device. The devices after it wait as well.
            self.kube.event(dpuset, "Normal", "SuccessfulCreate", f"Created DPU: ({dpu.key})")
        return ""

    def _is_ours(self, dpuset: DpuSet, key: Key) -> bool:
        """Is it the DPU that an earlier pass of this DPUSet made, and only the cache does not show it yet?

        Upstream would report an error. None of its recorded runs has one: its passes are slower than its watch.
        """
        try:
            found = self.kube.read_live(Dpu, key)
        except NotFound:
            return False
        return any(ref.uid == dpuset.metadata.uid for ref in found.metadata.owner_references)

    def _delete(self, dpuset: DpuSet, which: Iterable[Dpu]) -> str:
        """Delete these DPUs, those that are going already too."""
        kube, once = self.kube, DELETE_ONCE in self.policies
        for dpu in which:
            meta = dpu.metadata
            if once and meta.deletion_timestamp:
                continue
            # upstream: deletes-again. Each pass repeats the deletion and announces it until the DPU has gone.
            try:
                kube.delete(Dpu, new_key(Key, (meta.namespace, meta.name)))
            except ApiError as error:
                kube.event(dpuset, "Normal", "FailedDelete", f"Failed to delete DPU: {_place(dpu)}")
                return str(error)
            kube.event(dpuset, "Normal", "SuccessfulDelete", f"Delete DPU: {_place(dpu)}")
        return ""

    def _roll_out(self, dpuset: DpuSet, found: Look, view: DpuSetView) -> str:
        strategy = dpuset.spec.strategy
        if strategy is None or strategy.type != "RollingUpdate":
            # upstream: ondelete-keeps-node-labels. A changed label reaches DPUs under RollingUpdate only.
            return ""
        self._label(dpuset, found.unlabelled)
        if not found.swept and not found.outdated:
            return ""
        rolling = strategy.rolling_update
        try:
            budget = max_unavailable(rolling.max_unavailable if rolling is not None else None, found.total)
        except ValueError as refused:
            return str(refused)
        # upstream: sweep-of-unavailable. Outdated DPUs that are not available go at once, outside the budget.
        error = self._delete(dpuset, found.swept)
        room = budget - (found.total - found.owned) - found.unavailable
        if error or room <= 0 or not found.outdated:
            return error
        return self._delete(dpuset, view.next_outdated(dpuset.key, room))

    def _label(self, dpuset: DpuSet, which: Iterable[Dpu]) -> None:
        """Merge the template's node labels into these DPUs."""
        # upstream: node-labels-never-removed
        template = dpuset.spec.dpu_template.spec
        wanted = (template.cluster or TemplateCluster()).node_labels
        for dpu in which:
            self.kube.patch(Dpu, dpu.key, {"spec": {"cluster": {"nodeLabels": dict(wanted)}}})

    def _count(self, key: Key, dpuset: DpuSet, counts: dict[str, int]) -> None:
        """Patch the statistics where they differ."""
        old = dpuset.status.dpu_statistics if dpuset.status is not None else {}
        if counts == old:
            return
        changes: dict[str, Any] = {}
        for phase, n in counts.items():
            if old.get(phase) != n:
                changes[phase] = n
        for phase in old:
            if phase not in counts:
                changes[phase] = None
        self.kube.patch(DpuSet, key, {"status": {"dpuStatistics": dict(sorted(changes.items()))}}, status=True)


def _place(dpu: Dpu) -> str:
    meta = dpu.metadata
    return f"({meta.namespace}/{meta.name}) from node {dpu.spec.dpu_node_name}"


def _budget(dpuset: DpuSet, total: int) -> int | None:
    """What a throttled first creation may have in flight; None when the DPUSet names no maximum."""
    rolling = dpuset.spec.strategy.rolling_update if dpuset.spec.strategy is not None else None
    if rolling is None or rolling.max_unavailable is None:
        return None
    try:
        return max_unavailable(rolling.max_unavailable, total)
    except ValueError:
        return None


def new_dpu(dpuset: DpuSet, device: DpuDevice) -> Dpu:
    """The DPU of a device: named after it, labelled by the set and the device (the device wins)."""
    template, meta = dpuset.spec.dpu_template, dpuset.metadata
    node = device.metadata.labels.get(Label.DPUNODE_NAME, "")
    labels = {
        **meta.labels, **device.metadata.labels,
        Label.DPUSET_NAME: meta.name, Label.DPUSET_NAMESPACE: meta.namespace,
        Label.DPUNODE_NAME: node, Label.DPUDEVICE_NAME: device.metadata.name,
    }
    return Dpu(
        metadata=ObjectMeta(
            name=device.metadata.name, namespace=meta.namespace, labels=labels, annotations=template.annotations,
            owner_references=(dpuset.owner_reference(),)),
        spec=DpuSpec(
            dpu_node_name=node, dpu_device_name=device.metadata.name, bfb=template.spec.bfb.name,
            pci_address=device.spec.pci_address, node_effect=template.spec.node_effect,
            cluster=DpuClusterRef(node_labels=(template.spec.cluster or TemplateCluster()).node_labels),
            dpu_flavor=template.spec.dpu_flavor, bmc_ip=device.spec.bmc_ip or ""))
