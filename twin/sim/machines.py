"""Simulated hosts and DPUs as the actors see them (`twin.actors.hosts`: Hosts, Machine, Arms, Arm)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from twin.model.fleet import Card as CardRecord
from twin.model.fleet import ControlPlaneNode
from twin.model.provisioning import GROUP, Taint
from twin.sim.dms import SimDms
from twin.sim.host import Hosts, SimDpu, SimHost
from twin.sim.volume import SimVolume

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
CONTROL_PLANE_TAINT = Taint(key=CONTROL_PLANE, effect="NoSchedule")

Changed = Callable[[str], None]


class SimCard:
    """A card as a PCI scan finds it. All cards of a fleet are BlueField-3."""

    __slots__ = ("device_id", "number_of_pfs", "pci_address", "pf0_name", "psid")

    def __init__(self, record: CardRecord) -> None:
        self.pci_address = record.pci
        self.pf0_name = record.pf0
        self.number_of_pfs = record.pfs
        self.psid = record.psid
        self.device_id = "a2dc"


class SimMachine:
    """One host of the fleet that is a Kubernetes node. `cards` may be set: a card that vanished, or came."""

    __slots__ = ("_dms", "_host", "_hosts", "_volume", "cards", "labels", "taints")

    def __init__(self, host: SimHost, hosts: Hosts, dms: SimDms, volume: SimVolume) -> None:
        self._host = host
        self._hosts = hosts
        self._dms = dms
        self._volume = volume
        self.cards: Sequence[SimCard] = tuple(SimCard(c) for c in host.record.cards)
        self.labels: Mapping[str, str] = {**host.record.labels, **_reboot_labels(host)}
        self.taints: Sequence[Taint] = ()

    @property
    def name(self) -> str:
        return self._host.name

    @property
    def address(self) -> str:
        return self._host.ip

    @property
    def annotations(self) -> Mapping[str, str]:
        return self._host.record.annotations

    @property
    def up(self) -> bool:
        return self._host.up

    @property
    def boot_id(self) -> str:
        return str(self._host.boots)

    @property
    def rshim_taken(self) -> bool:
        return self._host.rshim_taken

    @property
    def oob_bridge(self) -> bool:
        return self._host.br_dpu and self._host.default_route

    @property
    def volume_mounted(self) -> bool:
        return not self._volume.down

    def configure_vf(self) -> None:
        self._hosts.restore_network(self._host)

    def start_dmsd(self) -> None:
        self._dms.start(self._host.name)

    def stop_dmsd(self) -> None:
        self._dms.stop(self._host.name)


class SteadyMachine:
    """A control-plane node: always up, without cards."""

    __slots__ = ("address", "annotations", "boot_id", "cards", "labels", "name", "oob_bridge", "rshim_taken", "taints",
                 "up", "volume_mounted")

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.labels: Mapping[str, str] = {CONTROL_PLANE: ""}
        self.annotations: Mapping[str, str] = {}
        self.taints: Sequence[Taint] = (CONTROL_PLANE_TAINT,)
        self.up = True
        self.boot_id = "0"
        self.cards: Sequence[SimCard] = ()
        self.rshim_taken = self.oob_bridge = False
        self.volume_mounted = True

    def configure_vf(self) -> None:
        pass

    def start_dmsd(self) -> None:
        pass

    def stop_dmsd(self) -> None:
        pass


class SimMachines:
    """`twin.actors.hosts.Hosts`: the fleet's Kubernetes hosts and its control-plane nodes.

    Boots and losses are announced by themselves; after any other change (bridge, rshim, cards, the volume) its author
    calls `changed`.
    """

    def __init__(self, hosts: Hosts, dms: SimDms, volume: SimVolume, steady: Iterable[ControlPlaneNode] = ()) -> None:
        self._machines: dict[str, SimMachine | SteadyMachine] = {n.name: SteadyMachine(n.name, n.ip) for n in steady}
        for host in hosts.hosts.values():
            if host.record.kubernetes:
                self._machines[host.name] = SimMachine(host, hosts, dms, volume)
        self._subscribers: list[Changed] = []
        hosts.listeners.host_up.append(lambda host: self.changed(host.name))
        hosts.listeners.host_down.append(lambda host: self.changed(host.name))

    def names(self) -> Sequence[str]:
        return list(self._machines)

    def machine(self, name: str) -> SimMachine | SteadyMachine | None:
        return self._machines.get(name)

    def subscribe(self, changed: Changed) -> None:
        self._subscribers.append(changed)

    def changed(self, name: str) -> None:
        if name in self._machines:
            for tell in self._subscribers:
                tell(name)

    def all_changed(self) -> None:
        """The volume went away or came back: every host may read it."""
        for name in self._machines:
            self.changed(name)


class SimArm:
    """One DPU's own computer."""

    __slots__ = ("_dpu",)

    def __init__(self, dpu: SimDpu) -> None:
        self._dpu = dpu

    @property
    def name(self) -> str:
        return self._dpu.name

    @property
    def kubelet_ready(self) -> bool:
        return self._dpu.kubelet_ready

    @property
    def boot_id(self) -> str:
        return str(self._dpu.up_ns)

    @property
    def address(self) -> str:
        return self._dpu.card.oob_ip

    @property
    def server(self) -> str:
        device = self._dpu.device
        return device.config.server if device.joined and device.config is not None else ""


class SimArms:
    """`twin.actors.hosts.Arms`."""

    def __init__(self, hosts: Hosts) -> None:
        self._arms = {name: SimArm(dpu) for name, dpu in hosts.dpus.items()}
        self._subscribers: list[Changed] = []
        hosts.listeners.dpu_ready.append(self._tell)
        hosts.listeners.dpu_lost.append(self._tell)

    def arm(self, name: str) -> SimArm | None:
        return self._arms.get(name)

    def subscribe(self, changed: Changed) -> None:
        self._subscribers.append(changed)

    def _tell(self, dpu: SimDpu) -> None:
        for tell in self._subscribers:
            tell(dpu.name)


def _reboot_labels(host: SimHost) -> dict[str, str]:
    """How the administrator says that this host is not to be rebooted through DMS (provisioning.md 1.10)."""
    record = host.record
    if record.reboot == "gNOI":
        return {}
    labels = {f"{GROUP}/reboot-method": record.reboot}
    return {**labels, f"{GROUP}/script-name": record.reboot_script} if record.reboot_script else labels
