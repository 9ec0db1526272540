"""Netlink, the host network script and emulated wiring, in real network namespaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_parts import need_root

from twin.backends.host_network import BRIDGE, HostNetwork, LiveSysfs, NetworkFailed
from twin.backends.lab.netns import GATEWAY, CardWiring, HostWiring, Namespaces
from twin.backends.namespaces import inside
from twin.backends.netlink import LiveNetlink

pytestmark = pytest.mark.slow

PCI = "0000:2b:00"
HOST = HostWiring("host-1", 0, (CardWiring("dpu-1", PCI, "enp43s0f0np0"),))
OTHER = HostWiring("host-2", 1, (CardWiring("dpu-2", PCI, "enp43s0f0np0"),))


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Namespaces]:
    need_root()
    namespaces = Namespaces(tmp_path)
    try:
        namespaces.make([HOST, OTHER])
        yield namespaces
    finally:
        assert namespaces.remove() == []


@pytest.fixture
def netlink(namespaces: Namespaces) -> Iterator[LiveNetlink]:
    netlink = LiveNetlink(namespaces.name("host-1"))
    yield netlink
    netlink.close()


def script(namespaces: Namespaces, netlink: LiveNetlink, rests: list[float] | None = None) -> HostNetwork:
    rest = rests.append if rests is not None else lambda seconds: None
    return HostNetwork(netlink, namespaces.sysfs(HOST), namespaces.folder / "dms", rest)


def reaches(namespaces: Namespaces, from_part: str, address: str) -> bool:
    """Does a TCP connection from one namespace to a listener in the management network come about?"""
    def connect() -> bool:
        try:
            socket.create_connection((address, 7000), 2.0).close()
        except OSError:
            return False
        return True

    listener = inside(namespaces.name("mgmt"), lambda: socket.create_server((address, 7000)))
    with listener:
        return inside(namespaces.name(from_part), connect)


def test_verbs_may_be_repeated_and_show_in_what_is_read(netlink: LiveNetlink) -> None:
    for _ in range(2):
        netlink.add_bridge("br-x")
        netlink.add_pair("d0", "d1")
        netlink.set_master("d0", "br-x")
        netlink.set_mtu("d0", 1400)
        netlink.set_up("d0")
        netlink.add_address("br-x", "10.9.0.1/24")
    link = netlink.links()["d0"]
    assert (link.kind, link.master, link.mtu, link.up) == ("veth", "br-x", 1400, True)
    assert netlink.addresses("br-x") == ["10.9.0.1/24"]
    netlink.set_master("d0", "")
    assert netlink.links()["d0"].master == ""
    for _ in range(2):
        netlink.remove("d0")
    assert "d0" not in netlink.links()


def test_failures_name_the_link_and_the_wish(netlink: LiveNetlink) -> None:
    with pytest.raises(OSError, match=rf"Cannot find device none in namespace {netlink.namespace}"):
        netlink.set_mtu("none", 1400)
    netlink.add_pair("d0", "d1")
    with pytest.raises(OSError, match=r"set mtu 70000 on d0 in namespace"):
        netlink.set_mtu("d0", 70_000)


def test_the_default_route_comes_and_goes(netlink: LiveNetlink) -> None:
    default = [r for r in netlink.routes() if not r.destination]
    assert [(r.gateway, r.device, r.metric) for r in default] == [(GATEWAY, BRIDGE, 1024)]
    netlink.remove_default_route(BRIDGE)
    assert [r for r in netlink.routes() if not r.destination] == []


def test_the_script_puts_vf_0_into_the_bridge_and_the_dpu_reaches_its_control_plane(
        namespaces: Namespaces, netlink: LiveNetlink) -> None:
    assert reaches(namespaces, "host-1", GATEWAY)
    assert not reaches(namespaces, "dpu-1", GATEWAY)
    network = script(namespaces, netlink)
    network.set_up(PCI, 46, 9000)
    sysfs = namespaces.sysfs(HOST)
    assert (sysfs.number_of_vfs(f"{PCI}.0"), sysfs.number_of_vfs(f"{PCI}.1")) == (46, 46)
    members = {link.name: link.mtu for link in netlink.links().values() if link.master == BRIDGE}
    assert members == {"eno1": 9000, "enp43s0f0np0v0": 9000}
    assert reaches(namespaces, "dpu-1", GATEWAY)
    assert not reaches(namespaces, "dpu-2", GATEWAY), "the other DPU's VF is not in its bridge"


def test_a_count_of_vfs_that_is_not_zero_is_left_alone(namespaces: Namespaces, netlink: LiveNetlink) -> None:
    network = script(namespaces, netlink)
    network.set_up(PCI, 4, 1500)
    network.set_up(PCI, 46, 1500)
    assert namespaces.sysfs(HOST).number_of_vfs(f"{PCI}.0") == 4


def test_a_reboot_loses_the_vfs_and_restore_puts_them_back(namespaces: Namespaces, netlink: LiveNetlink) -> None:
    network = script(namespaces, netlink)
    network.set_up(PCI, 8, 1500)
    namespaces.boot(HOST)
    assert not reaches(namespaces, "dpu-1", GATEWAY)
    assert "enp43s0f0np0v0" not in netlink.links()
    network.restore()
    assert namespaces.sysfs(HOST).number_of_vfs(f"{PCI}.0") == 8
    assert reaches(namespaces, "dpu-1", GATEWAY)


def test_delete_takes_vf_0_out_and_keeps_the_vfs(namespaces: Namespaces, netlink: LiveNetlink) -> None:
    network = script(namespaces, netlink)
    network.set_up(PCI, 8, 1500)
    network.delete(PCI)
    assert netlink.links()["enp43s0f0np0v0"].master == ""
    assert namespaces.sysfs(HOST).number_of_vfs(f"{PCI}.0") == 8
    assert network.saved() == {}
    namespaces.boot(HOST)
    network.restore()
    assert "enp43s0f0np0v0" not in netlink.links()


def test_the_script_waits_ten_times_for_the_bridge_and_then_cleans_up(namespaces: Namespaces,
                                                                      netlink: LiveNetlink) -> None:
    netlink.remove(BRIDGE)
    rests: list[float] = []
    with pytest.raises(NetworkFailed, match=r"^br-dpu not found$"):
        script(namespaces, netlink, rests).set_up(PCI, 8, 1500)
    assert rests == [5.0] * 10


def test_a_missing_default_route_fails_unless_the_check_is_switched_off(namespaces: Namespaces,
                                                                        netlink: LiveNetlink) -> None:
    netlink.remove_default_route(BRIDGE)
    network = script(namespaces, netlink)
    with pytest.raises(NetworkFailed, match=r"^no default route via br-dpu$"):
        network.set_up(PCI, 8, 1500)
    (namespaces.folder / "dms").mkdir(exist_ok=True)
    (namespaces.folder / "dms" / "hostnetwork-skip-default-route-check").touch()
    network.set_up(PCI, 8, 1500)
    assert network.saved() == {PCI: (8, 1500)}


def test_an_error_on_the_way_leaves_nothing_attached_or_saved(namespaces: Namespaces, netlink: LiveNetlink) -> None:
    network = script(namespaces, netlink)
    with pytest.raises(NetworkFailed, match=r"set mtu 70000"):
        network.set_up(PCI, 8, 70_000)
    assert netlink.links()["enp43s0f0np0v0"].master == ""
    assert network.saved() == {}
    with pytest.raises(NetworkFailed, match=r"no PCI device 0000:99:00"):
        network.set_up("0000:99:00", 8, 1500)


def test_making_twice_changes_nothing_and_removing_leaves_nothing(namespaces: Namespaces) -> None:
    before = namespaces.existing()
    namespaces.make([HOST, OTHER])
    assert namespaces.existing() == before
    assert len(before) == 5
    assert namespaces.remove() == []
    assert namespaces.remove() == []
    own = LiveNetlink()
    assert not [name for name in own.links() if name.startswith(("h0", "eno1", "mgmt0"))]
    own.close()


def test_sysfs_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "bus/pci/devices/0000:2b:00.0"
    (folder / "virtfn0/net/enp43s0f0v0").mkdir(parents=True)
    (folder / "device").write_text("0xa2dc\n")
    (folder / "sriov_numvfs").write_text("0\n")
    sysfs = LiveSysfs(tmp_path)
    assert sysfs.device_id("0000:2b:00.0") == "0xa2dc"
    assert sysfs.device_id("0000:2b:00.1") == ""
    sysfs.set_number_of_vfs("0000:2b:00.0", 3)
    assert (folder / "sriov_numvfs").read_text() == "3\n"
    assert sysfs.vf_interface("0000:2b:00.0", 0) == "enp43s0f0v0"
    assert sysfs.vf_interface("0000:2b:00.0", 1) == ""
