"""A host's Node object: the kubelet registers it and reports, the node-lifecycle controller notices silence.

Heartbeats are no writes here: a kubelet whose host is up is taken to renew its lease every `heartbeat` seconds from the
moment it first reports, so that its silence begins with the last one.
"""

from __future__ import annotations

from typing import Any, Final

from twin.actors.actor import Actor, wake_if_up
from twin.actors.hosts import Durations, Hosts, Machine, PodVerbs
from twin.actors.podviews import FOREVER, NOT_READY, UNREACHABLE, PodsByNode, evicted_after_s, pod_ready
from twin.backends.base import AlreadyExists, Clock, KubeApi, NotFound
from twin.model.core import Node, NodeSpec, NodeStatus, Pod
from twin.model.meta import Condition, Key, ObjectMeta, condition, format_time, replace, set_condition
from twin.model.provisioning import NodeAddress, Taint
from twin.runtime.reconcile import DONE, Context, Result, Watch

READY: Final = ("KubeletReady", "kubelet is posting ready status")
SILENT: Final = ("NodeStatusUnknown", "Kubelet stopped posting node status.")

ORPHANED_S: Final = 40.0
"""kube-controller-manager's pod garbage collector waits so long before it removes the pods of a deleted Node."""


GRACE: Final = "node-lifecycle-grace"


def missed_after_s(durations: Durations, node: str, boot: str, reported_s: float) -> float:
    """Seconds until a kubelet is missed that falls silent now, `reported_s` after its first report."""
    since_heartbeat = round(reported_s, 6) % durations("heartbeat", node)
    return round(max(durations(GRACE, node, boot) - since_heartbeat, 0.0), 6)


def _is_ready(node: Node) -> bool:
    ready = condition(node.status.conditions, "Ready")
    return ready is not None and ready.status == "True"


def _silent_from_the_start(old: object, new: Any) -> bool:
    return old is None and new is not None and not _is_ready(new)


class NodeRegistration(Actor):
    """The kubelets' node half: one Node per host, created at the host's boot, Ready while the host is up.

    A Node that someone deletes comes back with the host's next boot, as with a real kubelet. Keys are Node names.
    """

    name = "kubelet-node"
    watches = (Watch(Node, when=_silent_from_the_start),)

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, hosts: Hosts) -> None:
        super().__init__(kube, clock, durations)
        self._hosts = hosts
        self._registered: dict[str, str] = {}
        hosts.subscribe(lambda name: wake_if_up(self, hosts, name))

    def start(self) -> None:
        for name in self._hosts.names():
            self.wake(Key("", name))

    def reconcile(self, ctx: Context, key: Key) -> Result:
        machine = self._hosts.machine(key.name)
        if machine is None or not machine.up:
            return DONE
        node = self.kube.get(Node, key)
        if node is None:
            self._register(ctx, key, machine)
            return DONE
        self._registered[key.name] = machine.boot_id
        status = node_status(node.status, machine, ctx.now)
        if status != node.status:
            self.kube.update_status(replace(node, status=status))
        return DONE

    def _register(self, ctx: Context, key: Key, machine: Machine) -> None:
        if self._registered.get(key.name) == machine.boot_id:
            return
        labels = {"kubernetes.io/hostname": key.name, **machine.labels}
        try:
            self.kube.create(Node(
                metadata=ObjectMeta(name=key.name, labels=labels, annotations=dict(machine.annotations)),
                spec=NodeSpec(taints=tuple(machine.taints)),
                status=node_status(NodeStatus(), machine, ctx.now)))
        except AlreadyExists:
            return  # its watch event is on the way
        self._registered[key.name] = machine.boot_id


def node_status(old: NodeStatus, machine: Machine, now: float) -> NodeStatus:
    """What the kubelet of a running host reports; the same object when there is nothing new."""
    addresses = (NodeAddress(type="InternalIP", address=machine.address),
                 NodeAddress(type="Hostname", address=machine.name))
    conditions = set_condition(old.conditions, "Ready", "True", *READY, now)
    if (conditions is old.conditions and old.addresses == addresses
            and old.node_info.get("bootID") == machine.boot_id):
        return old
    return replace(old, conditions=conditions, addresses=addresses,
                   node_info={**old.node_info, "bootID": machine.boot_id})


def _judged_anew(old: Any, new: Any) -> bool:
    """Came or went, or its taints do not fit its Ready condition, or somebody added a taint that evicts."""
    if old is None or new is None or old is new:
        return new is None or old is new or new.spec.taints != () or not _is_ready(new)
    taints = new.spec.taints
    if taints_for(new, condition(new.status.conditions, "Ready"), 0.0) is not taints:
        return True
    return taints is not old.spec.taints and any(
        t.effect == "NoExecute" and t not in old.spec.taints for t in taints)


class NodeLifecycle(Actor):
    """kube-controller-manager's half: Ready Unknown after `node-lifecycle-grace` of silence, its taints, the pods they
    drive away, and the pods of deleted Nodes. Keys are Node names."""

    name = "node-lifecycle"
    watches = (Watch(Node, when=_judged_anew),)

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, hosts: Hosts, pods: PodVerbs) -> None:
        super().__init__(kube, clock, durations)
        self._hosts = hosts
        self._pods = pods
        self._met: dict[str, tuple[str, float]] = {}
        """Hosts that are ours to judge, their last boot, and when we first heard of it."""
        hosts.subscribe(lambda name: self.wake(Key("", name)))

    def start(self) -> None:
        for name in self._hosts.names():
            machine = self._hosts.machine(name)
            if machine is not None:
                self._met[name] = machine.boot_id, self.clock.now()

    def reconcile(self, ctx: Context, key: Key) -> Result:
        node = self.kube.get(Node, key)
        if node is None:
            self._collect_orphans(key)
            return DONE
        self.forget(key, "orphaned")
        machine = self._hosts.machine(key.name)
        met = self._met.get(key.name)
        if machine is not None and (met is None or met[0] != machine.boot_id):
            met = self._met[key.name] = machine.boot_id, ctx.now
        if met is not None:
            node = self._judge(ctx, key, node, machine is not None and machine.up, *met)
        if node.spec.taints:
            self._evict(key, node)
        return DONE

    # --- silence

    def _judge(self, ctx: Context, key: Key, node: Node, heard: bool, boot: str, since: float) -> Node:
        """`heard`: does its kubelet run? A host that was taken out of service is never heard again.

        `boot`: its last boot, first heard of at `since`.
        """
        ready = condition(node.status.conditions, "Ready")
        if heard:
            self.forget(key, GRACE)
        elif (ready is not None and ready.status == "True" and self.waited(
                key, GRACE, (key.name, boot), lambda: missed_after_s(self.durations, key.name, boot, ctx.now - since))):
            node = self.kube.update_status(replace(node, status=replace(
                node.status, conditions=set_condition(node.status.conditions, "Ready", "Unknown", *SILENT, ctx.now))))
            ready = condition(node.status.conditions, "Ready")
            self._mark_pods(key, ctx.now)
        taints = taints_for(node, ready, ctx.now)
        if taints is not node.spec.taints:
            node = self.kube.update(replace(node, spec=replace(node.spec, taints=taints)))
        return node

    def _mark_pods(self, key: Key, now: float) -> None:
        for pod in self.kube.view(PodsByNode, key.name).on(key.name):
            if pod_ready(pod):
                conditions = set_condition(pod.status.conditions, "Ready", "False", "", "", now)
                try:
                    self.kube.update_status(replace(pod, status=replace(pod.status, conditions=conditions)))
                except NotFound:
                    continue

    # --- pods that must go

    def _evict(self, key: Key, node: Node) -> None:
        taints = [t for t in node.spec.taints if t.effect == "NoExecute"]
        if not taints:
            return
        grace_s = self.durations("pod-eviction-grace")
        for pod in self.kube.view(PodsByNode, key.name).on(key.name):
            seconds = evicted_after_s(pod, taints, grace_s)
            if seconds == FOREVER or pod.deleting:
                continue
            since = [f"{t.key}={t.value}@{t.time_added}" for t in taints]
            if seconds == 0 or self.waited(key, ("evict", pod.key), (pod.metadata.uid, *since),
                                           lambda s=seconds: s):  # type: ignore[misc]
                self.forget(key, ("evict", pod.key))
                self._delete(pod)

    def _delete(self, pod: Pod) -> None:
        try:
            self.kube.delete(Pod, pod.key, uid=pod.metadata.uid)
        except NotFound:
            return

    def _collect_orphans(self, key: Key) -> None:
        pods = self.kube.view(PodsByNode, key.name).on(key.name)
        if pods and self.waited(key, "orphaned", (), lambda: ORPHANED_S):
            for pod in pods:
                self._pods.kill(pod)
            self.forget(key, "orphaned")


_TAINT_OF: Final = {"Unknown": UNREACHABLE, "False": NOT_READY}


def taints_for(node: Node, ready: Condition | None, now: float) -> tuple[Taint, ...]:
    """The node's taints plus those its Ready condition asks for, minus the others; the same tuple if they fit."""
    wanted = _TAINT_OF.get(ready.status, "") if ready is not None else ""
    taints = node.spec.taints
    there, others = not wanted, False
    for t in taints:
        if t.key == wanted:
            there = True
        elif t.key in (UNREACHABLE, NOT_READY):
            others = True
    if there and not others:
        return taints
    kept = tuple([t for t in taints if t.key == wanted or t.key not in (UNREACHABLE, NOT_READY)])
    if there:
        return kept
    since = format_time(now)
    return (*kept, Taint(key=wanted, effect="NoSchedule", time_added=since),
            Taint(key=wanted, effect="NoExecute", time_added=since))


