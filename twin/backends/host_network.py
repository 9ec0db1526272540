"""The host's side of a DPU's network: what the host network script does (provisioning.md 8.3), on netlink and sysfs.

VFs on the card, VF 0 in the administrator's bridge `br-dpu`, one MTU; saved, so that it can be put back after a reboot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from twin.backends.netlink import Netlink

BRIDGE: Final = "br-dpu"
TRIES: Final = 10
BETWEEN_S: Final = 5.0
SAVED: Final = "vf-config"
SKIP_ROUTE_CHECK: Final = "hostnetwork-skip-default-route-check"
BLUEFIELD_IDS: Final = ("0xa2dc", "0xa2d6")


class NetworkFailed(Exception):
    """The script gave up and cleaned up; the text is its last line."""


class Sysfs(Protocol):
    """What netlink does not show of PCI functions. Addresses are `0000:2b:00.0`. May raise OSError."""

    def device_id(self, function: str) -> str:
        """`0xa2dc`; '' if there is no such function."""
        ...

    def number_of_vfs(self, function: str) -> int: ...

    def set_number_of_vfs(self, function: str, count: int) -> None: ...

    def vf_interface(self, function: str, vf: int) -> str:
        """The interface of a VF; '' if it has none (yet)."""
        ...


class LiveSysfs:
    """`Sysfs` on /sys, or on a folder that looks like it."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.devices = root / "bus/pci/devices"

    def device_id(self, function: str) -> str:
        try:
            return (self.devices / function / "device").read_text().strip()
        except FileNotFoundError:
            return ""

    def number_of_vfs(self, function: str) -> int:
        return int((self.devices / function / "sriov_numvfs").read_text())

    def set_number_of_vfs(self, function: str, count: int) -> None:
        (self.devices / function / "sriov_numvfs").write_text(f"{count}\n")

    def vf_interface(self, function: str, vf: int) -> str:
        folder = self.devices / function / f"virtfn{vf}" / "net"
        return min((p.name for p in folder.iterdir()), default="") if folder.is_dir() else ""


class HostNetwork:
    """The script on one host. `state` is /var/lib/dpf/dms there; `rest` waits so many seconds."""

    def __init__(self, netlink: Netlink, sysfs: Sysfs, state: Path, rest: Callable[[float], None] = time.sleep) -> None:
        self._netlink = netlink
        self._sysfs = sysfs
        self._state = state
        self._rest = rest

    def set_up(self, pci: str, vfs: int, mtu: int) -> None:
        """Make the VFs, put VF 0 into the bridge, set the MTU, save. `pci` has the domain: `0000:2b:00`.

        Raises: NetworkFailed, after cleaning up.
        """
        try:
            self._await("br-dpu not found", lambda: BRIDGE in self._netlink.links())
            if not (self._state / SKIP_ROUTE_CHECK).exists():
                self._await("no default route via br-dpu", self._routed)
            self._attach(pci, vfs, mtu)
            self._save({**self.saved(), pci: (vfs, mtu)})
        except (NetworkFailed, OSError) as error:
            self.delete(pci)
            raise NetworkFailed(str(error)) from error

    def delete(self, pci: str) -> None:
        """Take VF 0 out of the bridge and forget what was saved. The VFs stay."""
        vf = self._sysfs.vf_interface(f"{pci}.0", 0)
        links = self._netlink.links()
        if vf in links and links[vf].master == BRIDGE:
            self._netlink.set_master(vf, "")
        self._save({k: v for k, v in self.saved().items() if k != pci})

    def restore(self) -> None:
        """After a boot: put back what is saved. Nothing saved, nothing done. Raises: OSError, NetworkFailed."""
        for pci, (vfs, mtu) in self.saved().items():
            self._attach(pci, vfs, mtu)

    def saved(self) -> dict[str, tuple[int, int]]:
        """(VFs, MTU) by PCI address."""
        try:
            content = json.loads((self._state / SAVED).read_text())
        except FileNotFoundError:
            return {}
        return {pci: (int(vfs), int(mtu)) for pci, (vfs, mtu) in content.items()}

    def _routed(self) -> bool:
        return any(not r.destination and r.device == BRIDGE for r in self._netlink.routes())

    def _attach(self, pci: str, vfs: int, mtu: int) -> None:
        if not self._sysfs.device_id(f"{pci}.0"):
            raise NetworkFailed(f"no PCI device {pci}")
        for function in (f"{pci}.0", f"{pci}.1"):
            # A count that is not 0 is never changed: somebody may use those VFs.
            if self._sysfs.device_id(function) in BLUEFIELD_IDS and self._sysfs.number_of_vfs(function) == 0:
                self._sysfs.set_number_of_vfs(function, vfs)
        vf = self._sysfs.vf_interface(f"{pci}.0", 0)
        if not vf:
            raise NetworkFailed(f"VF 0 of {pci}.0 has no interface")
        self._netlink.set_master(vf, BRIDGE)
        self._netlink.set_up(vf)
        self._netlink.set_mtu(BRIDGE, mtu)
        for link in self._netlink.links().values():
            if link.master == BRIDGE:
                self._netlink.set_mtu(link.name, mtu)

    def _save(self, saved: dict[str, tuple[int, int]]) -> None:
        file = self._state / SAVED
        if not saved:
            file.unlink(missing_ok=True)
            return
        self._state.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{SAVED}.part")
        part.write_text(json.dumps(saved))
        part.rename(file)

    def _await(self, otherwise: str, true: Callable[[], bool]) -> None:
        for left in range(TRIES, -1, -1):
            if true():
                return
            if left:
                self._rest(BETWEEN_S)
        raise NetworkFailed(otherwise)
