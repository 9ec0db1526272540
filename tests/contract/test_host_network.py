"""The host network script: the same tests on a simulated host and on real links in network namespaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
from dms_world import World
from lab_parts import need_root

from twin.backends.base import DmsTarget, RpcError
from twin.backends.host_network import BRIDGE, SKIP_ROUTE_CHECK, HostNetwork, NetworkFailed
from twin.backends.lab.netns import CardWiring, HostWiring, Namespaces
from twin.backends.netlink import LiveNetlink
from twin.model import dms_commands as commands
from twin.model.fleet import DMS_PORT
from twin.model.meta import Key
from twin.sim.clock import SECOND
from twin.sim.runner import Meter

PCI = "0000:2b:00"


class Rig(ABC):
    """One host with one DPU at `PCI`, an administrator's br-dpu and a default route over it."""

    waited_s: float
    """How long the last `set_up` waited for what was missing."""

    @abstractmethod
    def set_up(self, vfs: int, mtu: int, pci: str = PCI) -> str:
        """Run the script; '' or why it failed."""

    @abstractmethod
    def delete(self) -> None: ...

    @abstractmethod
    def reboot(self) -> None:
        """The host boots; nobody has put its network back yet."""

    @abstractmethod
    def restore(self) -> None:
        """What configure-vf does after a boot."""

    @abstractmethod
    def vfs(self) -> int: ...

    @abstractmethod
    def bridged(self) -> bool:
        """Is VF 0 a member of br-dpu?"""

    @abstractmethod
    def mtu(self) -> int: ...

    @abstractmethod
    def saved(self) -> dict[str, tuple[int, int]]: ...

    @abstractmethod
    def break_bridge(self) -> None: ...

    @abstractmethod
    def break_route(self) -> None: ...

    @abstractmethod
    def skip_route_check(self) -> None: ...


class SimRig(Rig):
    def __init__(self) -> None:
        self.world = World()
        self.host = self.world.hosts.hosts[self.world.names[0]]
        self.dpu = self.host.dpus[0]
        assert self.dpu.pci == PCI
        self.world.dms.start(self.host.name)
        self.dms = self.world.dms.client(Meter("test"))
        self.target = DmsTarget(self.host.ip, DMS_PORT, Key("", ""))

    def run(self, command: str) -> None:
        op = self.dms.command(self.target, command)
        while not op.finished:
            self.world.env.step()
        if op.error is not None:
            raise op.error

    def set_up(self, vfs: int, mtu: int, pci: str = PCI) -> str:
        began = self.world.env.now
        try:
            self.run(commands.host_network_setup(vfs, pci, mtu))
        except RpcError as error:
            self.waited_s = (self.world.env.now - began) // SECOND
            head, _, tail = str(error).partition("hostnetwork.sh: ")
            assert head == "rpc error: code = Internal desc = "
            return tail.removesuffix(": exit status 1")
        return ""

    def delete(self) -> None:
        self.run(commands.host_network_delete(PCI))

    def reboot(self) -> None:
        self.world.hosts.reboot(self.host)
        while not self.host.boots or not self.host.up:
            self.world.env.step()

    def restore(self) -> None:
        self.world.hosts.restore_network(self.host)

    def vfs(self) -> int:
        return self.host.vfs.get(PCI, 0)

    def bridged(self) -> bool:
        return PCI in self.host.bridged

    def mtu(self) -> int:
        return self.host.mtu

    def saved(self) -> dict[str, tuple[int, int]]:
        return self.host.saved

    def break_bridge(self) -> None:
        self.world.hosts.set_bridge(self.host, br_dpu=False)

    def break_route(self) -> None:
        self.world.hosts.set_bridge(self.host, default_route=False)

    def skip_route_check(self) -> None:
        self.host.route_check = False


class LiveRig(Rig):
    def __init__(self, namespaces: Namespaces) -> None:
        self.namespaces = namespaces
        self.wiring = HostWiring("host-1", 0, (CardWiring("dpu-1", PCI, "enp43s0f0np0"),))
        namespaces.make([self.wiring])
        self.netlink = LiveNetlink(namespaces.name("host-1"))
        self.rests: list[float] = []
        self.script = HostNetwork(self.netlink, namespaces.sysfs(self.wiring), namespaces.folder / "dms",
                                  self.rests.append)

    def set_up(self, vfs: int, mtu: int, pci: str = PCI) -> str:
        self.rests.clear()
        try:
            self.script.set_up(pci, vfs, mtu)
        except NetworkFailed as error:
            self.waited_s = sum(self.rests)
            return str(error)
        return ""

    def delete(self) -> None:
        self.script.delete(PCI)

    def reboot(self) -> None:
        self.namespaces.boot(self.wiring)

    def restore(self) -> None:
        self.script.restore()

    def vfs(self) -> int:
        return self.namespaces.sysfs(self.wiring).number_of_vfs(f"{PCI}.0")

    def bridged(self) -> bool:
        link = self.netlink.links().get("enp43s0f0np0v0")
        return link is not None and link.master == BRIDGE

    def mtu(self) -> int:
        mtus = {link.mtu for link in self.netlink.links().values() if BRIDGE in (link.name, link.master)}
        assert len(mtus) == 1, "the bridge and all its members have one MTU"
        return mtus.pop()

    def saved(self) -> dict[str, tuple[int, int]]:
        return self.script.saved()

    def break_bridge(self) -> None:
        self.netlink.remove(BRIDGE)

    def break_route(self) -> None:
        self.netlink.remove_default_route(BRIDGE)

    def skip_route_check(self) -> None:
        folder = self.namespaces.folder / "dms"
        folder.mkdir(exist_ok=True)
        (folder / SKIP_ROUTE_CHECK).touch()


@pytest.fixture(params=["sim", pytest.param("live", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "sim":
        yield SimRig()
        return
    need_root()
    namespaces = Namespaces(tmp_path)
    try:
        rig = LiveRig(namespaces)
        yield rig
        rig.netlink.close()
    finally:
        assert namespaces.remove() == []


def test_the_script_makes_vfs_bridges_the_first_and_saves(rig: Rig) -> None:
    assert (rig.vfs(), rig.bridged(), rig.mtu(), rig.saved()) == (0, False, 1500, {})
    assert rig.set_up(46, 9000) == ""
    assert (rig.vfs(), rig.bridged(), rig.mtu(), rig.saved()) == (46, True, 9000, {PCI: (46, 9000)})


def test_a_second_run_changes_the_mtu_but_never_a_count_that_is_not_zero(rig: Rig) -> None:
    rig.set_up(4, 1500)
    assert rig.set_up(46, 9000) == ""
    assert (rig.vfs(), rig.bridged(), rig.mtu(), rig.saved()) == (4, True, 9000, {PCI: (46, 9000)})


def test_deleting_takes_the_vf_out_keeps_the_vfs_and_may_be_repeated(rig: Rig) -> None:
    rig.set_up(8, 1500)
    for _ in range(2):
        rig.delete()
        assert (rig.vfs(), rig.bridged(), rig.saved()) == (8, False, {})
    assert rig.set_up(8, 1500) == ""
    assert rig.bridged()


def test_deleting_what_was_never_set_up_is_fine(rig: Rig) -> None:
    rig.delete()
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (0, False, {})


def test_a_reboot_loses_the_vfs_and_what_is_saved_brings_them_back(rig: Rig) -> None:
    rig.set_up(8, 9000)
    rig.reboot()
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (0, False, {PCI: (8, 9000)})
    rig.restore()
    assert (rig.vfs(), rig.bridged(), rig.mtu()) == (8, True, 9000)


def test_what_was_deleted_does_not_come_back_after_a_reboot(rig: Rig) -> None:
    rig.set_up(8, 1500)
    rig.delete()
    rig.reboot()
    rig.restore()
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (0, False, {})


def test_a_missing_bridge_is_waited_for_ten_times_and_fails(rig: Rig) -> None:
    rig.break_bridge()
    assert rig.set_up(8, 1500) == "br-dpu not found"
    assert rig.waited_s == 50.0
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (0, False, {})


def test_a_missing_default_route_fails_unless_the_check_is_switched_off(rig: Rig) -> None:
    rig.break_route()
    assert rig.set_up(8, 1500) == "no default route via br-dpu"
    assert rig.waited_s == 50.0
    assert (rig.vfs(), rig.saved()) == (0, {})
    rig.skip_route_check()
    assert rig.set_up(8, 1500) == ""
    assert (rig.vfs(), rig.bridged()) == (8, True)


def test_a_failure_takes_back_what_an_earlier_run_had_set_up(rig: Rig) -> None:
    rig.set_up(8, 1500)
    rig.break_route()
    assert rig.set_up(8, 1500) == "no default route via br-dpu"
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (8, False, {})


def test_without_vfs_there_is_no_vf_0_and_a_later_run_sets_a_count_that_is_zero(rig: Rig) -> None:
    assert rig.set_up(0, 9000) == f"VF 0 of {PCI}.0 has no interface"
    assert (rig.vfs(), rig.bridged(), rig.mtu(), rig.saved()) == (0, False, 1500, {})
    assert rig.set_up(8, 9000) == ""
    assert (rig.vfs(), rig.bridged(), rig.mtu(), rig.saved()) == (8, True, 9000, {PCI: (8, 9000)})


def test_vfs_that_are_there_serve_whoever_asks_for_none(rig: Rig) -> None:
    rig.set_up(8, 1500)
    assert rig.set_up(0, 1500) == ""
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (8, True, {PCI: (0, 1500)})


def test_a_card_that_is_not_there_is_named(rig: Rig) -> None:
    assert rig.set_up(8, 1500, "0000:99:00") == "no PCI device 0000:99:00"
    assert rig.saved() == {}


def test_losing_the_bridge_loses_its_members(rig: Rig) -> None:
    rig.set_up(8, 1500)
    rig.break_bridge()
    assert (rig.vfs(), rig.bridged(), rig.saved()) == (8, False, {PCI: (8, 1500)})
