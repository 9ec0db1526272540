"""What the containers of a DMS pod do to their host and to the API server (provisioning.md 3.1)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from twin.actors.hosts import DPU_DEVICE_IDS, Durations, Hosts, Machine
from twin.backends.base import AlreadyExists, ApiError, KubeApi
from twin.model.core import Node, Pod
from twin.model.meta import Key, ObjectMeta
from twin.model.names import DMS_COMPONENT, DMS_PORT, Label
from twin.model.provisioning import (
    DmsAddress,
    DpuDevice,
    DpuDeviceSpec,
    DpuNode,
    DpuNodeSpec,
    DpuRef,
    NodeRebootMethod,
    ScriptReboot,
)

RSHIM_PREFLIGHT: Final = "rshim-preflight"
DMS_INIT: Final = "dms-init"
CONFIGURE_VF: Final = "configure-vf"

RSHIM_ON_HOST: Final = (
    "rshim is installed on host which is not supported. Please remove the rshim package from the host")
"""What rshim-preflight leaves in its termination log, as recorded (golden case f2)."""


def is_dms(pod: Pod) -> bool:
    return pod.metadata.labels.get(Label.COMPONENT) == DMS_COMPONENT


@lru_cache(maxsize=256)
def reboot_method(arguments: tuple[str, ...]) -> NodeRebootMethod:
    """From dmsinit's `--reboot-method` and `--script-name`: external, script with a name, else gNOI."""
    options = dict(itertools.pairwise(arguments))
    wanted, script = options.get("--reboot-method", ""), options.get("--script-name", "")
    if wanted == "external":
        return NodeRebootMethod(external={})
    return NodeRebootMethod(script=ScriptReboot(name=script)) if script else NodeRebootMethod(gnoi={})


def register(kube: KubeApi, namespace: str, machine: Machine, arguments: Sequence[str] = ()) -> str:
    """dmsinit's "register": DPUDevices, then the DPUNode. What exists is left as it is. '' or why it failed."""
    node = kube.get(Node, Key("", machine.name))
    if node is None:
        return f'nodes "{machine.name}" not found'
    cards = [c for c in machine.cards if c.device_id in DPU_DEVICE_IDS]
    if not cards:
        return f"no DPU found on {machine.name}"
    names = [f"{machine.name}-{c.pci_address}" for c in cards]
    for name, card in zip(names, cards, strict=True):
        _create(kube, DpuDevice(
            metadata=ObjectMeta(namespace=namespace, name=name),
            spec=DpuDeviceSpec(pci_address=card.pci_address, pf0_name=card.pf0_name,
                               number_of_pfs=card.number_of_pfs)))
    _create(kube, DpuNode(
        metadata=ObjectMeta(namespace=namespace, name=machine.name,
                            owner_references=(node.owner_reference(block=None),)),
        spec=DpuNodeSpec(node_reboot_method=reboot_method(tuple(arguments)),
                         node_dms_address=DmsAddress(ip=machine.address, port=DMS_PORT),
                         dpus=tuple(DpuRef(name=n) for n in names))))
    return ""


def _create(kube: KubeApi, obj: DpuDevice | DpuNode) -> None:
    if kube.get(type(obj), obj.key) is not None:
        return
    with contextlib.suppress(AlreadyExists):
        kube.create(obj)


class DmsPod:
    """`twin.actors.pods.Program` of the pods labelled component=dms."""

    def __init__(self, kube: KubeApi, hosts: Hosts, durations: Durations) -> None:
        self._kube = kube
        self._hosts = hosts
        self._durations = durations

    def takes_s(self, pod: Pod, container: str, attempt: str) -> float | None:
        if container == DMS_INIT:
            return self._durations("dms-init", pod.spec.node_name, attempt)
        return 0.0 if container in (RSHIM_PREFLIGHT, CONFIGURE_VF) else None

    def finish(self, pod: Pod, container: str) -> str:
        machine = self._hosts.machine(pod.spec.node_name)
        if machine is None:
            return "host is gone"
        if container == RSHIM_PREFLIGHT:
            return RSHIM_ON_HOST if machine.rshim_taken else ""
        if container == CONFIGURE_VF:
            machine.configure_vf()
        elif container == DMS_INIT:
            arguments = next((c.get("args") or () for c in pod.spec.init_containers if c["name"] == DMS_INIT), ())
            try:
                return register(self._kube, pod.metadata.namespace, machine, arguments)
            except ApiError as error:
                return str(error)
        return ""

    def healthy(self, pod: Pod) -> bool:
        """The startup probe: is the BFB volume mounted at /bfb?"""
        machine = self._hosts.machine(pod.spec.node_name)
        return machine is not None and machine.volume_mounted

    def busy(self, pod: Pod) -> bool:
        return False

    def can_start(self, pod: Pod) -> bool:
        """Can the kubelet mount the pod's volumes?"""
        return self.healthy(pod)

    def started(self, pod: Pod) -> None:
        machine = self._hosts.machine(pod.spec.node_name)
        if machine is not None:
            machine.start_dmsd()

    def stopped(self, node: str) -> None:
        machine = self._hosts.machine(node)
        if machine is not None:
            machine.stop_dmsd()
