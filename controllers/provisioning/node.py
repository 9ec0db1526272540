"""Node: a DMS pod for every host that has DPUs and is not registered yet (provisioning.md 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from controllers.provisioning.dms_pod import certificate, internal_ip, pod
from twin.backends.base import KubeApi, Settings
from twin.model.core import Certificate, DpfOperatorConfig, Node, Pod
from twin.model.meta import Key, Object, new_key
from twin.model.names import Label, dms_certificate, dms_pod
from twin.model.provisioning import DpuNode
from twin.runtime.backends import Backends
from twin.runtime.reconcile import DONE, Context, Result, Watch

SELF_HEAL: Final = "dms-pod-self-heal"


def _relevant(old: Object | None, new: Object | None) -> bool:
    """Heartbeats are not: the labels and the addresses decide."""
    if not isinstance(old, Node) or not isinstance(new, Node):
        return new is not None
    was, now = old.metadata, new.metadata
    return (was.resource_version == now.resource_version or (was.labels is not now.labels and was.labels != now.labels)
            or old.status.addresses != new.status.addresses)


def _host_of(reconciler: NodeReconciler, changed: Object) -> tuple[Key, ...]:
    """The host of a DMS pod."""
    if changed.metadata.namespace != reconciler.settings.namespace or Label.COMPONENT not in changed.metadata.labels:
        return ()
    return (Key("", changed.metadata.name.removesuffix("-dms")),)


def _gone(old: Object | None, new: Object | None) -> bool:
    return new is None


@dataclass(frozen=True)
class NodeReconciler:
    kube: KubeApi
    settings: Settings
    policies: frozenset[str]

    name: ClassVar[str] = "node"

    @classmethod
    def make(cls, backends: Backends) -> NodeReconciler:
        return cls(backends.kube, backends.settings, backends.policies)

    @property
    def watches(self) -> tuple[Watch, ...]:
        pods = (Watch(Pod, _host_of, _gone, unchanged=False),) if SELF_HEAL in self.policies else ()
        return (Watch(Node, when=_relevant, unchanged=True), *pods)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        node = self.kube.get(Node, key)
        if node is None or node.deleting or Label.DPU_ENABLED not in node.metadata.labels:
            return DONE
        key = new_key(Key, (self.settings.namespace, node.metadata.name))
        registered = self.kube.get(DpuNode, key) is not None
        if registered and SELF_HEAL not in self.policies:
            return DONE  # upstream: dms-pod-not-recreated
        space = self.settings.namespace
        need_certificate = self.kube.get(Certificate, Key(space, dms_certificate(node.metadata.name))) is None
        need_pod = self.kube.get(Pod, Key(space, dms_pod(node.metadata.name))) is None
        if not need_certificate and not need_pod:
            return DONE
        if not internal_ip(node):
            return Result(error=f"node {node.metadata.name} has no InternalIP")
        configs = self.kube.list(DpfOperatorConfig)
        if len(configs) != 1:
            return Result(error=f"there must be exactly one DPFOperatorConfig, found {len(configs)}")
        if need_certificate:
            self.kube.create(certificate(configs[0], node, self.settings))
        if need_pod:
            self.kube.create(pod(configs[0], node, self.settings))
        return DONE
