"""The fleet's own work: ReplicaSets that make evicted pods again, and the objects of the pods a fleet file lists."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final

import msgspec

from twin.actors.actor import Actor
from twin.actors.podviews import FINISHED, finished
from twin.model.core import (
    ContainerStatus,
    DaemonSet,
    Pod,
    PodDisruptionBudget,
    PodDisruptionBudgetSpec,
    PodSpec,
    PodStatus,
    ReplicaSet,
    ReplicaSetSpec,
)
from twin.model.fleet import Budget, Host
from twin.model.fleet import Pod as PodRecord
from twin.model.meta import Condition, Key, Object, ObjectMeta, format_time, replace
from twin.model.provisioning import LabelSelector
from twin.runtime.reconcile import DONE, Context, Result, Watch, owner_key

APP: Final = "dpf-twin/workload"
"""Label that ties a workload's pods to their ReplicaSet."""


class PodsByController:
    """The pods of each controller, by its uid, which is also the token."""

    kinds: tuple[type[Object], ...] = (Pod,)

    def __init__(self) -> None:
        self._pods: dict[str, dict[Key, Pod]] = {}

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]:
        changed = dict.fromkeys((_controller(old), _controller(new)))
        if old is not None:
            self._pods.get(_controller(old), {}).pop(old.key, None)
        if isinstance(new, Pod) and _controller(new):
            self._pods.setdefault(_controller(new), {})[new.key] = new
        return [uid for uid in changed if uid]

    def of(self, uid: str) -> list[Pod]:
        return list(self._pods.get(uid, {}).values())


def _controller(pod: Object | None) -> str:
    return next((r.uid for r in pod.metadata.owner_references if r.controller), "") if pod is not None else ""


def _one_less(old: Any, new: Any) -> bool:
    """Does a ReplicaSet lose a pod by this change?"""
    if old is None or new is None:
        return new is None
    return (old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
            or (new.status.phase in FINISHED and not finished(old)))


class ReplicaSets(Actor):
    """Keeps the wanted number of pods alive: one that leaves is replaced at once, wherever there is room."""

    name = "replicaset"
    watches = (Watch(ReplicaSet), Watch(Pod, to=owner_key(ReplicaSet), when=_one_less))

    def reconcile(self, ctx: Context, key: Key) -> Result:
        owner = self.kube.get(ReplicaSet, key)
        if owner is None or owner.deleting:
            return DONE
        pods = self.kube.view(PodsByController, owner.metadata.uid).of(owner.metadata.uid)
        alive = [p for p in pods if not p.deleting and not finished(p)]
        wanted = 1 if owner.spec.replicas is None else owner.spec.replicas
        for _ in range(wanted - len(alive)):
            self.kube.create(_replica(owner))
        for pod in alive[wanted:]:
            self.kube.delete(Pod, pod.key, uid=pod.metadata.uid)
        return DONE


def _replica(owner: ReplicaSet) -> Pod:
    template = owner.spec.template
    meta = template.get("metadata") or {}
    return Pod(
        metadata=ObjectMeta(generate_name=f"{owner.metadata.name}-", namespace=owner.metadata.namespace,
                            labels=dict(meta.get("labels") or {}), owner_references=(owner.owner_reference(),)),
        spec=msgspec.convert(template.get("spec") or {}, PodSpec), status=PodStatus(phase="Pending"))


# --- from the fleet's records


def controller_of(record: PodRecord) -> Object | None:
    """The object that owns this pod and is to be created first; None for a bare pod."""
    meta = ObjectMeta(namespace=record.namespace, name=record.name)
    labels = {**record.labels, APP: record.name}
    template = {"metadata": {"labels": labels}, "spec": msgspec.to_builtins(_spec(record, ""))}
    if record.controller == "DaemonSet":
        return DaemonSet(metadata=meta, spec={"selector": {"matchLabels": {APP: record.name}}, "template": template})
    if record.controller == "ReplicaSet":
        return ReplicaSet(metadata=meta, spec=ReplicaSetSpec(
            replicas=1, selector=LabelSelector(match_labels={APP: record.name}), template=template))
    return None


def running_pod(record: PodRecord, host: Host, owner: Object | None, now: float) -> Pod:
    """The pod as it runs on its host when the story begins. `owner` is its controller as stored."""
    since = format_time(now)
    conditions = tuple(Condition(type=t, status="True", last_transition_time=since) for t in (
        "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"))
    return Pod(
        metadata=ObjectMeta(
            namespace=record.namespace, name=record.name, labels={**record.labels, APP: record.name},
            owner_references=(owner.owner_reference(),) if owner is not None else ()),
        spec=_spec(record, host.name),
        status=PodStatus(phase="Running", host_ip=host.ip, conditions=conditions, container_statuses=(
            ContainerStatus(name="main", ready=True, state={"running": {"startedAt": since}}),)))


def budget_object(record: Budget) -> PodDisruptionBudget:
    return PodDisruptionBudget(
        metadata=ObjectMeta(namespace=record.namespace, name=record.name),
        spec=PodDisruptionBudgetSpec(min_available=record.min_available, max_unavailable=record.max_unavailable,
                                     selector=LabelSelector(match_labels=dict(record.selector))))


def _spec(record: PodRecord, node: str) -> PodSpec:
    return replace(PodSpec(restart_policy="Always", termination_grace_period_seconds=round(record.grace_s),
                           containers=({"name": "main", "image": "workload"},)), node_name=node)
