"""The hardware as the neighbours see it: hosts with their cards, DPUs with their operating system.

Actors speak to these protocols, so the same kubelet, dpu-detector and kubeadm join stand in front of simulated hosts
and of emulated ones in a lab. All answers are facts of this moment; whoever implements them calls every subscriber with
the machine's name after any of them changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twin.backends.base import KubeApi
from twin.model.core import Pod
from twin.model.meta import Key, replace
from twin.model.provisioning import Taint

Durations = Callable[..., float]
"""`sample(operation, *entity) -> seconds` (`twin.model.timing.Timing.sample`)."""

Wake = Callable[[Key], None]
"""Put a key in an actor's queue because the hardware changed; its last pass is not known unchanged any more."""


def asleep(_: Key) -> None:
    """The `wake` of an actor that nobody runs."""


class Card(Protocol):
    """One BlueField as a PCI scan of its host finds it (provisioning.md 3.1, 8.1)."""

    @property
    def pci_address(self) -> str:
        """Domain-bus-device with hyphens: `0000-2b-00`."""
        ...

    @property
    def pf0_name(self) -> str: ...

    @property
    def number_of_pfs(self) -> int: ...

    @property
    def psid(self) -> str:
        """Empty when not known."""
        ...

    @property
    def device_id(self) -> str:
        """a2dc BlueField-3, a2d6 BlueField-2; others are no DPUs to dmsinit and the detector."""
        ...


DPU_DEVICE_IDS = ("a2dc", "a2d6")


class Machine(Protocol):
    """One host. `up` from the moment its kubelet runs after boot until power or reset takes it away."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str:
        """The Node's InternalIP; dmsd listens on it."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """What the kubelet registers the Node with."""
        ...

    @property
    def annotations(self) -> Mapping[str, str]: ...

    @property
    def taints(self) -> Sequence[Taint]: ...

    @property
    def up(self) -> bool: ...

    @property
    def boot_id(self) -> str:
        """A new one with every boot."""
        ...

    @property
    def cards(self) -> Sequence[Card]:
        """What a PCI scan finds now, in PCI order."""
        ...

    @property
    def rshim_taken(self) -> bool:
        """Does something on the host already own the rshim of the first DPU?"""
        ...

    @property
    def oob_bridge(self) -> bool:
        """Is `br-dpu` a bridge that owns a default IPv4 route?"""
        ...

    @property
    def volume_mounted(self) -> bool:
        """Can the BFB volume (NFS) be mounted and read?"""
        ...

    def configure_vf(self) -> None:
        """Put back the saved VF configuration after a boot; nothing saved, nothing done."""
        ...

    def start_dmsd(self) -> None:
        """rshim and dmsd run from now on. Harmless when they do."""
        ...

    def stop_dmsd(self) -> None:
        """dmsd ends (a host that goes down needs no telling)."""
        ...


class Hosts(Protocol):
    """All hosts of the fleet."""

    def names(self) -> Sequence[str]:
        """In a stable order."""
        ...

    def machine(self, name: str) -> Machine | None: ...

    def subscribe(self, changed: Callable[[str], None]) -> None: ...


class Arm(Protocol):
    """One DPU's own computer, as its DPU cluster hears of it. Its hostname is the DPU's name."""

    @property
    def name(self) -> str: ...

    @property
    def kubelet_ready(self) -> bool:
        """Does its kubelet report Ready, and is it heard (OS up, joined, CNI there, its network path intact)?"""
        ...

    @property
    def boot_id(self) -> str:
        """A new one with every boot of its operating system."""
        ...

    @property
    def address(self) -> str:
        """Its IPv4 address on br-comm-ch."""
        ...

    @property
    def server(self) -> str:
        """HOST:PORT of the API server it joined; '' when it has joined none since it was installed."""
        ...


class Arms(Protocol):
    """All DPUs of the fleet, by name."""

    def arm(self, name: str) -> Arm | None: ...

    def subscribe(self, changed: Callable[[str], None]) -> None: ...


class PodVerbs(Protocol):
    """What only schedulers, kubelets and evictors ask of an API server: its pod subresources."""

    def bind(self, pod: Pod, node: str) -> None:
        """pods/binding."""
        ...

    def kill(self, pod: Pod) -> None:
        """DELETE with grace period 0: the object is gone."""
        ...


class PlainPodVerbs:
    """`PodVerbs` by ordinary writes, for API servers that allow them (the simulated one does).

    `remove` takes a pod's object away whatever its grace.
    """

    def __init__(self, kube: KubeApi, remove: Callable[[Key], None]) -> None:
        self._kube = kube
        self._remove = remove

    def bind(self, pod: Pod, node: str) -> None:
        self._kube.update(replace(pod, spec=replace(pod.spec, node_name=node)))

    def kill(self, pod: Pod) -> None:
        self._remove(pod.key)
