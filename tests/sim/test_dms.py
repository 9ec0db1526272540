"""DMS as controllers meet it: streams, installs, commands, costs, troubles."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.hardware import BFB, Rig
from twin.backends.base import DmsTarget, RpcError
from twin.model import device as dev
from twin.model import dms_commands as c
from twin.model import parts, timing_profile
from twin.model.device import Arm
from twin.model.meta import Key
from twin.model.timing import Timing
from twin.sim.clock import SECOND, ns
from twin.sim.dms_servers import Attempts

PCI = "0000-2b-00"


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.start()
    return rig


def code(error: pytest.ExceptionInfo[RpcError]) -> str:
    return error.value.code


# --- the way to Ready


def test_a_dpu_goes_from_its_first_command_to_ready(rig: Rig) -> None:
    target = rig.target()
    assert parts.capacity(rig.client.get(target, c.query_card(PCI))).cores == 16
    rig.client.set_mode(target, "DPU")
    rig.install()
    query = rig.client.get(target, c.query_firmware(PCI))
    assert c.firmware_on_flash(query) != c.firmware_running(query)
    assert not c.level3_supported(rig.client.get(target, c.query_reset(PCI)))
    rig.wait(rig.client.execute(rig.pod(), c.shut_down_arm(PCI, "reset")))
    assert rig.dpu.device.arm == Arm.OFF
    rig.wait(rig.client.execute(rig.pod(), c.reboot_host(PCI, "reset")))
    asked = rig.env.now_s
    rig.seconds(310)
    rig.dms.start(rig.host.name)
    assert c.uptime_s(rig.client.get(target, c.UPTIME)) < rig.env.now_s - asked
    query = rig.client.get(target, c.query_firmware(PCI))
    assert c.firmware_on_flash(query) == c.firmware_running(query)
    rig.wait(rig.client.command(target, c.host_network_setup(46, PCI, 1500)))
    rig.seconds(100)
    assert rig.dpu.kubelet_ready
    rig.client.get(target, c.host_network_delete(PCI))
    assert not rig.dpu.kubelet_ready


def test_closed_form_of_an_install(rig: Rig) -> None:
    began = rig.env.now_s
    rig.wait(rig.client.os_install(rig.target(), "ns-bf-bundle.bfb", BFB))
    assert rig.env.now_s - began == pytest.approx(60.0)  # 1.5 GB at the stream's 25 MB/s
    version = rig.send()
    activated = rig.env.now_s
    rig.wait(rig.client.os_activate(rig.target(), version))
    assert rig.wait(rig.client.reboot_ended(rig.target(), version)) == (False, "SUCCESS")
    assert rig.env.now_s - activated == pytest.approx(600.0)


def test_a_file_that_is_there_with_the_same_content_is_accepted_at_once(rig: Rig) -> None:
    rig.send()
    before = rig.env.now
    rig.wait(rig.client.os_install(rig.target(), "ns-bf-bundle.bfb", BFB))
    assert rig.env.now == before


def test_streams_share_the_uplink_and_stall_while_the_volume_is_down() -> None:
    rig = Rig(hosts=4)
    rig.start()
    rig.links.set_capacity(rig.dms.controller_link, 50e6)
    began = rig.env.now_s
    ops = [rig.client.os_install(rig.target(h), "a.bfb", BFB) for h in rig.hosts.hosts.values()]
    rig.env.call_at(ns(60), rig.volume.outage, True)
    rig.env.call_at(ns(1060), rig.volume.outage, False)
    for op in ops:
        rig.wait(op)
    assert rig.env.now_s - began == pytest.approx(4 * 1.5e9 / 50e6 + 1000)


def test_with_two_dpus_the_bf_cfg_says_which_one_is_installed() -> None:
    rig = Rig(dpus=2)
    rig.start()
    second = rig.host.dpus[1]
    rig.install(second)
    assert (rig.dpu.device.image, second.device.up) == (None, True)


def test_dmsd_with_one_target_installs_the_first_dpu_whatever_is_meant() -> None:
    rig = Rig(dpus=2, first_dpu_only=True)
    rig.start()
    second = rig.host.dpus[1]
    rig.install(second)
    assert (rig.dpu.device.up, second.device.image) == (True, None)
    assert rig.dpu.device.config is not None
    assert rig.dpu.device.config.hostname == second.name


def test_each_dpu_of_a_host_has_its_own_status() -> None:
    rig = Rig(dpus=2)
    rig.start()
    first, second = rig.host.dpus
    rig.dms.fail_installs(first.name, Attempts())
    versions = [rig.send(d) for d in (first, second)]
    for version in versions:
        rig.wait(rig.client.os_activate(rig.target(), version))
    answers = [rig.wait(rig.client.reboot_ended(rig.target(), version)) for version in versions]
    assert answers == [(False, "FAILURE"), (False, "SUCCESS")]
    assert rig.wait(rig.client.reboot_status(rig.target())) == (False, "FAILURE")


# --- installs that fail


@pytest.mark.parametrize(("attempts", "answers"), [
    (None, ["FAILURE", "FAILURE", "FAILURE"]), ([1], ["FAILURE", "SUCCESS", "SUCCESS"]),
    ([2, 3], ["SUCCESS", "FAILURE", "FAILURE"])])
def test_installs_fail_at_the_attempts_a_fault_lists(rig: Rig, attempts: list[int] | None, answers: list[str]) -> None:
    rig.dms.fail_installs(rig.dpu.name, Attempts(attempts))
    version = rig.send()
    got = []
    for _ in answers:
        rig.wait(rig.client.os_activate(rig.target(), version))
        got.append(rig.wait(rig.client.reboot_ended(rig.target(), version))[1])
    assert got == answers
    rig.dms.fail_installs(rig.dpu.name)
    rig.install()


def test_activating_what_was_not_sent_is_refused(rig: Rig) -> None:
    with pytest.raises(RpcError, match="is not on the target") as error:
        rig.wait(rig.client.os_activate(rig.target(), "a.bfb;b.cfg"))
    assert code(error) == "NOT_FOUND"


def test_a_host_that_dies_breaks_stream_and_install(rig: Rig) -> None:
    op = rig.client.os_install(rig.target(), "a.bfb", BFB)
    rig.seconds(5)
    rig.hosts.power_off(rig.host)
    with pytest.raises(RpcError, match="EOF") as error:
        rig.wait(op)
    assert code(error) == "UNAVAILABLE"
    assert rig.volume.link.flows == 0


def test_waiting_for_an_install_ends_with_an_error_when_the_host_is_lost(rig: Rig) -> None:
    version = rig.send()
    rig.wait(rig.client.os_activate(rig.target(), version))
    op = rig.client.reboot_ended(rig.target(), version)
    began = rig.env.now_s
    rig.seconds(100)
    rig.hosts.power_off(rig.host)
    with pytest.raises(RpcError, match="i/o timeout"):
        rig.wait(op)
    assert rig.env.now_s - began == pytest.approx(102 + 5)  # the next turn of the poll, then the connect time-out


def test_an_install_that_outlasts_its_budget_is_a_deadline(rig: Rig) -> None:
    version = rig.send()
    rig.wait(rig.client.os_activate(rig.target(), version))
    with pytest.raises(RpcError, match="context deadline exceeded") as error:
        rig.wait(rig.client.reboot_ended(rig.target(), version, 3.0, 500.0))
    assert code(error) == "DEADLINE_EXCEEDED"


def test_a_lost_dmsd_forgets_its_files(rig: Rig) -> None:
    version = rig.send()
    rig.dms.stop(rig.host.name)
    rig.dms.start(rig.host.name)
    with pytest.raises(RpcError, match="is not on the target"):
        rig.wait(rig.client.os_activate(rig.target(), version))


@pytest.mark.parametrize("install_s", [100.0, 300.0, 301.5, 302.999])
def test_waiting_answers_when_polling_would(install_s: float) -> None:
    ends = []
    for waits in (True, False):
        rig = Rig(os_install=install_s)
        rig.start()
        version = rig.send()
        rig.wait(rig.client.os_activate(rig.target(), version))
        if waits:
            rig.wait(rig.client.reboot_ended(rig.target(), version))
        else:
            rig.seconds(3)
            while rig.wait(rig.client.reboot_status(rig.target(), version))[0]:
                rig.seconds(3)
        ends.append(rig.env.now)
    assert ends[0] == ends[1]


# --- commands


def test_a_firmware_reset_holds_the_worker_and_loads_what_is_on_flash() -> None:
    rig = Rig(template={"dpu": {"fw_reset": True}})
    rig.start()
    rig.install()
    assert c.level3_supported(rig.client.get(rig.target(), c.query_reset(PCI)))
    before, began = rig.meter.cost_ns, rig.env.now
    rig.client.get(rig.target(), c.reset_firmware(PCI))
    assert rig.meter.cost_ns - before == 20 * SECOND
    assert rig.env.now == began
    rig.seconds(20.1)
    query = rig.client.get(rig.target(), c.query_firmware(PCI))
    assert c.firmware_on_flash(query) == c.firmware_running(query)


def test_a_command_longer_than_900_s_is_ended() -> None:
    rig = Rig(fw_reset=901, template={"dpu": {"fw_reset": True}})
    rig.start()
    with pytest.raises(RpcError, match="timed out after 900s"):
        rig.client.get(rig.target(), c.reset_firmware(PCI))
    assert rig.meter.cost_ns == 900 * SECOND


def test_an_arm_that_does_not_go_down_in_150_s_is_exit_code_2() -> None:
    rig = Rig(arm_shutdown=200)
    rig.start()
    rig.install()
    began = rig.env.now_s
    with pytest.raises(RpcError, match=r"^command terminated with exit code 2$"):
        rig.wait(rig.client.execute(rig.pod(), c.shut_down_arm(PCI, "reset")))
    assert rig.env.now_s - began == pytest.approx(150)


@pytest.mark.parametrize(("command", "takes"), [("cycle", 400), ("reset", 300)])
def test_a_power_command_answers_before_the_host_drops(rig: Rig, command: str, takes: float) -> None:
    assert "Chassis Power Control" in rig.client.get(rig.target(), c.power(command))
    assert rig.host.up
    rig.seconds(2.1)
    assert not rig.host.up
    rig.seconds(takes)
    assert rig.host.up


def test_reboot_commands_fail_at_the_attempts_a_fault_lists(rig: Rig) -> None:
    rig.dms.fail_reboots(rig.host.name, Attempts([1]))
    with pytest.raises(RpcError, match="exit code 1"):
        rig.wait(rig.client.execute(rig.pod(), c.reboot_host(PCI, "reset")))
    rig.seconds(10)
    assert rig.host.up
    rig.wait(rig.client.execute(rig.pod(), c.reboot_host(PCI, "reset")))
    rig.seconds(10)
    assert not rig.host.up


@pytest.mark.parametrize(("bridge", "route", "why"), [
    (False, True, "br-dpu not found"), (True, False, "no default route")])
def test_the_network_script_waits_50_s_for_bridge_or_route(rig: Rig, bridge: bool, route: bool, why: str) -> None:
    rig.hosts.set_bridge(rig.host, br_dpu=bridge, default_route=route)
    began = rig.env.now_s
    with pytest.raises(RpcError, match=why):
        rig.wait(rig.client.command(rig.target(), c.host_network_setup(16, PCI, 1500)))
    assert rig.env.now_s - began == pytest.approx(50)
    assert rig.host.bridged == {}


def test_a_bridge_that_comes_while_the_script_waits_is_found_at_the_next_look(rig: Rig) -> None:
    rig.hosts.set_bridge(rig.host, br_dpu=False)
    began = rig.env.now_s
    op = rig.client.command(rig.target(), c.host_network_setup(16, PCI, 1500))
    rig.seconds(12)
    rig.hosts.set_bridge(rig.host, br_dpu=True)
    rig.wait(op)
    assert rig.env.now_s - began == pytest.approx(15 + 10)


def test_the_route_is_not_looked_at_when_the_host_says_so(rig: Rig) -> None:
    rig.hosts.set_bridge(rig.host, default_route=False)
    rig.host.route_check = False
    rig.wait(rig.client.command(rig.target(), c.host_network_setup(16, PCI, 1500)))
    assert rig.host.bridged == {rig.dpu.pci: None}


def test_the_network_script_fails_at_the_attempts_a_fault_lists_and_cleans_up(rig: Rig) -> None:
    rig.dms.fail_network(rig.dpu.name, Attempts([1], "sriov"))
    with pytest.raises(RpcError, match="sriov"):
        rig.wait(rig.client.command(rig.target(), c.host_network_setup(16, PCI, 1500)))
    assert (rig.host.bridged, rig.host.saved) == ({}, {})
    rig.wait(rig.client.command(rig.target(), c.host_network_setup(16, PCI, 1500)))
    assert rig.host.saved == {rig.dpu.pci: (16, 1500)}


def test_md5sum_reads_the_volume(rig: Rig) -> None:
    began = rig.env.now_s
    text = rig.wait(rig.client.execute(rig.pod(), c.checksum(BFB)))
    assert text == f"{rig.volume.files[BFB].md5}  {BFB}\n"
    assert rig.env.now_s - began == pytest.approx(6)
    with pytest.raises(RpcError, match="exit code 1"):
        rig.wait(rig.client.execute(rig.pod(), c.checksum("/bfb/none")))


def test_an_unknown_command_is_refused_as_a_shell_would(rig: Rig) -> None:
    with pytest.raises(RpcError, match="exit status 127: bash: reboot: command not found"):
        rig.client.get(rig.target(), "reboot now")
    with pytest.raises(RpcError, match="exit code 127"):
        rig.wait(rig.client.execute(rig.pod(), ("reboot",)))
    with pytest.raises(RpcError, match="Cannot open Device: 0000:99:00"):
        rig.client.get(rig.target(), c.query_firmware("0000-99-00"))


def test_a_card_that_says_nothing_of_itself_cannot_be_sized(rig: Rig) -> None:
    rig.dpu.board = c.unknown_board("900-9D3XX-00XX-XX0")
    with pytest.raises(parts.UnknownPart, match="900-9D3XX"):
        parts.capacity(rig.client.get(rig.target(), c.query_card(PCI)))


# --- reaching it


def broken(rig: Rig, how: str) -> DmsTarget:
    target = rig.target()
    if how in ("black-hole", "refused"):
        rig.dms.unreachable(rig.host.name, how)
    elif how == "stopped":
        rig.dms.stop(rig.host.name)
    elif how == "host down":
        rig.hosts.power_off(rig.host)
    elif how == "nobody":
        target = DmsTarget("192.0.2.1", 9339, target.identity)
    elif how == "port":
        target = DmsTarget(target.ip, 9340, target.identity)
    return target


@pytest.mark.parametrize(("how", "text", "cost_s"), [
    ("black-hole", "i/o timeout", 5), ("host down", "i/o timeout", 5), ("nobody", "i/o timeout", 5),
    ("refused", "connection refused", 0), ("stopped", "connection refused", 0), ("port", "connection refused", 0)])
def test_what_does_not_answer_costs_the_time_out_and_what_refuses_does_not(rig: Rig, how: str, text: str,
                                                                            cost_s: float) -> None:
    target = broken(rig, how)
    calls: list[Any] = [lambda: rig.client.dial(target), lambda: rig.client.get(target, c.UPTIME),
                        lambda: rig.client.set_mode(target, "DPU")]
    for call in calls:
        before = rig.meter.cost_ns
        with pytest.raises(RpcError, match=text) as error:
            call()
        assert code(error) == "UNAVAILABLE"
        assert rig.meter.cost_ns - before == ns(cost_s)
    for start in (lambda: rig.client.command(target, c.UPTIME), lambda: rig.client.os_activate(target, "a;b"),
                  lambda: rig.client.os_install(target, "a", BFB), lambda: rig.client.reboot_status(target)):
        before, cost = rig.env.now_s, rig.meter.cost_ns
        with pytest.raises(RpcError, match=text):
            rig.wait(start())
        assert rig.env.now_s - before == pytest.approx(cost_s)
        assert rig.meter.cost_ns == cost


def test_dialling_says_what_tcp_says(rig: Rig) -> None:
    rig.client.dial(rig.target())
    rig.dms.stop(rig.host.name)
    with pytest.raises(RpcError, match=rf"^dial tcp {rig.host.ip}:9339: connect: connection refused$"):
        rig.client.dial(rig.target())


def test_without_a_usable_certificate_nothing_is_sent(rig: Rig) -> None:
    rig.credentials = 'secrets "dpf-provisioning-client-secret" not found'
    with pytest.raises(RpcError, match="not found") as error:
        rig.client.get(rig.target(), c.UPTIME)
    assert code(error) == "FAILED_PRECONDITION"
    with pytest.raises(RpcError, match="not found"):
        rig.wait(rig.client.os_install(rig.target(), "a", BFB))


def test_an_answered_error_hits_the_commands_it_names(rig: Rig) -> None:
    rig.dms.answer_errors(rig.host.name, ("DEADLINE_EXCEEDED", "slow flint", "flint"))
    with pytest.raises(RpcError, match="code = DeadlineExceeded desc = slow flint") as error:
        rig.client.get(rig.target(), c.query_firmware(PCI))
    assert code(error) == "DEADLINE_EXCEEDED"
    assert rig.client.get(rig.target(), c.UPTIME)
    rig.dms.answer_errors(rig.host.name)
    assert rig.client.get(rig.target(), c.query_firmware(PCI))


def test_a_slow_dms_costs_its_factor() -> None:
    rig = Rig(dms_get=2)
    rig.start()
    rig.client.get(rig.target(), c.UPTIME)
    rig.dms.slow(rig.host.name, 10)
    rig.client.get(rig.target(), c.UPTIME)
    assert rig.meter.cost_ns == (2 + 20) * SECOND
    rig.dms.slow(rig.host.name, 1)
    rig.client.get(rig.target(), c.UPTIME)
    assert rig.meter.cost_ns == (2 + 20 + 2) * SECOND


def test_a_pod_that_is_not_there_cannot_be_entered(rig: Rig) -> None:
    with pytest.raises(RpcError, match='pods "other-dms" not found'):
        rig.wait(rig.client.execute(Key("dpf-operator-system", "other-dms"), c.checksum(BFB)))
    rig.dms.stop(rig.host.name)
    with pytest.raises(RpcError, match="container not found"):
        rig.wait(rig.client.execute(rig.pod(), c.checksum(BFB)))
    rig.hosts.power_off(rig.host)
    with pytest.raises(RpcError, match="10250: i/o timeout"):
        rig.wait(rig.client.execute(rig.pod(), c.checksum(BFB)))


# --- what a pass read


class _Sleeper:
    """A runner that is told which key is stale."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stale(self, key: str) -> None:
        self.told.append(key)


@pytest.mark.parametrize(("command", "change", "stale"), [
    (c.UPTIME, lambda r: r.hosts.reboot(r.host), True),
    (c.UPTIME, lambda r: r.dms.stop(r.host.name), True),
    (c.UPTIME, lambda r: r.dms.unreachable(r.host.name, "black-hole"), True),
    (c.UPTIME, lambda r: r.dms.slow(r.host.name, 2), True),
    (c.UPTIME, lambda r: r.hosts.reset_dpu(r.dpu), False),
    (c.query_firmware(PCI), lambda r: r.hosts.reset_dpu(r.dpu), True),
    (c.query_card(PCI), lambda r: r.hosts.change(r.dpu, dev.set_mode(r.dpu.device, "nic")), True),
    (c.query_card(PCI), lambda r: r.hosts.set_bridge(r.host, br_dpu=False), False),
])
def test_a_pass_is_stale_when_what_it_read_changes(rig: Rig, command: str, change: Any, stale: bool) -> None:
    rig.meter.reads.clear()
    rig.client.get(rig.target(), command)
    sleeper = _Sleeper()
    for readers, token in rig.meter.reads:
        readers.setdefault(token, {})[(sleeper, "key")] = None
    change(rig)
    rig.seconds(1)
    assert (sleeper.told != []) is stale


def test_only_what_changes_something_is_an_effect(rig: Rig) -> None:
    before = rig.meter.effects
    for command in (c.UPTIME, c.query_card(PCI), c.query_firmware(PCI), c.read_mfrl(PCI), c.query_reset(PCI)):
        rig.client.get(rig.target(), command)
    assert rig.meter.effects == before
    rig.client.set_mode(rig.target(), "DPU")
    rig.client.get(rig.target(), c.power("cycle"))
    assert rig.meter.effects == before + 2


def test_an_unchanged_call_costs_the_same_each_time() -> None:
    rig = Rig(hosts=2)
    rig.dms.timing = Timing(timing_profile.default(), 1)
    costs = []
    for host in rig.hosts.hosts.values():
        rig.dms.start(host.name)
        for _ in range(2):
            before = rig.meter.cost_ns
            rig.client.get(rig.target(host), c.UPTIME)
            costs.append(rig.meter.cost_ns - before)
    assert costs[0] == costs[1] > 0
    assert costs[2] == costs[3] != costs[0]
