"""kube-scheduler: unbound pods go to a node that their node selector, affinity and the node's taints allow.

Among several the one with the fewest pods wins, then the one that came first: no randomness, and of all resources only
the number of pods counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

from twin.actors.actor import Actor
from twin.actors.hosts import Durations, PodVerbs
from twin.actors.podviews import FINISHED, UNSCHEDULABLE, finished, toleration_s
from twin.backends.base import Clock, KubeApi
from twin.model.core import Node, Pod
from twin.model.meta import Key, Object, replace, set_condition
from twin.model.provisioning import Taint
from twin.runtime.reconcile import DONE, Context, Result, Watch

ROOM: Final = "room"
MAX_PODS: Final = 110
"""The kubelet's default limit of pods on a node: the only resource that is looked at."""
_CORDONED: Final = Taint(key=UNSCHEDULABLE, effect="NoSchedule")


class Room:
    """The nodes by how many pods they hold. The token is `ROOM`; it changes when a node becomes fit for more.

    Nodes that refuse a pod without tolerations (cordoned, tainted) stand apart, so that nobody looks at them in vain.
    """

    kinds: tuple[type[Object], ...] = (Node, Pod)

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._pods: dict[str, int] = {}
        self._open: dict[int, dict[str, None]] = {}
        self._closed: dict[int, dict[str, None]] = {}

    def observe(self, old: Any, new: Any) -> Iterable[Hashable]:
        either = new if new is not None else old
        if isinstance(either, Pod):
            if old is not None and new is not None and old.spec is new.spec and old.status.phase == new.status.phase:
                return ()
            before, after = _holder(old), _holder(new)
            if before != after:
                self._move(before, -1)
                self._move(after, 1)
            return ()
        name = either.metadata.name
        if new is not None and old is not None and not fitness_changed(old, new):
            self.nodes[name] = new
            return ()
        self._leave(name)
        if new is None:
            return ()
        self.nodes[name] = new
        self._enter(name)
        return (ROOM,)

    def free(self, node: str) -> int:
        """How many more pods this node takes."""
        return MAX_PODS - self._pods.get(node, 0) if node in self.nodes else 0

    def pick(self, pod: Pod) -> str:
        """The node for this pod; '' if there is none."""
        pinned = pinned_to(pod)
        if pinned is not None:
            node = self.nodes.get(pinned)
            return pinned if node is not None and self.free(pinned) > 0 and fits(pod, node) else ""
        best = self._least(self._open, pod)
        if pod.spec.tolerations:
            best = min((b for b in (best, self._least(self._closed, pod)) if b is not None), default=None)
        return best[1] if best is not None else ""

    def _least(self, buckets: dict[int, dict[str, None]], pod: Pod) -> tuple[int, str] | None:
        for count in sorted(buckets):
            if count >= MAX_PODS:
                break
            for name in buckets[count]:
                if fits(pod, self.nodes[name]):
                    return count, name
        return None

    def _move(self, node: str, by: int) -> None:
        if not node:
            return
        known = node in self.nodes
        if known:
            self._unlist(node)
        self._pods[node] = self._pods.get(node, 0) + by
        if known:
            self._enter(node)

    def _enter(self, node: str) -> None:
        buckets = self._closed if closed(self.nodes[node]) else self._open
        buckets.setdefault(self._pods.get(node, 0), {})[node] = None

    def _leave(self, node: str) -> None:
        if node in self.nodes:
            self._unlist(node)
            del self.nodes[node]

    def _unlist(self, node: str) -> None:
        buckets, count = self._closed if closed(self.nodes[node]) else self._open, self._pods.get(node, 0)
        bucket = buckets[count]
        del bucket[node]
        if not bucket:
            del buckets[count]


def _holder(pod: Any) -> str:
    return pod.spec.node_name if pod is not None and pod.status.phase not in FINISHED else ""


def fitness_changed(old: Any, new: Any) -> bool:
    """May a pod that did not fit now fit?"""
    if old is None or new is None:
        return new is not None
    was, now = old.spec, new.spec
    if was is not now and (was.unschedulable != now.unschedulable or was.taints != now.taints):
        return True
    labels = new.metadata.labels
    return labels is not old.metadata.labels and bool(labels != old.metadata.labels)


def closed(node: Node) -> bool:
    """Does it refuse every pod without tolerations?"""
    spec = node.spec
    return spec.unschedulable or (spec.taints != () and any(t.effect != "PreferNoSchedule" for t in spec.taints))


def fits(pod: Pod, node: Node) -> bool:
    """Node selector, required node affinity, cordon and taints."""
    labels = node.metadata.labels
    for k, v in pod.spec.node_selector.items():
        if labels.get(k) != v:
            return False
    terms = _terms(pod)
    if terms and not any(_term_holds(t, node) for t in terms):
        return False
    for taint in (_CORDONED, *node.spec.taints) if node.spec.unschedulable else node.spec.taints:
        if taint.effect != "PreferNoSchedule" and toleration_s(pod, taint) <= 0:
            return False
    return True


def pinned_to(pod: Pod) -> str | None:
    """The only node a pod's affinity allows, if it names one."""
    terms = _terms(pod)
    for f in (terms[0].get("matchFields") or ()) if len(terms) == 1 else ():
        values = list(f.get("values") or ())
        if f.get("key") == "metadata.name" and f.get("operator") == "In" and len(values) == 1:
            return str(values[0])
    return None


def _terms(pod: Pod) -> list[Mapping[str, Any]]:
    affinity = (pod.spec.affinity or {}).get("nodeAffinity") or {}
    return list((affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ())


def _term_holds(term: Mapping[str, Any], node: Node) -> bool:
    return (all(_requirement(e, node.metadata.labels.get(e["key"])) for e in term.get("matchExpressions") or ())
            and all(_requirement(e, node.metadata.name) for e in term.get("matchFields") or ()))


def _requirement(e: Mapping[str, Any], value: str | None) -> bool:
    operator, values = e.get("operator"), list(e.get("values") or ())
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    if value is None or not value.lstrip("-").isdigit():
        return False
    return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])


def _waiting(scheduler: Scheduler, node: Object) -> Iterable[Key]:
    """As many of the waiting pods as this node takes."""
    if not scheduler.waiting:
        return ()
    assert isinstance(node, Node)
    free = scheduler.kube.view(Room, ROOM).free(node.metadata.name)
    waiting = scheduler.tolerant if closed(node) else scheduler.waiting
    return list(islice((key for key, pod in waiting.items() if fits(pod, node)), max(free, 0)))


def _comes_or_goes(old: Any, new: Any) -> bool:
    """Is there a pod to be bound, or one less?"""
    return new is None or not new.spec.node_name


class Scheduler(Actor):
    """Binds pods. Those that fit nowhere wait for a node to change."""

    name = "scheduler"
    watches = (Watch(Pod, when=_comes_or_goes), Watch(Node, to=_waiting, when=fitness_changed))

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, pods: PodVerbs) -> None:
        super().__init__(kube, clock, durations)
        self._pods = pods
        self.waiting: dict[Key, Pod] = {}
        self.tolerant: dict[Key, Pod] = {}
        """Those of the waiting pods that have tolerations."""

    def start(self) -> None:
        self.kube.view(Room, ROOM)  # nodes stand in it in the order in which they come

    def reconcile(self, ctx: Context, key: Key) -> Result:
        pod = self.kube.get(Pod, key)
        if pod is None or pod.spec.node_name or pod.deleting or finished(pod):
            self._served(key)
            return DONE
        room = self.kube.view(Room, ROOM)
        node = room.pick(pod)
        if node:
            self._served(key)
            self._pods.bind(pod, node)
            return DONE
        self.waiting[key] = pod
        if pod.spec.tolerations:
            self.tolerant[key] = pod
        conditions = set_condition(pod.status.conditions, "PodScheduled", "False", "Unschedulable",
                                   "no node fits the pod", ctx.now)
        if conditions is not pod.status.conditions:
            self.kube.update_status(replace(pod, status=replace(
                pod.status, phase=pod.status.phase or "Pending", conditions=conditions)))
        return DONE

    def _served(self, key: Key) -> None:
        self.waiting.pop(key, None)
        self.tolerant.pop(key, None)
