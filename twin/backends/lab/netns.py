"""Network namespaces of emulated hosts and DPUs, wired like a machine room.

One namespace holds the management network (a bridge); each host has one with `br-dpu`, its out-of-band uplink and its
PFs; each DPU has one with its `br-comm-ch`. A function is a veth pair: one end on the host, its representor in the
DPU. All names begin with the lab's prefix, so that everything can be found and removed without any record of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twin.backends import namespaces
from twin.backends.host_network import BRIDGE, HostNetwork, LiveSysfs
from twin.backends.lab.binaries import MissingPart
from twin.backends.netlink import LiveNetlink

MANAGEMENT: Final = "mgmt"
COMM_BRIDGE: Final = "br-comm-ch"
GATEWAY: Final = "10.77.0.1"
TOTAL_VFS: Final = 127


@dataclass(frozen=True, slots=True)
class CardWiring:
    """One DPU. `pci` is `0000:2b:00`."""

    name: str
    pci: str
    pf0: str
    device_id: str = "0xa2dc"


@dataclass(frozen=True, slots=True)
class HostWiring:
    """One host and its DPUs; `index` from 0 gives addresses: 10.77.<index + 1>.1 and .10, .11, ... for the DPUs."""

    name: str
    index: int
    cards: tuple[CardWiring, ...] = ()

    @property
    def address(self) -> str:
        return f"10.77.{self.index + 1}.1"

    def card_address(self, position: int) -> str:
        return f"10.77.{self.index + 1}.{10 + position}"


def require_root() -> None:
    """Raises: MissingPart when namespaces cannot be made."""
    if os.geteuid() != 0:
        raise MissingPart("network namespaces: not root; run as root, or `lab up --no-netns` without them")


class Namespaces:
    """The namespaces of one lab folder, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.prefix = f"dpft-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]}-"

    def name(self, part: str) -> str:
        return f"{self.prefix}{part}"

    def existing(self) -> list[str]:
        return [n for n in namespaces.existing() if n.startswith(self.prefix)]

    def make(self, hosts: Sequence[HostWiring]) -> None:
        """Make and wire everything; what exists is kept. Raises: OSError, MissingPart."""
        require_root()
        self._create(MANAGEMENT)
        with self._netlink(MANAGEMENT) as management:
            management.add_bridge("mgmt0")
            management.add_address("mgmt0", f"{GATEWAY}/16")
            management.set_up("mgmt0")
            for host in hosts:
                self._host(management, host)

    def boot(self, host: HostWiring) -> None:
        """What a reboot leaves of a host's network: no VFs, its administrator's bridge and uplink as they were."""
        sysfs = self.sysfs(host)
        for card in host.cards:
            sysfs.forget_vfs(f"{card.pci}.0")
            sysfs.forget_vfs(f"{card.pci}.1")

    def network(self, host: HostWiring, **options: Any) -> tuple[LiveNetlink, HostNetwork]:
        """The host network script of this host, and the netlink socket it uses (the caller closes it)."""
        netlink = LiveNetlink(self.name(host.name))
        return netlink, HostNetwork(netlink, self.sysfs(host), self.folder / "hosts" / host.name / "dms", **options)

    def sysfs(self, host: HostWiring) -> EmulatedSysfs:
        return EmulatedSysfs(self, host)

    def remove(self) -> list[str]:
        """Remove every namespace of this folder; links in them go with them. Returns what would not go."""
        for name in self.existing():
            with contextlib.suppress(OSError):
                namespaces.remove(name)
        return self.existing()

    # --- inside

    def _create(self, part: str) -> None:
        namespaces.create(self.name(part))
        with self._netlink(part) as netlink:
            netlink.set_up("lo")

    def _netlink(self, part: str) -> _Closing:
        return _Closing(LiveNetlink(self.name(part)))

    def _host(self, management: LiveNetlink, host: HostWiring) -> None:
        self._create(host.name)
        port = f"h{host.index}"
        if port not in management.links():
            management.add_pair(port, "eno1", self.name(host.name))
        management.set_master(port, "mgmt0")
        management.set_up(port)
        with self._netlink(host.name) as netlink:
            netlink.add_bridge(BRIDGE)
            netlink.set_master("eno1", BRIDGE)
            netlink.add_address(BRIDGE, f"{host.address}/16")
            for name in ("eno1", BRIDGE):
                netlink.set_up(name)
            netlink.add_default_route(GATEWAY, BRIDGE, metric=1024)  # an admin's prerequisite: a metric of 2 or more
            for position, card in enumerate(host.cards):
                self._dpu(card, host.card_address(position))
                if card.pf0 not in netlink.links():  # the PF and its representor on the DPU
                    netlink.add_pair(card.pf0, "pf0hpf", self.name(card.name))
                netlink.set_up(card.pf0)
        self.sysfs(host).make()

    def _dpu(self, card: CardWiring, address: str) -> None:
        self._create(card.name)
        with self._netlink(card.name) as netlink:
            netlink.add_bridge(COMM_BRIDGE)
            netlink.add_address(COMM_BRIDGE, f"{address}/16")
            netlink.set_up(COMM_BRIDGE)


class _Closing:
    """A netlink socket for a `with`."""

    def __init__(self, netlink: LiveNetlink) -> None:
        self._netlink = netlink

    def __enter__(self) -> LiveNetlink:
        return self._netlink

    def __exit__(self, *_: object) -> None:
        self._netlink.close()


class EmulatedSysfs(LiveSysfs):
    """A folder that looks like /sys for the cards of one host; writing `sriov_numvfs` makes veth pairs."""

    def __init__(self, lab: Namespaces, host: HostWiring) -> None:
        super().__init__(lab.folder / "hosts" / host.name / "sys")
        self._namespaces = lab
        self._host = host
        self._cards = {f"{card.pci}.0": card for card in host.cards}

    def make(self) -> None:
        """The files of every function, as after a boot."""
        for card in self._host.cards:
            for function in (f"{card.pci}.0", f"{card.pci}.1"):
                folder = self.devices / function
                folder.mkdir(parents=True, exist_ok=True)
                for name, content in (("device", card.device_id), ("vendor", "0x15b3"), ("sriov_numvfs", "0"),
                                      ("sriov_totalvfs", str(TOTAL_VFS))):
                    if not (folder / name).exists():
                        (folder / name).write_text(f"{content}\n")

    def set_number_of_vfs(self, function: str, count: int) -> None:
        if not 0 <= count <= TOTAL_VFS:
            raise OSError(34, f"write {function}/sriov_numvfs: numerical result out of range")
        self._write_count(function, count)
        card = self._cards.get(function)
        if card is not None and count:  # function .1's VFs carry nothing here: only their number shows
            self._pair(function, card)

    def forget_vfs(self, function: str) -> None:
        """The host booted: VFs are gone."""
        if self.number_of_vfs(function) == 0:
            return
        with _Closing(LiveNetlink(self._namespaces.name(self._host.name))) as netlink:
            for name in self._interfaces(function):
                netlink.remove(name)
        self._write_count(function, 0)
        self._show(function, "")

    def _write_count(self, function: str, count: int) -> None:
        """Whole or not at all: unlike sysfs, a file is empty for a moment when it is written in place."""
        part = self.devices / function / ".sriov_numvfs.part"
        part.write_text(f"{count}\n")
        part.rename(self.devices / function / "sriov_numvfs")

    def _pair(self, function: str, card: CardWiring) -> None:
        """VF 0 and its representor pf0vf0, a member of the DPU's br-comm-ch."""
        vf = f"{card.pf0}v0"
        with _Closing(LiveNetlink(self._namespaces.name(self._host.name))) as netlink:
            if vf not in netlink.links():
                netlink.add_pair(vf, "pf0vf0", self._namespaces.name(card.name))
        with _Closing(LiveNetlink(self._namespaces.name(card.name))) as netlink:
            netlink.set_master("pf0vf0", COMM_BRIDGE)
            netlink.set_up("pf0vf0")
        self._show(function, vf)

    def _interfaces(self, function: str) -> Iterator[str]:
        folder = self.devices / function / "virtfn0" / "net"
        yield from (p.name for p in folder.iterdir()) if folder.is_dir() else ()

    def _show(self, function: str, interface: str) -> None:
        folder = self.devices / function / "virtfn0" / "net"
        for name in list(self._interfaces(function)):
            (folder / name).rmdir()
        if interface:
            (folder / interface).mkdir(parents=True)
