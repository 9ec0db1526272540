"""Commands: what a controller writes, a host understands; what a host prints, a controller reads."""

from __future__ import annotations

import contextlib
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from twin.model import dms_commands as c
from twin.model.device import Device
from twin.model.dms_commands import Command, NoAnswer, ShellError

SAME = Device(flash="32.45.1020", running="32.45.1020", memory_gb=32)
OLD = replace(SAME, running="32.41.1000", level3=False, sync1=False, rescan_pending=True)
BOARD = c.Board("900-9D3B6-00CV-AA0", "MT_0000000884", "NVIDIA BlueField-3 B3220 DPU")
PCI = "0000-2b-00"


@pytest.mark.parametrize(("written", "understood"), [
    (c.query_card(PCI), Command("flint-full", "0000:2b:00")),
    (c.query_firmware(PCI), Command("flint", "0000:2b:00")),
    (c.read_mfrl(PCI), Command("mfrl", "0000:2b:00")),
    (c.query_reset(PCI), Command("reset-query", "0000:2b:00")),
    (c.reset_firmware(PCI), Command("reset", "0000:2b:00")),
    (c.UPTIME, Command("uptime")),
    (c.power("cycle"), Command("power", argument="cycle")),
    (c.power("reset"), Command("power", argument="reset")),
    (c.host_network_setup(46, PCI, 1500), Command("network", "0000:2b:00", vfs=46, mtu=1500)),
    (c.host_network_delete(PCI), Command("network-delete", "0000:2b:00")),
    (shlex.join(c.shut_down_arm(PCI, "reset")), Command("slr-arm", "0000:2b:00", "reset")),
    (shlex.join(c.reboot_host(PCI, "cycle")), Command("slr-host", "0000:2b:00", "cycle")),
    (shlex.join(c.checksum("/bfb/a.bfb")), Command("md5sum", argument="/bfb/a.bfb")),
])
def test_a_host_understands_what_a_controller_writes(written: str, understood: Command) -> None:
    assert c.parse(written) == understood


def test_bf_slr_gets_the_address_without_its_domain() -> None:
    assert c.shut_down_arm(PCI, "reset") == ("bf-slr.sh", "2b:00", "reset", "arm")


@pytest.mark.parametrize(("command", "code", "text"), [
    ("rm -rf /", 127, "bash: rm: command not found"),
    ("cat /etc/shadow", 1, "cat: /etc/shadow: No such file or directory"),
    ("flint -d 0000:2b:00.1 q", 1, "unrecognized arguments"),
    ("flint -d 0000:2b:00.0 burn", 1, "unrecognized arguments"),
    ("mlxfwreset -d 0000:2b:00.0 -y -l 4 r", 1, "unrecognized arguments"),
    ("ipmitool chassis power off", 1, "unrecognized arguments"),
    ("hostnetwork.sh --num_of_vfs=x --device_pci_address=0000:2b:00 --control_plane_mtu=1500", 1, "unrecognized"),
    ("hostnetwork.sh --delete --device_pci_address=2b:00", 1, "unrecognized"),
    ("flint 'unclosed", 2, "unexpected EOF"),
])
def test_what_is_not_known_is_refused_as_a_shell_would(command: str, code: int, text: str) -> None:
    with pytest.raises(ShellError, match=text) as error:
        c.parse(command)
    assert error.value.code == code


@given(st.text(max_size=60))
def test_no_command_line_crashes_the_parser(text: str) -> None:
    with contextlib.suppress(ShellError):
        assert c.parse(text).kind


def test_the_running_version_is_printed_only_when_it_differs() -> None:
    same, old = c.print_flint(BOARD, SAME), c.print_flint(BOARD, OLD)
    assert "Running" not in same
    assert (c.firmware_on_flash(same), c.firmware_running(same)) == ("32.45.1020", "32.45.1020")
    assert (c.firmware_on_flash(old), c.firmware_running(old)) == ("32.45.1020", "32.41.1000")


def test_answers_survive_the_way_from_host_to_controller() -> None:
    assert c.hex_number(c.rescan_required(c.print_mfrl(SAME))) == 0
    assert c.hex_number(c.rescan_required(c.print_mfrl(OLD))) == 1
    assert (c.level3_supported(c.print_reset(SAME)), c.sync1_supported(c.print_reset(SAME))) == (True, True)
    assert (c.level3_supported(c.print_reset(OLD)), c.sync1_supported(c.print_reset(OLD))) == (False, False)
    assert c.uptime_s(c.print_uptime(12345.678)) == 12345.68


@pytest.mark.parametrize("read", [c.firmware_on_flash, c.firmware_running, c.rescan_required, c.level3_supported,
                                  c.sync1_supported, c.uptime_s])
@pytest.mark.parametrize("text", ["", "\n", "Segmentation fault\n"])
def test_an_answer_that_is_not_there_is_said(read: object, text: str) -> None:
    with pytest.raises(NoAnswer):
        read(text)  # type: ignore[operator]


def test_a_register_value_that_is_no_number_is_worded_as_go_does() -> None:
    with pytest.raises(ValueError, match=r'strconv\.ParseInt: parsing "0xzz": invalid syntax'):
        c.hex_number("0xzz")


@pytest.mark.parametrize(("text", "with_domain", "without"), [
    ("0000-2b-00", "0000:2b:00", "2b:00"), ("2b-00", "0000:2b:00", "2b:00"), ("0001:a2:00", "0001:a2:00", "a2:00")])
def test_pci_addresses_are_written_as_their_reader_wants_them(text: str, with_domain: str, without: str) -> None:
    assert (c.pci_address(text), c.pci_without_domain(text)) == (with_domain, without)
