"""The simulated hardware as the actors see it (`twin.actors.hosts`): hosts as machines, DPUs as their own Arms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from twin.actors.hosts import Arm, Card, Machine
from twin.model.fleet import ControlPlaneNode
from twin.model.provisioning import Taint
from twin.sim.dms import SimDms
from twin.sim.host import Hosts, SimDpu, SimHost
from twin.sim.volume import SimVolume


class SimCard(NamedTuple):
    """One card. See `twin.actors.hosts.Card`."""

    pci_address: str
    pf0_name: str
    number_of_pfs: int
    psid: str
    device_id: str = "a2dc"


class SimMachine:
    """One host. See `twin.actors.hosts.Machine`."""

    def __init__(self, host: SimHost, hosts: Hosts, dms: SimDms, volume: SimVolume) -> None:
        self._host = host
        self._hosts = hosts
        self._dms = dms
        self._volume = volume
        self.name = host.name
        self.address = host.ip
        self.labels: Mapping[str, str] = host.record.labels
        self.annotations: Mapping[str, str] = host.record.annotations
        self.taints: Sequence[Taint] = ()
        self.cards: Sequence[Card] = tuple(SimCard(c.pci, c.pf0, c.pfs, c.psid) for c in host.record.cards)

    @property
    def up(self) -> bool:
        return self._host.up

    @property
    def boot_id(self) -> str:
        return self._host.boot_id

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


class ControlPlaneMachine:
    """A control-plane node: always up, without cards. Its kubelet runs pods; the story never touches it."""

    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    taints: Sequence[Taint] = ()
    cards: Sequence[Card] = ()
    up = True
    boot_id = "0"
    rshim_taken = False
    oob_bridge = False
    volume_mounted = True

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def configure_vf(self) -> None:
        """There are no VFs."""

    def start_dmsd(self) -> None:
        """There is no DMS."""

    def stop_dmsd(self) -> None:
        """There is no DMS."""


class SimMachines:
    """Kubernetes hosts of the fleet that are in service. See `twin.actors.hosts.Hosts`.

    Control-plane nodes are machines too, but nobody registers them: their Nodes are there from the start.
    """

    def __init__(self, hosts: Hosts, dms: SimDms, volume: SimVolume, control_plane: Iterable[ControlPlaneNode] = (),
                 ) -> None:
        self._machines: dict[str, SimMachine] = {
            name: SimMachine(host, hosts, dms, volume) for name, host in hosts.hosts.items() if host.record.kubernetes}
        self._all: dict[str, Machine] = {
            **{n.name: ControlPlaneMachine(n.name, n.ip) for n in control_plane}, **self._machines}
        self._told: list[Callable[[str], None]] = []
        self.retired: dict[str, None] = {}
        """Hosts taken out of service: their kubelets are never heard again."""
        hosts.listeners.host_up.append(lambda host: self.changed(host.name))
        hosts.listeners.host_down.append(lambda host: self.changed(host.name))

    def names(self) -> Sequence[str]:
        return [n for n in self._machines if n not in self.retired]

    def machine(self, name: str) -> Machine | None:
        return None if name in self.retired else self._all.get(name)

    def subscribe(self, changed: Callable[[str], None]) -> None:
        self._told.append(changed)

    def changed(self, name: str) -> None:
        if name in self._machines:
            for tell in self._told:
                tell(name)


class SimArm:
    """One DPU's kubelet. See `twin.actors.hosts.Arm`."""

    __slots__ = ("_dpu", "name")

    def __init__(self, dpu: SimDpu) -> None:
        self._dpu = dpu
        self.name = dpu.name

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
        config = self._dpu.device.config
        return config.server if config is not None and self._dpu.device.joined else ""


class SimArms:
    """All DPUs. See `twin.actors.hosts.Arms`."""

    def __init__(self, hosts: Hosts) -> None:
        self._arms: dict[str, Arm] = {name: SimArm(dpu) for name, dpu in hosts.dpus.items()}
        self._told: list[Callable[[str], None]] = []
        hosts.listeners.dpu_ready.append(self._changed)
        hosts.listeners.dpu_lost.append(self._changed)

    def arm(self, name: str) -> Arm | None:
        return self._arms.get(name)

    def subscribe(self, changed: Callable[[str], None]) -> None:
        self._told.append(changed)

    def _changed(self, dpu: SimDpu) -> None:
        for tell in self._told:
            tell(dpu.name)
