"""DPUDeployment: its DPUSets (services.md 2.2.4), and what they depend on (2.2, steps 1 and 2).

Services, interfaces and chains of a DPUDeployment have no controller here, and no condition on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Final, cast

from controllers.services import conditions as cond
from twin.backends.base import ApiError, KubeApi, NotFound
from twin.model.kinds import to_manifest
from twin.model.meta import Conditions, Key, Object, ObjectMeta, replace
from twin.model.names import Finalizer, Label
from twin.model.provisioning import (
    Bfb,
    BfbRef,
    DpuFlavor,
    DpuSet,
    DpuSetSpec,
    DpuSetStrategy,
    DpuTemplate,
    DpuTemplateSpec,
    Phase,
    TemplateCluster,
)
from twin.model.services import DeploymentDpuSet, DpuDeployment, DpuDeploymentSpec, Status
from twin.runtime.backends import Backends
from twin.runtime.reconcile import DONE, Context, Result, Watch, owner_key

FIELD_MANAGER: Final = "dpudeployment"
FIRST_SUFFIX_WINS: Final = "dpudeployment-first-suffix-wins"
DELETION_POLL_S: Final = 30.0
PREREQUISITES: Final = "PrerequisitesReady"
RECONCILED: Final = "DPUSetsReconciled"
READY: Final = "DPUSetsReady"
TYPES: Final = (cond.READY, PREREQUISITES, RECONCILED, READY)


class Pending(Exception):
    """Something the DPUDeployment needs is not there yet."""


def consumed_by(key: Key) -> str:
    """The label that a DPUDeployment puts on what it uses: a digest of its namespace and name (services.md 2.2)."""
    text = json.dumps({"Namespace": key.namespace, "Name": key.name}, separators=(",", ":")) + "\n"
    return Label.CONSUMED_BY_DPUDEPLOYMENT + hashlib.sha256(text.encode()).hexdigest()[:10]


def owned_by(key: Key) -> str:
    return f"{key.namespace}_{key.name}"


def _naming(reconciler: DpuDeploymentReconciler, changed: Object) -> Iterable[Key]:
    """The DPUDeployments of its namespace that name this BFB or DPUFlavor, or still mark it as theirs."""
    meta, found = changed.metadata, []
    for deployment in reconciler.kube.list(DpuDeployment, meta.namespace):
        dpus = deployment.spec.dpus if deployment.spec is not None else None
        named = dpus is not None and (dpus.bfb if isinstance(changed, Bfb) else dpus.flavor) == meta.name
        if named or consumed_by(deployment.key) in meta.labels:
            found.append(deployment.key)
    return found


@dataclass(frozen=True)
class DpuDeploymentReconciler:
    kube: KubeApi
    policies: frozenset[str]

    name: ClassVar[str] = "dpudeployment"
    watches: ClassVar[tuple[Watch, ...]] = (
        Watch(DpuDeployment), Watch(DpuSet, owner_key(DpuDeployment)), Watch(Bfb, _naming), Watch(DpuFlavor, _naming))

    @classmethod
    def make(cls, backends: Backends) -> DpuDeploymentReconciler:
        return cls(backends.kube, backends.policies)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        deployment = self.kube.get(DpuDeployment, key)
        if deployment is None:
            return DONE
        meta = deployment.metadata
        if not deployment.deleting and Finalizer.DPUDEPLOYMENT not in meta.finalizers:
            self.kube.update(replace(deployment, metadata=replace(
                meta, finalizers=(*meta.finalizers, Finalizer.DPUDEPLOYMENT))))
            return DONE
        status = deployment.status or Status()
        conditions = cond.ensure(status.conditions, TYPES, ctx.now, meta.generation)
        if deployment.deleting:
            conditions, result, gone = self._delete(ctx, deployment, conditions)
            if gone:
                return result
        else:
            conditions, result = self._apply(ctx, deployment, conditions)
        conditions = cond.summarize(conditions, ctx.now, meta.generation)
        wanted = replace(status, conditions=conditions, observed_generation=meta.generation)
        if wanted != status:
            self.kube.update_status(replace(deployment, status=wanted))
        return result

    # --- the two directions

    def _apply(self, ctx: Context, deployment: DpuDeployment, conditions: Conditions) -> tuple[Conditions, Result]:
        """Dependencies, then DPUSets. A step that fails leaves the later conditions as they were."""
        now, generation, spec = ctx.now, deployment.metadata.generation, deployment.spec
        if spec is None:
            return conditions, DONE
        try:
            used = self._dependencies(deployment, spec)
            self._mark(deployment, used)
        except (Pending, ApiError) as error:
            text = f"Error occurred: {error}"
            conditions = cond.set_false(conditions, PREREQUISITES, "Pending", text, now, generation)
            return conditions, Result(error=str(error))
        conditions = cond.set_true(conditions, PREREQUISITES, now, generation)
        try:
            self._apply_sets(deployment, spec)
        except ApiError as error:
            text = f"Error occurred: {error}"
            conditions = cond.set_false(conditions, RECONCILED, "Error", text, now, generation)
            return conditions, Result(error=str(error))
        conditions = cond.set_true(conditions, RECONCILED, now, generation)
        waiting = [s.key for s in self._sets(deployment) if not _all_ready(s)]
        if waiting:
            message = "\n".join(["Objects not ready:", *(f"* {key}" for key in waiting)])
            return cond.set_false(conditions, READY, "Pending", message, now, generation), DONE
        return cond.set_true(conditions, READY, now, generation), DONE

    def _delete(self, ctx: Context, deployment: DpuDeployment, conditions: Conditions,
                ) -> tuple[Conditions, Result, bool]:
        """DPUSets first, and what they use is released once they have gone. The last value: is there nothing left?"""
        sets = self._sets(deployment)
        for dpuset in sets:
            if not dpuset.deleting:
                self._remove(dpuset)
        if sets:
            message = f"There are still {len(sets)} DPUSets that are not completely deleted"
            conditions = cond.set_false(conditions, RECONCILED, "AwaitingDeletion", message, ctx.now,
                                        deployment.metadata.generation)
            return conditions, Result(requeue_after_s=DELETION_POLL_S), False
        self._mark(deployment, ())
        meta = deployment.metadata
        if Finalizer.DPUDEPLOYMENT in meta.finalizers:
            left = tuple(f for f in meta.finalizers if f != Finalizer.DPUDEPLOYMENT)
            self.kube.update(replace(deployment, metadata=replace(meta, finalizers=left)))
        return conditions, DONE, True

    # --- dependencies

    def _dependencies(self, deployment: DpuDeployment, spec: DpuDeploymentSpec) -> Sequence[Bfb | DpuFlavor]:
        """The BFB, which must be Ready, and the DPUFlavor. Raises Pending."""
        prefix = "error while getting the DPUDeployment dependencies:"
        space = deployment.metadata.namespace
        bfb = self.kube.get(Bfb, Key(space, spec.dpus.bfb))
        if bfb is None:
            raise Pending(f"{prefix} {_missing(Bfb, Key(space, spec.dpus.bfb))}")
        if bfb.status is None or bfb.status.phase != "Ready":
            raise Pending(f"{prefix} BFB is not ready yet")
        flavor = self.kube.get(DpuFlavor, Key(space, spec.dpus.flavor))
        if flavor is None:
            raise Pending(f"{prefix} {_missing(DpuFlavor, Key(space, spec.dpus.flavor))}")
        return (bfb, flavor)

    def _mark(self, deployment: DpuDeployment, used: Sequence[Bfb | DpuFlavor]) -> None:
        """Hold what is used; let go what is not any more."""
        label = consumed_by(deployment.key)
        for obj in used:
            meta = obj.metadata
            if label not in meta.labels or Finalizer.DPUDEPLOYMENT not in meta.finalizers:
                held = meta.finalizers if Finalizer.DPUDEPLOYMENT in meta.finalizers else (
                    *meta.finalizers, Finalizer.DPUDEPLOYMENT)
                self.kube.update(replace(obj, metadata=replace(
                    meta, labels={**meta.labels, label: ""}, finalizers=held)))
        names = {(type(obj), obj.key) for obj in used}
        kinds: tuple[type[Bfb | DpuFlavor], ...] = (Bfb, DpuFlavor)
        for kind in kinds:
            for obj in self.kube.list(kind, deployment.metadata.namespace, {label: ""}):
                if (type(obj), obj.key) not in names:
                    self._release(obj, label)

    def _release(self, obj: Bfb | DpuFlavor, label: str) -> None:
        """Take this deployment's label off, and the finalizer with the last such label."""
        meta = obj.metadata
        labels = {k: v for k, v in meta.labels.items() if k != label}
        finalizers = meta.finalizers
        if not any(k.startswith(Label.CONSUMED_BY_DPUDEPLOYMENT) for k in labels):
            finalizers = tuple(f for f in finalizers if f != Finalizer.DPUDEPLOYMENT)
        self.kube.update(replace(obj, metadata=replace(meta, labels=labels, finalizers=finalizers)))

    # --- DPUSets

    def _sets(self, deployment: DpuDeployment) -> Sequence[DpuSet]:
        labels = {Label.OWNED_BY_DPUDEPLOYMENT: owned_by(deployment.key)}
        return self.kube.list(DpuSet, deployment.metadata.namespace, labels)

    def _apply_sets(self, deployment: DpuDeployment, spec: DpuDeploymentSpec) -> None:
        current = {s.metadata.name: s for s in self._sets(deployment)}
        wanted: dict[str, None] = {}
        for entry in spec.dpus.dpu_sets:
            name = f"{deployment.metadata.name}-{entry.name_suffix}"
            if name in wanted and FIRST_SUFFIX_WINS in self.policies:
                continue
            # upstream: duplicate-suffix-flaps. Equal suffixes write over each other, in each pass, without end.
            wanted[name] = None
            current[name] = self._apply_set(new_dpuset(deployment, spec, entry))
        for name, dpuset in current.items():
            if name not in wanted and not dpuset.deleting:
                self._remove(dpuset)

    def _apply_set(self, dpuset: DpuSet) -> DpuSet:
        """Server-side applied in each loop: what others or defaults have set beside our fields stays."""
        return cast(DpuSet, self.kube.apply(to_manifest(dpuset), FIELD_MANAGER, force=True))

    def _remove(self, dpuset: DpuSet) -> None:
        with suppress(NotFound):  # The cache may be behind.
            self.kube.delete(DpuSet, dpuset.key)


def _missing(kind: type[Bfb | DpuFlavor], key: Key) -> str:
    return (f"error while getting {kind.api_version()}, Kind={kind.KIND} {key}: "
            f'{kind.KIND}.{kind.GROUP} "{key.name}" not found')


def _all_ready(dpuset: DpuSet) -> bool:
    """Some DPUs, all of them Ready. A DPUSet that selects nothing is not (services.md 2.2.5)."""
    return dpuset.status is not None and list(dpuset.status.dpu_statistics) == [Phase.READY]


def new_dpuset(deployment: DpuDeployment, spec: DpuDeploymentSpec, entry: DeploymentDpuSet) -> DpuSet:
    owner = owned_by(deployment.key)
    return DpuSet(
        metadata=ObjectMeta(
            name=f"{deployment.metadata.name}-{entry.name_suffix}", namespace=deployment.metadata.namespace,
            labels={Label.OWNED_BY_DPUDEPLOYMENT: owner}, owner_references=(deployment.owner_reference(),)),
        spec=DpuSetSpec(
            strategy=DpuSetStrategy(type="RollingUpdate"), dpu_node_selector=entry.node_selector,
            dpu_selector=entry.dpu_selector,
            dpu_template=DpuTemplate(annotations=entry.dpu_annotations, spec=DpuTemplateSpec(
                bfb=BfbRef(name=spec.dpus.bfb), dpu_flavor=spec.dpus.flavor, node_effect=spec.dpus.node_effect,
                cluster=TemplateCluster(node_labels={Label.OWNED_BY_DPUDEPLOYMENT: owner})))))
