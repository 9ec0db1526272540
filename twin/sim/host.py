"""Hosts and the DPUs in them: power, boot, reboot, VFs and the bridge, and what the DPU's own OS does when it is up.

A host reboot or power cycle resets its cards (`twin.model.device.host_reset`), so firmware on flash runs afterwards. A
host's network set-up does not survive it: the DMS pod's configure-vf puts the saved set-up back (provisioning.md 3.1).

The DPU joins by itself: once its OS is up and its VF0 is in the host's br-dpu, its join loop (every 5 s) runs kubeadm;
what the DPU cluster answers is the world's business (`join`). Everything here is called back in virtual time; the
answers to DMS commands are in `twin.sim.dms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from twin.model import device as dev
from twin.model.device import Arm, Device
from twin.model.dms_commands import Card, card
from twin.model.parts import DEFAULT_OPN, PARTS
from twin.model.timing import Timing
from twin.sim.clock import SECOND, Call, TwinEnvironment, ns
from twin.sim.runner import touch

OFF: Final = "off"
BOOTING: Final = "booting"
UP: Final = "up"

DEFAULT_FIRMWARE: Final = "32.43.1014"
"""What a card of an unprepared fleet runs: BlueField-3 firmware of DOCA 2.9."""


@dataclass(frozen=True, slots=True)
class DpuRecord:
    """One card as the fleet describes it. `name` is its DPUDevice's name, `pci` its address without function."""

    name: str
    pci: str = "0000:2b:00"
    part_number: str = DEFAULT_OPN
    serial: str = ""
    firmware: str = DEFAULT_FIRMWARE
    number_of_pfs: int = 2
    pf0_name: str = "ens1f0np0"
    mode: str = "dpu"
    reset_level3: bool = True
    reset_sync1: bool = True
    memory_gb: int | None = None
    """On-board memory; by default what the part number says, 16 for one we do not know."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """One host as the fleet describes it. `br_dpu` and `default_route` are the administrator's preparation."""

    name: str
    ip: str
    rack: str = ""
    dpus: tuple[DpuRecord, ...] = ()
    kubernetes: bool = True
    br_dpu: bool = True
    default_route: bool = True
    skip_route_check: bool = False
    rshim_taken: bool = False
    """Another process on the host owns rshim: the rshim-preflight init container fails."""


class SimDpu:
    """One card in its host."""

    __slots__ = ("card", "counts", "device", "host", "kubelet_ready", "name", "p0_up", "pending", "record", "seasoned",
                 "timer", "up_ns")

    def __init__(self, record: DpuRecord, host: SimHost) -> None:
        part = PARTS.get(record.part_number)
        memory = record.memory_gb or (part.capacity.memory_gb if part else 16)
        self.record = record
        self.name = record.name
        self.host = host
        self.card: Card = card(record.part_number, record.serial)
        self.device = Device(flash=record.firmware, running=record.firmware, memory_gb=memory, mode=record.mode,
                             next_mode=record.mode, level3=record.reset_level3, sync1=record.reset_sync1)
        self.timer: Call | None = None
        self.pending: Call | None = None  # the next step of the join loop, or of the node turning Ready
        self.counts: dict[str, int] = {}  # how often each operation was started: part of its draw
        self.p0_up = True
        self.up_ns = 0
        self.kubelet_ready = False
        self.seasoned = False  # was Ready before with this installation: its images are on disk


class SimHost:
    """One host. `saved` is /var/lib/dpf/dms/vf-config: it survives reboots, `vfs` and `bridged` do not."""

    __slots__ = ("boot_ns", "boots", "br_dpu", "bridged", "by_pci", "default_route", "dpus", "mtu", "name", "record",
                 "saved", "state", "timer", "vfs")

    def __init__(self, record: HostRecord) -> None:
        self.record = record
        self.name = record.name
        self.state = UP
        self.boot_ns = -86_400 * SECOND  # up for a day when the run starts
        self.boots = 0
        self.timer: Call | None = None
        self.br_dpu = record.br_dpu
        self.default_route = record.default_route
        self.vfs: dict[str, int] = {}
        self.bridged: dict[str, None] = {}
        self.mtu = 1500
        self.saved: dict[str, tuple[int, int]] = {}
        self.dpus = tuple(SimDpu(d, self) for d in record.dpus)
        self.by_pci = {d.record.pci: d for d in self.dpus}

    @property
    def up(self) -> bool:
        return self.state == UP


Join = Callable[[str, str, str], bool]
"""(DPU name, bootstrap token, API server) -> did kubeadm join succeed? The world then creates the Node."""

Observer = Callable[[str, str, str, str], None]
"""(change, host, dpu or '', detail): `host-reboot`, `dpu-reboot`, `installed`, `joined`, ..."""


@dataclass(slots=True)
class Listeners:
    """Who is told what, in the order they subscribed."""

    host_up: list[Callable[[SimHost], None]] = field(default_factory=list)
    host_down: list[Callable[[SimHost], None]] = field(default_factory=list)
    dpu_ready: list[Callable[[SimDpu], None]] = field(default_factory=list)
    """The DPU's kubelet reports Ready from now on."""
    dpu_lost: list[Callable[[SimDpu], None]] = field(default_factory=list)
    """The DPU's kubelet is not heard any more (Arm down, or its bridge or host is)."""
    install_ended: list[Callable[[SimDpu, str], None]] = field(default_factory=list)
    """An OS install ended; '' or why it failed."""


class Hosts:
    """All hosts of a fleet.

    `collapse`: failed joins are not repeated every 5 s but when `join_may_succeed` says so, at the instants at which
    the loop would have tried; both ways give the same times.
    """

    def __init__(self, env: TwinEnvironment, timing: Timing, records: Iterable[HostRecord], *, join: Join,
                 observe: Observer | None = None, collapse: bool = True) -> None:
        self._env = env
        self._timing = timing
        self._join = join
        self._observe = observe
        self._collapse = collapse
        self.hosts = {r.name: SimHost(r) for r in records}
        self.dpus: dict[str, SimDpu] = {d.name: d for h in self.hosts.values() for d in h.dpus}
        self.listeners = Listeners()
        self.readers: dict[Any, dict[Any, None]] = {}
        """Passes that read ("device", dpu) or ("uptime", host), see `twin.sim.runner.touch`."""
        self._refused: dict[SimDpu, int] = {}  # DPUs whose join failed, and when

    # --- time

    def sample_ns(self, operation: str, dpu: SimDpu) -> int:
        """A duration of one of the DPU's operations: a new draw each time it starts."""
        n = dpu.counts[operation] = dpu.counts.get(operation, 0) + 1
        return ns(self._timing.sample(operation, dpu.name, str(n), rack=dpu.host.record.rack))

    def uptime_s(self, host: SimHost) -> float:
        return (self._env.now - host.boot_ns) / SECOND

    # --- the host's power

    def reboot(self, host: SimHost, operation: str = "host-reboot", delay_s: float = 0.0) -> None:
        """Reset (`host-reboot`) or cold cycle (`host-power-cycle`) a host that is up; it drops after `delay_s`."""
        if host.up:
            self._env.call_at(ns(delay_s), self._drop, host, operation, host.boots)

    def power_off(self, host: SimHost) -> None:
        """No power until `power_on`: the host is off the network, its cards are dark."""
        self._down(host, OFF, "power-off")
        for dpu in host.dpus:
            self._set(dpu, dev.power_off(dpu.device))

    def power_on(self, host: SimHost) -> None:
        if host.state != OFF:
            return
        self._boot(host, "host-power-cycle")
        for dpu in host.dpus:
            self._set(dpu, dev.power_on(dpu.device))

    def rack(self, rack: str) -> Iterator[SimHost]:
        """The hosts of a rack, for its power."""
        return (h for h in self.hosts.values() if h.record.rack == rack)

    def _drop(self, host: SimHost, operation: str, boots: int) -> None:
        if not host.up or host.boots != boots:
            return
        self._down(host, BOOTING, operation)
        self._boot(host, operation)
        for dpu in host.dpus:
            self._set(dpu, dev.host_reset(dpu.device))

    def _down(self, host: SimHost, state: str, why: str) -> None:
        was_up, host.state = host.up, state
        if host.timer is not None:
            host.timer.cancel()
            host.timer = None
        self._note(why, host.name)
        if not was_up:
            return
        touch(self.readers, ("uptime", host.name))
        host.vfs.clear()
        host.bridged.clear()
        for listener in self.listeners.host_down:
            listener(host)
        for dpu in host.dpus:
            self._network(dpu)

    def _boot(self, host: SimHost, operation: str) -> None:
        host.state = BOOTING
        host.boots += 1
        takes = self._timing.sample(operation, host.name, str(host.boots), rack=host.record.rack)
        host.timer = self._env.call_at(ns(takes), self._up, host)

    def _up(self, host: SimHost) -> None:
        host.state, host.timer, host.boot_ns = UP, None, self._env.now
        touch(self.readers, ("uptime", host.name))
        self._note("host-up", host.name)
        if not host.record.kubernetes:
            self.restore_network(host)  # a systemd unit does on such hosts what configure-vf does elsewhere
        for listener in self.listeners.host_up:
            listener(host)

    # --- the host's network (provisioning.md 8.3)

    def attach(self, dpu: SimDpu, vfs: int, mtu: int) -> None:
        """VFs, VF0 into br-dpu, MTU, and the saved set-up. A VF count that is not 0 is never changed."""
        host = dpu.host
        host.vfs.setdefault(dpu.record.pci, vfs)
        host.mtu = mtu
        host.bridged[dpu.record.pci] = None
        host.saved[dpu.record.pci] = (vfs, mtu)
        self._network(dpu)

    def detach(self, dpu: SimDpu) -> None:
        """`--delete`, and the script's clean-up after an error: VF0 leaves the bridge, the VFs stay."""
        dpu.host.bridged.pop(dpu.record.pci, None)
        dpu.host.saved.pop(dpu.record.pci, None)
        self._network(dpu)

    def restore_network(self, host: SimHost) -> None:
        """The init container configure-vf: put the saved set-up back after a reboot; nothing saved, nothing done."""
        for pci, (vfs, mtu) in list(host.saved.items()):
            dpu = host.by_pci.get(pci)
            if dpu is not None and host.br_dpu:
                self.attach(dpu, vfs, mtu)

    def set_bridge(self, host: SimHost, *, br_dpu: bool | None = None, default_route: bool | None = None) -> None:
        """The administrator makes or breaks br-dpu, or the default route over it."""
        if br_dpu is not None:
            host.br_dpu = br_dpu
            if not br_dpu:
                host.bridged.clear()
        if default_route is not None:
            host.default_route = default_route
        for dpu in host.dpus:
            self._network(dpu)

    def set_p0(self, dpu: SimDpu, up: bool) -> None:
        """The card's first port: while it is down the DPU has no control plane (known issue 3751863)."""
        dpu.p0_up = up
        self._network(dpu)

    # --- the card

    def change(self, dpu: SimDpu, new: Device) -> None:
        """A request was made of the device (`twin.model.device`): take its new state and time what it does now."""
        if new is not dpu.device:
            self._set(dpu, new)

    def _set(self, dpu: SimDpu, new: Device, *, ended: bool = False) -> None:
        old, dpu.device = dpu.device, new
        touch(self.readers, ("device", dpu.name))
        if dpu.timer is not None:
            dpu.timer.cancel()
            dpu.timer = None
        if old.doing == dev.INSTALL and not ended:
            self._install_ended(dpu, "interrupted")
        if new.doing:
            if new.arm == Arm.BOOTING:
                self._note("dpu-reboot", dpu.host.name, dpu.name)
            elif new.arm == Arm.INSTALLING:
                self._note("installing", dpu.host.name, dpu.name, new.new_image.identity if new.new_image else "")
            dpu.timer = self._env.call_at(self.sample_ns(new.doing, dpu), self._finish, dpu)
        if new.up != old.up:
            dpu.up_ns = self._env.now
            self._network(dpu)

    def _finish(self, dpu: SimDpu) -> None:
        device = dpu.device
        what = device.doing
        if what == dev.INSTALL and self._timing.fails(what, dpu.name, str(dpu.counts[what])):
            self.fail_install(dpu, "the installer reported an error")
            return
        self._set(dpu, dev.finish(device), ended=True)
        if what == dev.INSTALL:
            dpu.seasoned = False
            self._note("installed", dpu.host.name, dpu.name, dpu.device.image.identity if dpu.device.image else "")
            self._note("dpu-reboot", dpu.host.name, dpu.name)
            self._install_ended(dpu, "")
        elif dpu.device.arm == Arm.HUNG:
            self._note("hung", dpu.host.name, dpu.name)

    def fail_install(self, dpu: SimDpu, why: str) -> None:
        """The install under way fails now; the card has no OS."""
        if dpu.device.doing != dev.INSTALL:
            return
        self._set(dpu, dev.fail(dpu.device), ended=True)
        self._note("install-failed", dpu.host.name, dpu.name, why)
        self._install_ended(dpu, why)

    def _install_ended(self, dpu: SimDpu, why: str) -> None:
        for listener in self.listeners.install_ended:
            listener(dpu, why)

    # --- the DPU's own OS: bridge, join loop, kubelet

    def connected(self, dpu: SimDpu) -> bool:
        """Does the DPU reach its control plane: OS up, VF0 in an existing br-dpu of a host that is up, p0 up?"""
        host = dpu.host
        return dpu.device.up and host.up and host.br_dpu and dpu.p0_up and dpu.record.pci in host.bridged

    def join_may_succeed(self) -> None:
        """Something changed in a DPU cluster: DPUs whose join failed try again at the next turn of their loops."""
        refused, self._refused = self._refused, {}
        for dpu, at in refused.items():
            dpu.pending = self._env.call_at(self._turn(at), self._try_join, dpu)

    def _turn(self, start: int) -> int:
        """Nanoseconds until the loop that started at `start` turns next."""
        period = ns(self._timing.sample("join-retry"))
        return -((self._env.now - start) % -period) if period else 0

    def _network(self, dpu: SimDpu) -> None:
        """Something that `connected` looks at may have changed."""
        if not self.connected(dpu):
            self._silence(dpu)
        elif dpu.pending is None and not dpu.kubelet_ready and dpu not in self._refused:
            if not dpu.device.joined:
                delay = self._turn(dpu.up_ns) + self.sample_ns("dpu-join", dpu)
                dpu.pending = self._env.call_at(delay, self._try_join, dpu)
            else:
                delay = 0 if dpu.seasoned else self.sample_ns("cni-ready", dpu)
                dpu.pending = self._env.call_at(delay, self._ready, dpu)

    def _silence(self, dpu: SimDpu) -> None:
        self._refused.pop(dpu, None)
        if dpu.pending is not None:
            dpu.pending.cancel()
            dpu.pending = None
        if dpu.kubelet_ready:
            dpu.kubelet_ready = False
            for listener in self.listeners.dpu_lost:
                listener(dpu)

    def _try_join(self, dpu: SimDpu) -> None:
        config = dpu.device.config
        assert config is not None
        dpu.pending = None
        if not self._join(config.hostname, config.token, config.server):
            if self._collapse:
                self._refused[dpu] = self._env.now
            else:
                period = ns(self._timing.sample("join-retry"))
                dpu.pending = self._env.call_at(period, self._try_join, dpu)
            return
        dpu.device = replace(dpu.device, joined=True)
        self._note("joined", dpu.host.name, dpu.name)
        dpu.pending = self._env.call_at(self.sample_ns("cni-ready", dpu), self._ready, dpu)

    def _ready(self, dpu: SimDpu) -> None:
        dpu.pending = None
        dpu.kubelet_ready = dpu.seasoned = True
        for listener in self.listeners.dpu_ready:
            listener(dpu)

    def _note(self, change: str, host: str, dpu: str = "", detail: str = "") -> None:
        if self._observe is not None:
            self._observe(change, host, dpu, detail)
