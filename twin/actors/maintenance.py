"""NVIDIA's maintenance operator: NodeMaintenance from Pending to Ready, and back (provisioning.md 6).

The Ready condition's reason is the state: Pending, Scheduled, Cordon, WaitForPodCompletion (only when asked for),
Draining, Ready. Each step takes `maintenance-step`; a drain lasts until its pods are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Protocol

from twin.actors.actor import Actor
from twin.actors.hosts import Durations
from twin.actors.podviews import PodsByNode, finished, selects
from twin.actors.slots import Limits, Slots, Waiting
from twin.backends.base import ApiError, Clock, KubeApi, NotFound
from twin.model.core import DrainSpec, DrainStatus, Node, NodeMaintenance, NodeMaintenanceStatus, Pod
from twin.model.meta import (
    Key,
    Object,
    condition,
    condition_status,
    replace,
    set_condition,
    strip_finalizer,
)
from twin.runtime.reconcile import DONE, Context, Result, Watch

FINALIZER: Final = "maintenance.nvidia.com/finalizer"
INITIALLY_UNSCHEDULABLE: Final = "maintenance.nvidia.com/node-initial-state.unschedulable"
"""Annotation of a NodeMaintenance: the node had been cordoned before, so it stays so afterwards."""

PENDING, SCHEDULED, CORDON = "Pending", "Scheduled", "Cordon"
WAIT_FOR_PODS, DRAINING, READY = "WaitForPodCompletion", "Draining", "Ready"

SCHEDULE: Final = Key("", "schedule")
"""The queue key of the scheduler; NodeMaintenances have a namespace."""


class Evictor(Protocol):
    """pods/eviction."""

    def evict(self, pod: Pod, now: float) -> None:
        """Raises ApiError: code 429 when a PodDisruptionBudget forbids it now."""
        ...


class NodeAvailability:
    """How many nodes there are, and which are cordoned or not ready. The token is 'nodes'."""

    kinds: tuple[type[Object], ...] = (Node,)

    def __init__(self) -> None:
        self.total = 0
        self.unavailable: dict[str, None] = {}

    def observe(self, old: Any, new: Any) -> Iterable[Hashable]:
        if not _availability_changed(old, new):
            return ()
        self.total += (new is not None) - (old is not None)
        name = (old if new is None else new).metadata.name
        self.unavailable.pop(name, None)
        if new is not None and not _available(new):
            self.unavailable[name] = None
        return ("nodes",)


def _available(node: Node) -> bool:
    """A node without a Ready condition counts as ready, as upstream has it."""
    if node.spec.unschedulable:
        return False
    ready = condition(node.status.conditions, "Ready")
    return ready is None or ready.status == "True"


def _availability_changed(old: Any, new: Any) -> bool:
    if old is None or new is None:
        return old is not new
    if old.status.conditions is new.status.conditions and old.spec.unschedulable == new.spec.unschedulable:
        return False
    return _available(old) != _available(new)


def _scheduler(_: object, __: Object) -> Iterable[Key]:
    return (SCHEDULE,)


def _drained(reconciler: Maintenance, pod: Object) -> Iterable[Key]:
    assert isinstance(pod, Pod)
    key = reconciler.draining.get(pod.spec.node_name)
    return (key,) if key is not None else ()


def _gone(old: object, new: object) -> bool:
    return new is None


def _concerns(old: Any, new: Any) -> bool:
    """Most of our own writes need no second look: the next step begins with the write (`_go`)."""
    if old is None or new is None or old is new:
        return True
    if old.deleting != new.deleting or old.spec != new.spec:
        return True
    return state_of(new) in (WAIT_FOR_PODS, DRAINING) and state_of(old) != state_of(new)


class Maintenance(Actor):
    """Reconciles NodeMaintenances; `SCHEDULE` is the key of its scheduler."""

    name = "maintenance-operator"
    watches = (
        Watch(NodeMaintenance, when=_concerns),
        Watch(Node, to=_scheduler, when=_availability_changed),
        Watch(Pod, to=_drained, when=_gone),
    )

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, evictor: Evictor,
                 limits: Limits = Limits()) -> None:
        super().__init__(kube, clock, durations)
        self._evictor = evictor
        self.slots = Slots(limits)
        self.draining: dict[str, Key] = {}
        """Nodes whose pods somebody waits for, and who."""
        self._drains: dict[Key, str] = {}
        self._states: dict[str, Callable[[Context, NodeMaintenance, Node], Result]] = {
            "": self._begin, PENDING: self._pending, SCHEDULED: self._cordon, CORDON: self._after_cordon,
            WAIT_FOR_PODS: self._wait_for_pods, DRAINING: self._drain, READY: self._ready,
        }

    def reconcile(self, ctx: Context, key: Key) -> Result:
        if key == SCHEDULE:
            return self._schedule()
        maintenance = self.kube.get(NodeMaintenance, key)
        if maintenance is None:
            self._end(key)
            return DONE
        node = self.kube.get(Node, Key("", maintenance.spec.node_name))
        if node is None:
            self._drop_finalizer(maintenance)
            return DONE
        state = state_of(maintenance)
        if state not in ("", PENDING):
            self.slots.begin(key, maintenance.spec.node_name, maintenance.spec.requestor_id)
        if maintenance.deleting:
            return self._delete(maintenance, node, state)
        handler = self._states.get(state)
        return handler(ctx, maintenance, node) if handler is not None else DONE

    def _schedule(self) -> Result:
        nodes = self.kube.view(NodeAvailability, "nodes")
        for key in self.slots.grant(nodes.total, nodes.unavailable):
            self.wake(key)
        return DONE

    def _end(self, key: Key) -> None:
        node = self._drains.pop(key, None)
        if node is not None and self.draining.get(node) == key:
            del self.draining[node]
        for what in ("maintenance-step", "drain-timeout", "wait-timeout"):
            self.forget(key, what)
        if self.slots.end(key) and self.slots.waiting:
            self.wake(SCHEDULE)

    # --- state by state

    def _begin(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        if FINALIZER not in m.metadata.finalizers:
            m = self.kube.update(replace(m, metadata=replace(
                m.metadata, finalizers=(*m.metadata.finalizers, FINALIZER))))
        return self._go(ctx, m, PENDING)

    def _pending(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        if not self._step(m, PENDING):
            return DONE
        if self.slots.granted(m.key):
            return self._go(ctx, m, SCHEDULED)
        if self.slots.wait(Waiting(m.metadata.creation_timestamp, m.spec.node_name, m.spec.requestor_id, m.key)):
            self.wake(SCHEDULE)
        return DONE

    def _cordon(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        if not self._step(m, SCHEDULED):
            return DONE
        if m.spec.cordon is not False:
            if not node.spec.unschedulable:
                self.kube.update(replace(node, spec=replace(node.spec, unschedulable=True)))
            elif INITIALLY_UNSCHEDULABLE not in m.metadata.annotations:
                m = self.kube.update(replace(m, metadata=replace(m.metadata, annotations={
                    **m.metadata.annotations, INITIALLY_UNSCHEDULABLE: "true"})))
        return self._go(ctx, m, CORDON)

    def _after_cordon(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        if not self._step(m, CORDON):
            return DONE
        return self._go(ctx, m, DRAINING if m.spec.wait_for_pod_completion is None else WAIT_FOR_PODS)

    def _wait_for_pods(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        wait = m.spec.wait_for_pod_completion or {}
        self._watch_pods(m)
        left = tuple(str(p.key) for p in self._pods(m) if selects(str(wait.get("podSelector", "")), p.metadata.labels))
        timeout = float(wait.get("timeoutSeconds") or 0)
        expired = timeout > 0 and self.waited(m.key, "wait-timeout", (m.metadata.uid,), lambda: timeout)
        status = m.status or NodeMaintenanceStatus()
        if left and not expired:
            if left != status.wait_for_completion:
                self.kube.update_status(replace(m, status=replace(status, wait_for_completion=left)))
            return DONE
        m = replace(m, status=replace(status, wait_for_completion=left))
        return self._go(ctx, m, DRAINING)

    def _ready(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        return DONE

    def _delete(self, m: NodeMaintenance, node: Node, state: str) -> Result:
        """Undo the cordon, let the object go. In Ready this waits until nobody else asks for the maintenance."""
        if FINALIZER not in m.metadata.finalizers:
            return DONE
        if state == READY and m.spec.additional_requestors:
            return DONE
        if not self._step(m, "Deleting"):
            return DONE
        cordoned = state in (CORDON, WAIT_FOR_PODS, DRAINING, READY) and m.spec.cordon is not False
        if cordoned and node.spec.unschedulable and INITIALLY_UNSCHEDULABLE not in m.metadata.annotations:
            self.kube.update(replace(node, spec=replace(node.spec, unschedulable=False)))
        self._drop_finalizer(m)
        return DONE

    # --- draining

    def _drain(self, ctx: Context, m: NodeMaintenance, node: Node) -> Result:
        spec = m.spec.drain_spec
        self._watch_pods(m)
        pods = self._pods(m)
        left = [p for p in pods if spec is not None and to_be_drained(p, spec)]
        status = m.status or NodeMaintenanceStatus()
        if status.drain is None and left:
            status = replace(status, drain=DrainStatus(
                total_pods=len(pods), eviction_pods=len(left), wait_for_eviction=_names(left)))
            m = self.kube.update_status(replace(m, status=status))
        refused = self._evict(ctx, left, spec) if spec is not None else ()
        if self._step(m, DRAINING) and not left:
            return self._drained(ctx, m, status)
        if spec is not None and left and self._too_long(m, spec):
            status = self._failed(ctx, m, status, left, refused)
            self.kube.update_status(replace(m, status=status))
        return Result(requeue_after_s=self.durations("drain-retry", m.spec.node_name)) if refused else DONE

    def _evict(self, ctx: Context, left: list[Pod], spec: DrainSpec) -> tuple[str, ...]:
        """Evict what is not leaving yet. Returns why some may not."""
        refused = [why for p in left if (why := obstacle(p, spec))]
        if refused:
            return tuple(refused)  # kubectl drain evicts nobody while somebody may not go
        for pod in left:
            if pod.deleting:
                continue
            try:
                self._evictor.evict(pod, ctx.now)
            except NotFound:
                continue
            except ApiError as error:
                if error.code not in (409, 429, 500):
                    raise
                refused.append(f"{pod.key}: {error}")
        return tuple(refused)

    def _too_long(self, m: NodeMaintenance, spec: DrainSpec) -> bool:
        """Did this attempt to drain time out? The next one starts at once, as in the operator."""
        limit = self.durations("drain-timeout", m.spec.node_name) if spec.timeout_seconds is None else float(
            spec.timeout_seconds)
        if limit == 0 or not self.waited(m.key, "drain-timeout", (m.metadata.uid,), lambda: limit):
            return False
        self.forget(m.key, "drain-timeout")
        return True

    def _failed(self, ctx: Context, m: NodeMaintenance, status: NodeMaintenanceStatus, left: list[Pod],
                refused: tuple[str, ...]) -> NodeMaintenanceStatus:
        why = "drain did not complete in time: " + "; ".join(refused or _names(left))
        drain = status.drain or DrainStatus()
        gone = max(drain.eviction_pods - len(left), 0)
        return replace(
            status, conditions=set_condition(status.conditions, "Failed", "True", "DrainTimeout", why, ctx.now),
            drain=replace(drain, wait_for_eviction=_names(left),
                          drain_progress=100 * gone // drain.eviction_pods if drain.eviction_pods else 0))

    def _drained(self, ctx: Context, m: NodeMaintenance, status: NodeMaintenanceStatus) -> Result:
        self.draining.pop(m.spec.node_name, None)
        self._drains.pop(m.key, None)
        conditions = status.conditions
        if condition_status(conditions, "Failed") == "True":
            conditions = set_condition(conditions, "Failed", "False", "DrainSucceeded", "", ctx.now)
        drain = replace(status.drain, drain_progress=100, wait_for_eviction=()) if status.drain is not None else None
        return self._go(ctx, replace(m, status=replace(status, conditions=conditions, drain=drain)), READY)

    # --- helpers

    def _watch_pods(self, m: NodeMaintenance) -> None:
        self.draining[m.spec.node_name] = m.key
        self._drains[m.key] = m.spec.node_name

    def _pods(self, m: NodeMaintenance) -> list[Pod]:
        return self.kube.view(PodsByNode, m.spec.node_name).on(m.spec.node_name)

    def _step(self, m: NodeMaintenance, state: str) -> bool:
        return self.over(m.key, "maintenance-step", m.spec.node_name, m.metadata.uid, state)

    def _go(self, ctx: Context, m: NodeMaintenance, state: str) -> Result:
        status = m.status or NodeMaintenanceStatus()
        done = "True" if state == READY else "False"
        conditions = set_condition(status.conditions, "Ready", done, state, "", ctx.now)
        self.kube.update_status(replace(m, status=replace(status, conditions=conditions)))
        if state != READY and self._step(m, state):
            self.wake(m.key)  # a step without duration
        return DONE

    def _drop_finalizer(self, m: NodeMaintenance) -> None:
        meta = strip_finalizer(m.metadata, FINALIZER)
        if meta is not m.metadata:
            self.kube.update(replace(m, metadata=meta))


def state_of(m: NodeMaintenance) -> str:
    ready = condition(m.status.conditions, "Ready") if m.status is not None else None
    return ready.reason if ready is not None else ""


def _names(pods: list[Pod]) -> tuple[str, ...]:
    return tuple(str(p.key) for p in pods)


def to_be_drained(pod: Pod, spec: DrainSpec) -> bool:
    """Does `kubectl drain` with these options want this pod away? Pods of DaemonSets and static pods stay."""
    if "kubernetes.io/config.mirror" in pod.metadata.annotations or not selects(spec.pod_selector, pod.metadata.labels):
        return False
    if any(r.controller and r.kind == "DaemonSet" for r in pod.metadata.owner_references) and not finished(pod):
        return False
    return not spec.pod_eviction_filters or any(
        f.by_resource_name_regex is not None and _consumes(pod, f.by_resource_name_regex)
        for f in spec.pod_eviction_filters)


def obstacle(pod: Pod, spec: DrainSpec) -> str:
    """Why these options forbid to drain this pod; '' if they do not."""
    if finished(pod) or pod.deleting:
        return ""
    if not spec.force and not any(r.controller for r in pod.metadata.owner_references):
        return f"{pod.key}: cannot delete Pods that declare no controller"
    if not spec.delete_empty_dir and any("emptyDir" in v for v in pod.spec.volumes):
        return f"{pod.key}: cannot delete Pods with local storage"
    return ""


def _consumes(pod: Pod, pattern: str) -> bool:
    return any(
        re.search(pattern, name)
        for c in (*pod.spec.init_containers, *pod.spec.containers)
        for part in ("requests", "limits") for name in (c.get("resources") or {}).get(part) or {})
