"""One look at one DPU: what every phase handler is given, and how it says yes, not yet, or no."""

from __future__ import annotations

from typing import TypeVar

from controllers.provisioning.flags import client_secret
from twin.backends.base import ApiError, DmsTarget, KubeReader, RpcError
from twin.model.core import Secret
from twin.model.meta import Key, Object, replace, set_condition
from twin.model.names import Label
from twin.model.provisioning import Dpu, DpuNode, DpuStatus, Phase
from twin.runtime.backends import Backends
from twin.runtime.reconcile import Context

T = TypeVar("T", bound=Object)


class Unmet(Exception):
    """A step the world does not allow yet, or at all: the phase's condition turns False.

    `phase` is where the DPU goes ('' = it stays and is looked at again). `waiting` marks an answer that upstream does
    not return as an error: nothing to back off from.
    """

    def __init__(self, reason: str, message: str, *, phase: str = "", waiting: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.phase = phase
        self.waiting = waiting


def fatal(reason: str, message: str) -> Unmet:
    """The phase ends in Error (provisioning.md 2.3)."""
    return Unmet(reason, message, phase=Phase.ERROR)


def not_found(kind: type[Object], name: str) -> str:
    """What a cached read says about a missing object: `BFB.provisioning.dpu.nvidia.com "x" not found`."""
    return f'{kind.KIND}.{kind.GROUP} "{name}" not found' if kind.GROUP else f'{kind.KIND} "{name}" not found'


class Pass:
    """The DPU as this pass read it (or patched it), the world, and the condition that the DPU's phase owns."""

    __slots__ = ("b", "condition", "ctx", "dpu", "key", "kube", "status")

    def __init__(self, b: Backends, ctx: Context, key: Key, dpu: Dpu, status: DpuStatus, condition: str) -> None:
        self.b = b
        self.kube = b.kube
        self.ctx = ctx
        self.key = key
        self.dpu = dpu
        self.status = status
        self.condition = condition

    def find(self, kind: type[T], key: Key, missing: str, failed: str) -> T:
        """The cached object. Raises Unmet with reason `missing` or `failed`."""
        try:
            found = self.kube.get(kind, key)
        except ApiError as error:
            raise Unmet(failed, str(error)) from error
        if found is None:
            raise Unmet(missing, not_found(kind, key.name))
        return found

    def beside(self, name: str) -> Key:
        """The key of what has this name in the DPU's namespace."""
        return Key(self.key.namespace, name)

    def node(self) -> DpuNode:
        """The DPU's DPUNode, in the DPU's namespace."""
        return self.find(DpuNode, self.beside(self.dpu.spec.dpu_node_name), "DPUNodeNotFound", "GetDPUNodeError")

    def passed(self, phase: str, reason: str = "", message: str = "") -> DpuStatus:
        """The phase is done: its condition True, on to `phase`. Without a reason, the reason is the type."""
        conditions = set_condition(self.status.conditions, self.condition, "True", reason or self.condition, message,
                                   self.ctx.now)
        return replace(self.status, phase=phase, conditions=conditions)

    def to(self, phase: str) -> DpuStatus:
        """On to another phase without a word about this one."""
        return replace(self.status, phase=phase)

    def unmet(self, no: Unmet) -> DpuStatus:
        """The status that says so."""
        conditions = set_condition(self.status.conditions, self.condition, "False", no.reason, no.message, self.ctx.now)
        phase = no.phase or self.status.phase
        if conditions is self.status.conditions and phase == self.status.phase:
            return self.status
        return replace(self.status, phase=phase, conditions=conditions)

    def ask(self, target: DmsTarget, command: str, reason: str) -> str:
        """The output of a command on the host; the worker waits. Raises Unmet with this reason."""
        try:
            return self.b.dms.get(target, command)
        except RpcError as error:
            raise Unmet(reason, str(error)) from error


def dms_target(b: Backends, kube: KubeReader, dpu: Dpu) -> DmsTarget:
    """Where the DMS of the DPU's host listens, and as whom we call it (provisioning.md 3.2, step 0). Connects lazily.

    Raises:
        ValueError: no DPUNode, no address, or no client Secret in the DPU's namespace.
    """
    namespace = dpu.metadata.namespace
    node = kube.get(DpuNode, Key(namespace, dpu.spec.dpu_node_name))
    if node is None:
        raise ValueError(not_found(DpuNode, dpu.spec.dpu_node_name))
    address = node.spec.node_dms_address
    if address is None:
        raise ValueError(f"nodeDMSAddress of DPUNode {namespace}/{dpu.spec.dpu_node_name} is not set")
    secret = Key(namespace, client_secret(kube, b.settings))
    if kube.get(Secret, secret) is None:
        raise ValueError(f"client secret not found: {not_found(Secret, secret.name)}")
    return DmsTarget(address.ip, address.port, secret)


def siblings(p: Pass) -> list[Dpu]:
    """The other DPUs of the same host, by label."""
    found = p.kube.list(Dpu, p.key.namespace, {Label.DPUNODE_NAME: p.dpu.spec.dpu_node_name})
    return [dpu for dpu in found if dpu.key != p.key]


def parse_bool(text: str) -> bool:
    """As Go's strconv.ParseBool. Raises ValueError with its text."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
