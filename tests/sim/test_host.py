"""Hosts and DPUs over time: power, reboot, network, join."""

from __future__ import annotations

import pytest

from tests.sim.hardware import Rig
from twin.model.device import Arm
from twin.sim.clock import ns


def ready(rig: Rig) -> None:
    """One DPU installed, on the network, joined, Ready."""
    rig.start()
    rig.install()
    rig.hosts.attach(rig.dpu, 16, 1500)
    rig.seconds(200)
    assert rig.dpu.kubelet_ready


def test_a_reboot_takes_its_time_and_resets_uptime_vfs_and_cards() -> None:
    rig = Rig()
    ready(rig)
    began = rig.env.now_s
    rig.log.clear()
    rig.hosts.reboot(rig.host)
    rig.seconds(1)
    assert (rig.host.up, rig.host.vfs, rig.dpu.device.arm) == (False, {}, Arm.BOOTING)
    assert rig.dpu.device.running == rig.dpu.device.flash
    rig.seconds(400)
    assert rig.host.up
    assert rig.hosts.uptime_s(rig.host) == pytest.approx(401 - 300)
    assert [(round(t - began, 3), what) for t, what, _ in rig.log] == [
        (0, "host-reboot"), (0, "dpu-reboot"), (300, "host-up")]


def test_a_commanded_reboot_drops_a_little_later_and_only_once() -> None:
    rig = Rig()
    for _ in range(3):
        rig.hosts.reboot(rig.host, "host-power-cycle", commanded=True)
        rig.seconds(0.5)
    assert rig.host.up
    rig.seconds(1000)
    assert [what for _, what, _ in rig.log if what.startswith("host")] == ["host-power-cycle", "host-up"]


def test_a_power_cut_darkens_the_rack_until_power_is_back() -> None:
    rig = Rig(racks=2, hosts=2)
    rack = rig.host.rack
    for host in rig.hosts.rack(rack):
        rig.hosts.power_off(host)
    assert [h.up for h in rig.hosts.hosts.values()] == [False, False, True, True]
    assert not rig.dpu.device.powered
    rig.seconds(10_000)
    assert not rig.host.up
    for host in rig.hosts.rack(rack):
        rig.hosts.power_on(host)
    rig.seconds(401)
    assert all(h.up for h in rig.hosts.hosts.values())
    assert rig.dpu.device.powered


def test_of_two_power_cuts_that_overlap_the_last_to_end_lets_the_host_boot() -> None:
    rig = Rig()
    for change in (rig.hosts.power_off, rig.hosts.power_off, rig.hosts.power_on):
        change(rig.host)
    rig.seconds(1000)
    assert not rig.host.up
    rig.hosts.power_on(rig.host)
    rig.seconds(401)
    assert rig.host.up


def test_power_lost_during_boot_starts_the_boot_over() -> None:
    rig = Rig()
    rig.hosts.reboot(rig.host)
    rig.seconds(299)
    rig.hosts.power_off(rig.host)
    rig.seconds(5)
    rig.hosts.power_on(rig.host)
    rig.seconds(399)
    assert not rig.host.up
    rig.seconds(2)
    assert rig.host.up


def test_a_dpu_joins_once_vf0_is_in_the_bridge_at_a_turn_of_its_loop() -> None:
    rig = Rig()
    rig.start()
    rig.install()
    up = rig.dpu.up_ns / 1e9
    rig.seconds(31.7)
    assert rig.joins == []
    attached = rig.env.now_s
    rig.hosts.attach(rig.dpu, 16, 1500)
    rig.seconds(100)
    turn = up + 5 * -(-(attached - up) // 5)
    assert rig.joins == [(pytest.approx(turn + 25), rig.dpu.name, "abcdef.0123456789abcdef")]
    assert rig.dpu.kubelet_ready
    assert (rig.log[-1][1:]) == ("joined", rig.dpu.name)


@pytest.mark.parametrize("collapse", [True, False])
def test_a_refused_join_is_repeated_every_five_seconds(collapse: bool) -> None:
    rig = Rig(collapse=collapse)
    rig.start()
    rig.install()
    rig.join_works = False
    rig.hosts.attach(rig.dpu, 16, 1500)
    first = rig.dpu.up_ns / 1e9 + 25

    def heal() -> None:
        rig.join_works = True
        rig.hosts.join_may_succeed()

    rig.env.call_at(ns(25 + 47.3), heal)
    rig.seconds(500)
    assert rig.joins[-1][0] == pytest.approx(first + 50)
    assert len(rig.joins) == (2 if collapse else 11)
    assert rig.dpu.kubelet_ready


@pytest.mark.parametrize("collapse", [True, False])
def test_a_cluster_that_heals_at_a_turn_of_the_loop_is_joined_in_that_turn(collapse: bool) -> None:
    rig = Rig(collapse=collapse)
    rig.start()
    rig.install()
    rig.join_works = False
    rig.hosts.attach(rig.dpu, 16, 1500)

    def heal() -> None:
        rig.join_works = True
        rig.hosts.join_may_succeed()

    rig.env.call_at(rig.dpu.up_ns + ns(25 + 20) - rig.env.now, heal)
    rig.seconds(500)
    assert rig.joins[-1][0] == pytest.approx(rig.dpu.up_ns / 1e9 + 45)


def test_a_rebooted_dpu_does_not_join_again_and_is_ready_when_its_network_is_restored() -> None:
    rig = Rig()
    ready(rig)
    lost: list[float] = []
    rig.hosts.listeners.dpu_lost.append(lambda _: lost.append(rig.env.now_s))
    rig.hosts.listeners.host_up.append(lambda host: rig.hosts.restore_network(host))
    began = rig.env.now_s
    rig.hosts.reboot(rig.host)
    rig.seconds(299)
    assert lost == [began]
    assert not rig.dpu.kubelet_ready
    rig.seconds(2)
    assert rig.dpu.kubelet_ready
    assert len(rig.joins) == 1
    assert rig.host.vfs == {rig.dpu.pci: 16}


def test_an_install_wipes_the_join() -> None:
    rig = Rig()
    ready(rig)
    rig.install()
    rig.seconds(200)
    assert len(rig.joins) == 2
    assert rig.dpu.kubelet_ready


def test_a_vf_count_is_never_changed_once_it_is_set() -> None:
    rig = Rig()
    rig.hosts.attach(rig.dpu, 16, 1500)
    rig.hosts.detach(rig.dpu)
    rig.hosts.attach(rig.dpu, 46, 9000)
    assert (rig.host.vfs[rig.dpu.pci], rig.host.mtu) == (16, 9000)


def test_a_detached_vf_leaves_nothing_to_restore() -> None:
    rig = Rig()
    ready(rig)
    rig.hosts.detach(rig.dpu)
    assert not rig.dpu.kubelet_ready
    rig.hosts.restore_network(rig.host)
    assert rig.host.bridged == {}


@pytest.mark.parametrize("trouble", ["p0", "bridge", "reset"])
def test_a_dpu_loses_its_control_plane_without_p0_or_bridge_or_when_it_is_reset(trouble: str) -> None:
    rig = Rig()
    ready(rig)
    if trouble == "p0":
        rig.hosts.set_p0(rig.dpu, False)
    elif trouble == "bridge":
        rig.hosts.set_bridge(rig.host, br_dpu=False)
    else:
        rig.hosts.reset_dpu(rig.dpu)
    assert not rig.dpu.kubelet_ready
    if trouble == "p0":
        rig.hosts.set_p0(rig.dpu, True)
    elif trouble == "bridge":
        rig.hosts.set_bridge(rig.host, br_dpu=True)
    rig.seconds(600)
    assert rig.dpu.kubelet_ready is (trouble == "p0")  # the others need somebody to set the network up again
    rig.hosts.attach(rig.dpu, 16, 1500)
    rig.seconds(1)
    assert rig.dpu.kubelet_ready


def test_a_dpu_that_may_not_join_waits_until_it_may() -> None:
    rig = Rig()
    rig.start()
    rig.install()
    rig.hosts.allow_join(rig.dpu, False)
    rig.hosts.attach(rig.dpu, 16, 1500)
    rig.seconds(300)
    assert rig.joins == []
    rig.hosts.allow_join(rig.dpu, True)
    rig.seconds(100)
    assert rig.dpu.kubelet_ready


def test_what_was_saved_without_vfs_puts_nothing_back_after_a_reboot() -> None:
    rig = Rig()
    ready(rig)
    rig.hosts.attach(rig.dpu, 0, 1500)
    assert rig.host.bridged == {rig.dpu.pci: None}
    rig.hosts.reboot(rig.host)
    rig.seconds(600)
    rig.hosts.restore_network(rig.host)
    assert (rig.host.vfs, rig.host.bridged) == ({}, {})
    assert not rig.hosts.attach(rig.dpu, 0, 1500)
    assert rig.hosts.attach(rig.dpu, 16, 1500)


def test_hosts_without_kubernetes_restore_their_network_at_boot() -> None:
    rig = Rig(template={"host": {"kubernetes": False}})
    ready(rig)
    rig.hosts.reboot(rig.host)
    rig.seconds(301)
    assert rig.host.bridged == {rig.dpu.pci: None}
