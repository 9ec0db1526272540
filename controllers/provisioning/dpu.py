"""The DPU controller: one DPU from an object to a Node of its DPU cluster, and back (provisioning.md 2).

The engine below is upstream's: a phase's handler returns the next status; a changed status is written, an unchanged
one is looked at again in 5 s (`Settings.requeue_s`). What a phase does stands in `dpu_phases` and the files it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

from controllers.provisioning import dpu_tasks
from controllers.provisioning.allocator import Allocator, Unallocated
from controllers.provisioning.dpu_pass import Pass, Unmet
from controllers.provisioning.dpu_phases import PHASES
from twin.model.meta import Key, Object, replace
from twin.model.names import Finalizer, Label
from twin.model.provisioning import Dpu, DpuCluster, DpuNode, DpuStatus, Firmware, Phase
from twin.runtime.backends import Backends
from twin.runtime.reconcile import DONE, Context, Result, Watch

NEW: Final = DpuStatus()


def _is_ready(_: Object | None, cluster: Object | None) -> bool:
    """Any change of a Ready DPUCluster counts: it turned Ready, or its limit was raised."""
    return isinstance(cluster, DpuCluster) and cluster.status is not None and cluster.status.phase == "Ready"


def _annotations_changed(old: Object | None, new: Object | None) -> bool:
    if old is None or new is None:
        return False
    was, now = old.metadata.annotations, new.metadata.annotations
    return was is not now and was != now


def _waiting_for_a_cluster(me: DpuReconciler, _: Object) -> Iterable[Key]:
    return me.backends.kube.view(Unallocated, None).dpus()


def _of_dpu_node(me: DpuReconciler, node: Object) -> Iterable[Key]:
    meta = node.metadata
    return [dpu.key for dpu in me.backends.kube.list(Dpu, meta.namespace, {Label.DPUNODE_NAME: meta.name})]


@dataclass(frozen=True)
class DpuReconciler:
    """Drives the DPUs of an installation."""

    backends: Backends
    again: Result
    """Nothing has changed: look again later."""

    name: ClassVar[str] = "dpu"
    watches: ClassVar[tuple[Watch, ...]] = (
        Watch(Dpu),
        Watch(DpuCluster, to=_waiting_for_a_cluster, when=_is_ready, alike=True),
        Watch(DpuNode, to=_of_dpu_node, when=_annotations_changed, unchanged=False),
    )

    @classmethod
    def make(cls, backends: Backends) -> DpuReconciler:
        return cls(backends, Result(requeue_after_s=backends.settings.requeue_s))

    def reconcile(self, ctx: Context, key: Key) -> Result:
        """Raises: ApiError (the runner backs off)."""
        b = self.backends
        dpu = b.kube.get(Dpu, key)
        if dpu is None:
            return DONE
        meta = dpu.metadata
        if not meta.deletion_timestamp and Finalizer.DPU not in meta.finalizers:
            b.kube.update(replace(dpu, metadata=replace(meta, finalizers=(*meta.finalizers, Finalizer.DPU))))
            return DONE
        if dpu.spec.cluster.name:
            b.memory.get(Allocator).learn(key, dpu)
        status = dpu.status if dpu.status is not None else NEW
        row = PHASES.get(status.phase or Phase.INITIALIZING)
        if row is None:
            # upstream: unknown-phase-is-stuck. How DPUs of an older release end up.
            return Result(error="unsupported phase")
        p = Pass(b, ctx, key, dpu, status, row.condition)
        error = ""
        for task in row.drops:
            dpu_tasks.forget(p, task)
        if row.leaves and meta.deletion_timestamp:
            after = p.to(Phase.DELETING)
        else:
            try:
                after = row.handle(p)
            except Unmet as no:
                after = p.unmet(no)
                error = "" if no.waiting else no.message
        return self._save(p.dpu, status, after, error)

    def _save(self, dpu: Dpu, before: DpuStatus, after: DpuStatus, error: str) -> Result:
        """upstream: stable-errors-are-swallowed. Only a change of status lets a handler's error through."""
        if after is not before and after != before:
            if after.firmware is None:
                after = replace(after, firmware=Firmware())  # Go writes the empty struct
            self.backends.kube.update_status(replace(dpu, status=after))
            return Result(error=error) if error else DONE
        if before.phase == Phase.ERROR:
            return Result(error=error) if error else DONE
        return self.again
