"""What a DPU cluster knows of its DPUs: kubeadm joins, Node objects, their kubelets' reports and silence.

The DPU's own loop (every 5 s, for ever) is the device's; here is the answer it gets, and what the kubelet then writes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from twin.actors.actor import Actor
from twin.actors.hosts import Arm, Arms, Durations
from twin.actors.kubelet import GRACE, READY, SILENT, missed_after_s
from twin.backends.base import AlreadyExists, ApiError, Clock, KubeApi
from twin.model.core import Node, NodeStatus, Secret
from twin.model.meta import Key, ObjectMeta, condition_status, parse_time, replace, set_condition
from twin.model.provisioning import NodeAddress
from twin.runtime.reconcile import DONE, Context, Result

TOKEN_TYPE: Final = "bootstrap.kubernetes.io/token"
TOKEN_NAMESPACE: Final = "kube-system"

REPORT_S: Final = 10.0
"""A kubelet that cannot reach its API server tries again with its next status update (nodeStatusUpdateFrequency)."""

NO_CNI: Final = (
    "KubeletNotReady",
    ("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
     "message:Network plugin returns error: cni plugin not initialized"),
)

Connect = Callable[[str], "KubeApi | None"]
"""HOST:PORT of an API server -> a client for it; None when no such server exists."""


class Joining(Actor):
    """Keeps the Nodes of DPU clusters true. Keys are DPU names; `join` is what `kubeadm join` on a DPU gets.

    Silence of a joined kubelet shows after `node-lifecycle-grace`, its return at once.
    """

    name = "dpu-kubelet"

    def __init__(self, clock: Clock, durations: Durations, arms: Arms, connect: Connect, kube: KubeApi) -> None:
        super().__init__(kube, clock, durations)
        self._arms = arms
        self._connect = connect
        self._registered: dict[str, str] = {}
        self._servers: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        """When the kubelets that are heard now began to report."""
        arms.subscribe(lambda name: self.wake(Key("", name)))

    # --- kubeadm join

    def join(self, name: str, token: str, server: str) -> bool:
        """One turn of a DPU's join loop: is the token good, and is there no Ready Node of that name already?

        Success registers the Node, not Ready yet.
        """
        kube = self._connect(server)
        if kube is None:
            return False
        arm = self._arms.arm(name)
        try:
            if not self._token_good(kube, token):
                return False
            return self._register(kube, name, server, arm)
        except ApiError:
            return False

    def _token_good(self, kube: KubeApi, token: str) -> bool:
        id_, _, secret = token.partition(".")
        found = kube.read_live(Secret, Key(TOKEN_NAMESPACE, f"bootstrap-token-{id_}"))
        if found.type != TOKEN_TYPE or field_of(found, "token-secret") != secret:
            return False
        expires = field_of(found, "expiration")
        return (field_of(found, "usage-bootstrap-authentication") == "true"
                and (not expires or parse_time(expires) > self.clock.now()))

    def _register(self, kube: KubeApi, name: str, server: str, arm: Arm | None) -> bool:
        key = Key("", name)
        old = kube.get(Node, key)
        if old is not None and condition_status(old.status.conditions, "Ready") == "True":
            return False  # kubeadm: a Node with this name and status "Ready" already exists in the cluster
        now = self.clock.now()
        status = NodeStatus(conditions=set_condition((), "Ready", "False", *NO_CNI, now),
                            addresses=_addresses(name, arm))
        if old is None:
            try:
                kube.create(dpu_node(name, status))
            except AlreadyExists:
                return False
        else:
            kube.update_status(replace(old, status=status))
        self._registered[name] = arm.boot_id if arm is not None else ""
        self._servers[name] = server
        return True

    # --- the kubelet's reports, and their absence

    def reconcile(self, ctx: Context, key: Key) -> Result:
        arm = self._arms.arm(key.name)
        if arm is None:
            return DONE
        # A DPU that is being installed anew has joined nothing; the cluster it was in still misses it.
        server = self._servers[key.name] = arm.server or self._servers.get(key.name, "")
        kube = self._connect(server) if server else None
        if kube is None:
            return Result(requeue_after_s=REPORT_S) if server else DONE
        node = kube.get(Node, key)
        if arm.kubelet_ready:
            self.forget(key, GRACE)
            self._heard.setdefault(key.name, ctx.now)
            self._report(ctx, kube, key, node, arm)
            return DONE
        since = self._heard.pop(key.name, None)
        silent_s = ctx.now - since if since is not None else 0.0
        if node is not None and condition_status(node.status.conditions, "Ready") == "True" and self.waited(
                key, GRACE, (key.name, arm.boot_id),
                lambda: missed_after_s(self.durations, key.name, arm.boot_id, silent_s)):
            self._set_ready(ctx, kube, node, "Unknown", SILENT, node.status.addresses)
        return DONE

    def _report(self, ctx: Context, kube: KubeApi, key: Key, node: Node | None, arm: Arm) -> None:
        if node is not None:
            self._registered[key.name] = arm.boot_id
            self._set_ready(ctx, kube, node, "True", READY, _addresses(key.name, arm))
        elif self._registered.get(key.name) != arm.boot_id:
            # A kubelet registers when it starts: a Node deleted under a running one stays away until the next boot.
            self._registered[key.name] = arm.boot_id
            kube.create(dpu_node(key.name, NodeStatus(
                conditions=set_condition((), "Ready", "True", *READY, ctx.now), addresses=_addresses(key.name, arm))))

    @staticmethod
    def _set_ready(ctx: Context, kube: KubeApi, node: Node, status: str, why: tuple[str, str],
                   addresses: tuple[NodeAddress, ...]) -> None:
        conditions = set_condition(node.status.conditions, "Ready", status, *why, ctx.now)
        if conditions is not node.status.conditions or addresses != node.status.addresses:
            kube.update_status(replace(node, status=replace(node.status, conditions=conditions, addresses=addresses)))


def field_of(secret: Secret, name: str) -> str:
    """A value of a Secret as text; '' when it is absent."""
    if name in secret.string_data:
        return secret.string_data[name]
    return base64.b64decode(secret.data.get(name, "")).decode()


def dpu_node(name: str, status: NodeStatus) -> Node:
    return Node(metadata=ObjectMeta(name=name, labels={
        "kubernetes.io/arch": "arm64", "kubernetes.io/hostname": name}), status=status)


def _addresses(name: str, arm: Arm | None) -> tuple[NodeAddress, ...]:
    own = (NodeAddress(type="Hostname", address=name),)
    return (NodeAddress(type="InternalIP", address=arm.address), *own) if arm is not None and arm.address else own
