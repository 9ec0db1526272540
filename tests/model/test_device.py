"""The DPU poked through its life, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.model import device as dev
from twin.model.device import Arm, Config, Device, Image
from twin.model.provisioning import BfbVersions

IMAGE = Image("bf-bundle-3.0.0", 1_500_000_000, BfbVersions(bsp="5.0.0.135"), "32.45.1020")
CONFIG = Config("dpu1", "10.0.0.1:6443", "abcdef.0123456789abcdef", ("PF_TOTAL_SF=20",), firmware_update=True)
NEW = Device(flash="32.41.1000", running="32.41.1000", memory_gb=32)


def installed(config: Config = CONFIG) -> Device:
    return dev.finish(dev.install(NEW, IMAGE, config))


def test_an_install_ends_with_the_new_os_up_and_new_firmware_on_flash_only() -> None:
    during = dev.install(NEW, IMAGE, CONFIG)
    assert (during.arm, during.doing, during.image) == (Arm.INSTALLING, "os-install", None)
    after = dev.finish(during)
    assert (after.arm, after.doing, after.image, after.config) == (Arm.UP, "", IMAGE, CONFIG)
    assert (after.flash, after.running) == ("32.45.1020", "32.41.1000")
    assert (after.next_nvconfig, after.nvconfig) == (("PF_TOTAL_SF=20",), ())


def test_firmware_is_not_burnt_unless_bf_cfg_says_so() -> None:
    assert installed(Config("dpu1")).flash == "32.41.1000"


def test_a_flavor_without_nvconfig_leaves_parameters_alone() -> None:
    again = dev.finish(dev.install(installed(), IMAGE, Config("dpu1")))
    assert again.next_nvconfig == ("PF_TOTAL_SF=20",)


@pytest.mark.parametrize("way", [dev.host_reset, lambda d: dev.power_on(dev.power_off(d)),
                                 lambda d: dev.finish(dev.reset_firmware(d))])
def test_firmware_and_parameters_on_flash_run_after_a_reset_and_the_arm_boots(way: object) -> None:
    after = way(installed())  # type: ignore[operator]
    assert (after.running, after.nvconfig) == ("32.45.1020", ("PF_TOTAL_SF=20",))
    assert (after.arm, after.doing) == (Arm.BOOTING, "dpu-boot")
    assert dev.finish(after).arm == Arm.UP


def test_an_arm_reset_alone_loads_no_firmware() -> None:
    assert dev.reset(installed()).running == "32.41.1000"


def test_a_card_whose_installs_change_pci_asks_for_a_rescan_until_it_is_reset() -> None:
    card = dev.finish(dev.install(Device(flash="1", running="1", memory_gb=32, rescans=True), IMAGE, CONFIG))
    assert card.rescan_required
    assert not dev.host_reset(card).rescan_required
    assert not installed().rescan_required


def test_power_loss_during_an_install_leaves_a_card_without_an_os() -> None:
    card = dev.power_on(dev.power_off(dev.install(installed(), IMAGE, CONFIG)))
    assert (card.image, card.arm, card.doing) == (None, Arm.OFF, "")


def test_a_failed_install_leaves_a_card_that_can_be_installed_again() -> None:
    failed = dev.fail(dev.install(installed(), IMAGE, CONFIG))
    assert (failed.image, failed.arm) == (None, Arm.OFF)
    assert dev.finish(dev.install(failed, IMAGE, CONFIG)).up


def test_an_install_wipes_the_marker_of_the_join() -> None:
    joined = Device(**{**{f: getattr(installed(), f) for f in Device.__struct_fields__}, "joined": True})
    assert not dev.install(joined, IMAGE, CONFIG).joined


def test_a_skipped_host_reboot_makes_the_dpu_reboot_itself_once() -> None:
    card = installed(Config("dpu1", extra_reboot=True))
    assert (card.arm, card.doing) == (Arm.BOOTING, "dpu-boot")
    assert dev.finish(card).up
    assert dev.finish(card).running == "32.41.1000"


def test_hugepages_that_starve_the_os_hang_it_at_its_second_boot() -> None:
    small = Device(flash="1", running="1", memory_gb=16)
    card = dev.finish(dev.install(small, IMAGE, Config("dpu1", hugepages_gb=15.0)))
    assert card.up
    assert dev.finish(dev.host_reset(card)).arm == Arm.HUNG
    fine = dev.finish(dev.install(small, IMAGE, Config("dpu1", hugepages_gb=6.4)))
    assert dev.finish(dev.host_reset(fine)).up


def test_a_card_in_nic_mode_boots_no_arm_until_a_reset_after_the_mode_is_set() -> None:
    nic = dev.host_reset(dev.set_mode(installed(), "nic"))
    assert nic.arm == Arm.OFF
    back = dev.set_mode(nic, "dpu")
    assert back.rescan_required
    assert dev.host_reset(back).arm == Arm.BOOTING
    with pytest.raises(dev.Refused, match="turbo"):
        dev.set_mode(nic, "turbo")


def test_shutting_down_an_arm_that_is_off_is_nothing() -> None:
    off = dev.finish(dev.shut_down(installed()))
    assert off.arm == Arm.OFF
    assert dev.shut_down(off) is off


def test_a_reset_that_the_firmware_does_not_support_is_refused() -> None:
    with pytest.raises(dev.Refused, match="level 3"):
        dev.reset_firmware(Device(flash="1", running="1", memory_gb=32, level3=False))


def test_nothing_works_without_power() -> None:
    dark = dev.power_off(installed())
    for move in (MOVES["install"], dev.reset_firmware, dev.finish, dev.fail):
        with pytest.raises(dev.Refused):
            move(dark)
    assert dev.shut_down(dark) is dark
    assert dev.reset(dark) is dark


MOVES = {
    "install": lambda d: dev.install(d, IMAGE, CONFIG), "shut_down": dev.shut_down, "reset": dev.reset,
    "reset_firmware": dev.reset_firmware, "power_off": dev.power_off, "power_on": dev.power_on,
    "host_reset": dev.host_reset, "finish": dev.finish, "fail": dev.fail,
    "nic": lambda d: dev.set_mode(d, "nic"), "dpu": lambda d: dev.set_mode(d, "dpu"),
}


@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=25))
def test_whatever_is_done_to_it_a_device_stays_consistent_and_recovers(moves: list[str]) -> None:
    card = NEW
    for move in moves:
        try:
            card = MOVES[move](card)
        except dev.Refused:
            continue
        busy = {Arm.INSTALLING: "os-install", Arm.BOOTING: "dpu-boot", Arm.SHUTTING_DOWN: "arm-shutdown",
                Arm.RESETTING: "fw-reset"}
        assert card.doing == busy.get(card.arm, "")
        assert card.powered or card.arm == Arm.OFF
        assert (card.new_image is not None) == (card.arm == Arm.INSTALLING)
        assert card.arm not in (Arm.UP, Arm.BOOTING) or card.image is not None
    card = dev.set_mode(dev.host_reset(dev.set_mode(card, "dpu")), "dpu")
    card = dev.finish(dev.install(card, IMAGE, CONFIG))
    assert dev.finish(dev.host_reset(card)).up
