"""The DPU as a pure state machine: requests, what they lead to, and power. It has no clock and draws nothing.

A request or a fault returns the next `Device`. `doing` names the operation of the timing profile that is under way,
or is ''; the simulator (or a test) decides when it ends and calls `finish`. So a test pokes a device through its whole
life without a world.

Firmware has two versions: on flash, and running. Power, a host reboot and a level 3 reset make the one on flash run;
the same holds for firmware parameters (nvconfig) and the mode.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from twin.model.provisioning import BfbVersions


class Arm:
    """What the Arm side does. HUNG: its OS has too little memory left to run (known issue 4200717)."""

    OFF: Final = "off"
    INSTALLING: Final = "installing"
    BOOTING: Final = "booting"
    UP: Final = "up"
    SHUTTING_DOWN: Final = "shutting down"
    RESETTING: Final = "resetting"
    HUNG: Final = "hung"


INSTALL: Final = "os-install"
BOOT: Final = "dpu-boot"
SHUTDOWN: Final = "arm-shutdown"
RESET: Final = "fw-reset"

OS_MEMORY_GB: Final = 3.0
"""Memory that Ubuntu, OVS and the kubelet need beside hugepages (expert). Known issue 4200717 is 14 GB of hugepages on
a card of 16 GB; the stock flavors take 6."""


class Image(msgspec.Struct, frozen=True, gc=False):
    """A BFB: which content it is, its size in bytes, what it holds."""

    identity: str
    size: int
    versions: BfbVersions
    firmware: str
    """NIC firmware that the installer burns when bf.cfg says WITH_NIC_FW_UPDATE=yes."""


class Config(msgspec.Struct, frozen=True, gc=False):
    """What the installed OS reads out of its bf.cfg (`twin.model.bfcfg.read`)."""

    hostname: str
    server: str = ""
    token: str = ""
    nvconfig: tuple[str, ...] = ()
    firmware_update: bool = False
    extra_reboot: bool = False
    mtu: int = 1500
    hugepages_gb: float = 0.0


class Device(msgspec.Struct, frozen=True, gc=False):
    """One BlueField card."""

    flash: str
    """Firmware version on flash."""
    running: str
    memory_gb: int
    level3: bool = True
    """mlxfwreset level 3 (driver restart and PCI reset) is supported, `sync1`: with the driver as owner."""
    sync1: bool = True
    powered: bool = True
    arm: str = Arm.OFF
    doing: str = ""
    mode: str = "dpu"
    next_mode: str = "dpu"
    nvconfig: tuple[str, ...] = ()
    next_nvconfig: tuple[str, ...] = ()
    image: Image | None = None
    config: Config | None = None
    new_image: Image | None = None
    new_config: Config | None = None
    joined: bool = False
    """The marker on its disk that a kubeadm join succeeded; an install wipes it."""
    rescans: bool = False
    """What this card's installs change alters what the host sees on PCI."""
    rescan_pending: bool = False

    @property
    def rescan_required(self) -> bool:
        """MFRL's pci_rescan_required: something that waits for a reset changes what the host sees on PCI."""
        return self.rescan_pending or self.mode != self.next_mode

    @property
    def up(self) -> bool:
        return self.arm == Arm.UP


class Refused(ValueError):
    """The device cannot do this now."""


# --- requests


def install(d: Device, image: Image, config: Config) -> Device:
    """Push an image and its bf.cfg through rshim. The old OS is gone from here on, whatever happens next."""
    if not d.powered:
        raise Refused("rshim: no device")
    return replace(d, arm=Arm.INSTALLING, doing=INSTALL, image=None, config=None, joined=False,
                   new_image=image, new_config=config)


def shut_down(d: Device) -> Device:
    """mlxfwreset level 1 type 4: the Arm OS shuts down. Nothing to do when it is off."""
    if not d.powered or d.arm == Arm.OFF:
        return d
    return replace(d, arm=Arm.SHUTTING_DOWN, doing=SHUTDOWN, new_image=None, new_config=None)


def reset_firmware(d: Device) -> Device:
    """mlxfwreset level 3 with sync 1. Raises Refused when the firmware does not support it."""
    if not d.powered:
        raise Refused("-E- Failed to open device")
    if not (d.level3 and d.sync1):
        raise Refused("-E- Reset level 3 is not supported by the current device state")
    return replace(d, arm=Arm.RESETTING, doing=RESET, new_image=None, new_config=None)


def set_mode(d: Device, mode: str) -> Device:
    """`dpu` or `nic`, from the next reset on."""
    if mode not in ("dpu", "nic"):
        raise Refused(f"unknown mode {mode!r}")
    return d if d.next_mode == mode else replace(d, next_mode=mode)


# --- power and the host


def power_off(d: Device) -> Device:
    """No power: whatever was under way is lost, a half-written OS too."""
    return replace(d, powered=False, arm=Arm.OFF, doing="", new_image=None, new_config=None)


def power_on(d: Device) -> Device:
    """Power is back: what is on flash runs, and the installed OS boots. Nothing changes for a card that has power."""
    if d.powered:
        return d
    return _start(replace(_loaded(d), powered=True))


def reset(d: Device) -> Device:
    """The card alone is reset, from outside DPF: its OS starts again, firmware stays as it runs."""
    return _start(replace(d, doing="", new_image=None, new_config=None)) if d.powered else d


def host_reset(d: Device) -> Device:
    """The host was reset and the card with it (mlxfwreset level 4): as power off and on."""
    return power_on(power_off(d))


# --- how operations end


def finish(d: Device) -> Device:
    """The operation in `doing` ended well."""
    if d.doing == INSTALL:
        return _installed(d)
    if d.doing == BOOT:
        return _booted(d)
    if d.doing == SHUTDOWN:
        return replace(d, arm=Arm.OFF, doing="")
    if d.doing == RESET:
        return _start(_loaded(d))
    raise Refused("nothing is under way")


def fail(d: Device) -> Device:
    """The operation in `doing` failed. A failed install leaves a card without an OS; else the Arm is off."""
    if not d.doing:
        raise Refused("nothing is under way")
    return replace(d, arm=Arm.OFF, doing="", new_image=None, new_config=None)


def _installed(d: Device) -> Device:
    """The installer is through and the new OS has started once (os-install covers that boot)."""
    image, config = d.new_image, d.new_config
    assert image is not None
    assert config is not None
    done = replace(
        d, arm=Arm.UP, doing="", image=image, config=config, new_image=None, new_config=None,
        flash=image.firmware if config.firmware_update and image.firmware else d.flash,
        next_nvconfig=config.nvconfig or d.next_nvconfig, rescan_pending=d.rescans,
    )
    return _start(done) if config.extra_reboot else done


def _start(d: Device) -> Device:
    """The Arm starts if it has an OS and the card is a DPU, not a plain NIC."""
    if d.image is None or d.mode != "dpu":
        return replace(d, arm=Arm.OFF, doing="")
    return replace(d, arm=Arm.BOOTING, doing=BOOT)


def _booted(d: Device) -> Device:
    # Kernel parameters count from the second boot on (provisioning.md 4.4): an oversized flavor survives its install.
    hugepages = d.config.hugepages_gb if d.config else 0.0
    starved = hugepages > d.memory_gb - OS_MEMORY_GB
    return replace(d, arm=Arm.HUNG if starved else Arm.UP, doing="")


def _loaded(d: Device) -> Device:
    return replace(d, running=d.flash, nvconfig=d.next_nvconfig, mode=d.next_mode, rescan_pending=False)
