"""Hosts and the DPUs in them: power, boot, reboot, VFs and the bridge, and what the DPU's own OS does when it is up.

A host reboot or power cycle resets its cards (`twin.model.device.host_reset`), so firmware on flash runs afterwards. A
host's network set-up does not survive it: the DMS pod's configure-vf puts the saved set-up back (provisioning.md 3.1).

The DPU joins by itself: once its OS is up and its VF0 is in the host's br-dpu, its join loop (every 5 s) runs kubeadm;
what the DPU cluster answers is the world's business (`join`). Everything here is called back in virtual time; the
answers to DMS commands are in `twin.sim.dms_servers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from twin.model import device as dev
from twin.model.device import Arm, Device
from twin.model.dms_commands import Board, board, pci_address
from twin.model.fleet import GI, Card, Host
from twin.model.timing import Timing
from twin.sim.clock import SECOND, Call, TwinEnvironment, ns
from twin.sim.runner import touch

OFF: Final = "off"
BOOTING: Final = "booting"
UP: Final = "up"


class SimDpu:
    """One card in its host. `pci` has colons and the domain; `name` is that of its DPUDevice.

    `token` names the device among what a pass has read.
    """

    __slots__ = ("board", "card", "counts", "device", "doomed", "ends_ns", "host", "kubelet_ready", "may_join",
                 "name", "p0_up", "pci", "pending", "rank", "seasoned", "timer", "token", "up_ns")

    def __init__(self, card: Card, host: SimHost) -> None:
        self.card = card
        self.name = card.name
        self.token = ("device", card.name)
        self.pci = pci_address(card.pci)
        self.host = host
        self.board: Board = board(card)
        self.device = Device(flash=card.firmware, running=card.firmware, memory_gb=card.memory_bytes // GI,
                             level3=card.fw_reset, sync1=card.fw_reset, rescans=card.pci_rescan)
        self.timer: Call | None = None
        self.ends_ns = 0  # when what the device is doing ends
        self.pending: Call | None = None  # the next step of the join loop, or of the node turning Ready
        self.counts: dict[str, int] = {}  # how often each operation was started: part of its draw
        self.doomed = ""  # why the install under way will fail at its end
        self.p0_up = True
        self.may_join = True
        self.rank = 0.0  # place in the fleet, 0 to 1: who joins first of those that join in one instant
        self.up_ns = 0
        self.kubelet_ready = False
        self.seasoned = False  # was Ready before with this installation: its images are on disk


class SimHost:
    """One host. `saved` is /var/lib/dpf/dms/vf-config: it survives reboots, `vfs` and `bridged` do not.

    `route_check` False: the file that makes the network script skip its wait for the default route is there.
    `rshim_taken`: something else on the host owns rshim, so the DMS pod's rshim-preflight fails.
    """

    __slots__ = ("boot_id", "boot_ns", "boots", "br_dpu", "bridged", "by_pci", "dark", "default_route", "dpus", "ip",
                 "mtu", "name", "rack", "record", "route_check", "rshim_taken", "saved", "state", "timer", "up", "vfs")

    def __init__(self, record: Host) -> None:
        self.record = record
        self.name = record.name
        self.ip = record.ip
        self.rack = record.rack
        self.become(UP)
        self.boot_ns = -86_400 * SECOND  # up for a day when the run starts
        self.boots = 0
        self.boot_id = "0"
        self.dark = 0  # how many power cuts are on it
        self.timer: Call | None = None
        self.br_dpu = self.default_route = record.oob_bridge
        self.route_check = True
        self.rshim_taken = False
        self.vfs: dict[str, int] = {}
        self.bridged: dict[str, None] = {}
        self.mtu = 1500
        self.saved: dict[str, tuple[int, int]] = {}
        self.dpus = tuple(SimDpu(card, self) for card in record.cards)
        self.by_pci = {d.pci: d for d in self.dpus}

    def become(self, state: str) -> None:
        self.state = state
        self.up = state == UP


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

    def __init__(self, env: TwinEnvironment, timing: Timing, hosts: Iterable[Host], *, join: Join,
                 observe: Observer | None = None, collapse: bool = True) -> None:
        self._env = env
        self._timing = timing
        self._join = join
        self._observe = observe
        self._collapse = collapse
        self.hosts = {h.name: SimHost(h) for h in hosts}
        self.dpus: dict[str, SimDpu] = {d.name: d for h in self.hosts.values() for d in h.dpus}
        for n, dpu in enumerate(self.dpus.values()):
            dpu.rank = n / len(self.dpus)
        self.listeners = Listeners()
        self.readers: dict[Any, dict[Any, None]] = {}
        """Passes that read ("device", dpu) or ("uptime", host), see `twin.sim.runner.touch`."""
        self._refused: dict[SimDpu, int] = {}  # DPUs whose join failed, and when

    # --- time

    def sample_ns(self, operation: str, dpu: SimDpu) -> int:
        """A duration of one of the DPU's operations: a new draw each time it starts."""
        n = dpu.counts[operation] = dpu.counts.get(operation, 0) + 1
        return round(self._timing.sample(operation, dpu.name, str(n), rack=dpu.host.rack) * SECOND)

    def uptime_s(self, host: SimHost) -> float:
        return (self._env.now - host.boot_ns) / SECOND

    # --- the host's power

    def reboot(self, host: SimHost, operation: str = "host-reboot", *, commanded: bool = False) -> None:
        """Reset (`host-reboot`) or cold cycle (`host-power-cycle`) a host that is up.

        `commanded`: a BMC was told so, and the host drops after the timing profile's `host-drop`.
        """
        if host.up:
            delay = self._timing.sample("host-drop", host.name) if commanded else 0.0
            self._env.call_at(ns(delay), self._drop, host, operation, host.boots)

    def power_off(self, host: SimHost) -> None:
        """No power until as many `power_on`: the host is off the network, its cards are dark."""
        host.dark += 1
        if host.dark > 1:
            return
        self._down(host, OFF, "power-off")
        for dpu in host.dpus:
            self._set(dpu, dev.power_off(dpu.device))

    def power_on(self, host: SimHost) -> None:
        if host.dark:
            host.dark -= 1
        if host.dark or host.state != OFF:
            return
        self._boot(host, "host-power-cycle")
        for dpu in host.dpus:
            self._set(dpu, dev.power_on(dpu.device))

    def rack(self, rack: str) -> Iterator[SimHost]:
        """The hosts of a rack, for its power."""
        return (h for h in self.hosts.values() if h.rack == rack)

    def _drop(self, host: SimHost, operation: str, boots: int) -> None:
        if not host.up or host.boots != boots:
            return
        self._down(host, BOOTING, operation)
        self._boot(host, operation)
        for dpu in host.dpus:
            self._set(dpu, dev.host_reset(dpu.device))

    def _down(self, host: SimHost, state: str, why: str) -> None:
        was_up = host.up
        host.become(state)
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
        host.become(BOOTING)
        host.boots += 1
        host.boot_id = str(host.boots)
        takes = self._timing.sample(operation, host.name, host.boot_id, rack=host.rack)
        host.timer = self._env.call_at(ns(takes), self._up, host)

    def _up(self, host: SimHost) -> None:
        host.become(UP)
        host.timer, host.boot_ns = None, self._env._now
        touch(self.readers, ("uptime", host.name))
        self._note("host-up", host.name)
        if not host.record.kubernetes:
            self.restore_network(host)  # a systemd unit does on such hosts what configure-vf does elsewhere
        for listener in self.listeners.host_up:
            listener(host)

    # --- the host's network (provisioning.md 8.3)

    def attach(self, dpu: SimDpu, vfs: int, mtu: int) -> bool:
        """VFs, VF0 into br-dpu, MTU, and the saved set-up. A VF count that is not 0 is never changed.

        False, and nothing done: there is no VF0, since no VFs are asked for and the card has none.
        """
        host = dpu.host
        count = host.vfs.get(dpu.pci) or vfs
        if not count:
            return False
        host.vfs[dpu.pci] = count
        host.mtu = mtu
        host.bridged[dpu.pci] = None
        host.saved[dpu.pci] = (vfs, mtu)
        self._network(dpu)
        return True

    def detach(self, dpu: SimDpu) -> None:
        """`--delete`, and the script's clean-up after an error: VF0 leaves the bridge, the VFs stay."""
        dpu.host.bridged.pop(dpu.pci, None)
        dpu.host.saved.pop(dpu.pci, None)
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

    def allow_join(self, dpu: SimDpu, allowed: bool) -> None:
        """While it is not allowed, kubeadm join fails on this DPU."""
        dpu.may_join = allowed
        if allowed:
            self.join_may_succeed()

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
        touch(self.readers, dpu.token)
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
            takes = self.sample_ns(new.doing, dpu)
            dpu.ends_ns = self._env._now + takes
            dpu.timer = self._env.call_at(takes, self._finish, dpu)
        if new.arm == Arm.RESETTING:
            dpu.host.vfs.pop(dpu.pci, None)  # the driver restarts: its VFs are gone
            dpu.host.bridged.pop(dpu.pci, None)
        if new.up != old.up:
            dpu.up_ns = self._env.now
            self._network(dpu)

    def _finish(self, dpu: SimDpu) -> None:
        device = dpu.device
        what = device.doing
        if what == dev.INSTALL:
            if self._timing.fails(what, dpu.name, str(dpu.counts[what])):
                dpu.doomed = dpu.doomed or "the installer reported an error"
            if dpu.doomed:
                self.fail_install(dpu, dpu.doomed)
                return
        self._set(dpu, dev.finish(device), ended=True)
        if what == dev.INSTALL:
            dpu.seasoned = False
            self._note("installed", dpu.host.name, dpu.name, dpu.device.image.identity if dpu.device.image else "")
            self._note("dpu-reboot", dpu.host.name, dpu.name)
            self._install_ended(dpu, "")
        elif dpu.device.arm == Arm.HUNG:
            self._note("hung", dpu.host.name, dpu.name)

    def reset_dpu(self, dpu: SimDpu) -> None:
        """Somebody resets the card outside DPF: the host's side of its VFs is stale until its network is set up anew.

        This is known issue 4424305: neither DPF nor the host repairs it.
        """
        dpu.host.bridged.pop(dpu.pci, None)
        self._set(dpu, dev.reset(dpu.device))

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
        return dpu.device.up and host.up and host.br_dpu and dpu.p0_up and dpu.pci in host.bridged

    def join_may_succeed(self) -> None:
        """Something changed in a DPU cluster: DPUs whose join failed try again at the next turn of their loops."""
        refused, self._refused = self._refused, {}
        for dpu, at in refused.items():
            wait = self._turn(at) if self._env.now != at else ns(self._timing.sample("join-retry"))
            dpu.pending = self._env.call_late(wait, self._try_join, dpu, rank=dpu.rank)

    def _turn(self, start: int) -> int:
        """Nanoseconds until the loop that started at `start` turns next; 0 if it turns in this instant."""
        period = ns(self._timing.sample("join-retry"))
        return -((self._env.now - start) % -period) if period else 0

    def _network(self, dpu: SimDpu) -> None:
        """Something that `connected` looks at may have changed."""
        if not self.connected(dpu):
            self._silence(dpu)
        elif dpu.pending is None and not dpu.kubelet_ready and dpu not in self._refused:
            if not dpu.device.joined:
                delay = self._turn(dpu.up_ns) + self.sample_ns("dpu-join", dpu)
                dpu.pending = self._env.call_late(delay, self._try_join, dpu, rank=dpu.rank)
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
        if not dpu.may_join or not self._join(config.hostname, config.token, config.server):
            if self._collapse:
                self._refused[dpu] = self._env.now
            else:
                period = ns(self._timing.sample("join-retry"))
                dpu.pending = self._env.call_late(period, self._try_join, dpu, rank=dpu.rank)
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


def card(dpu: SimDpu) -> dict[str, Any]:
    """A card as a checker sees it, without asking any controller."""
    device, host = dpu.device, dpu.host
    return {"dpu": dpu.name, "host": host.name, "arm": device.arm, "joined": device.joined,
            "firmware_on_flash": device.flash, "firmware_running": device.running,
            "image": device.image.identity if device.image is not None else "", "vfs": host.vfs.get(dpu.pci, 0),
            "bridged": dpu.pci in host.bridged, "host_up": host.up, "mtu": host.mtu}
