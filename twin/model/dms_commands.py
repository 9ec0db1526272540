"""The shell commands that run on a host through DMS: how they are written, what they print, how the answer is read.

One truth for three users: controllers build commands and read answers, the simulated DMS and the DMS emulator parse
commands and print answers. The commands in use are those of provisioning.md 3.3 and 3.4; what the tools print follows
NVIDIA's published MFT documentation and mstflint's sources, shortened to a query's usual lines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Final, NamedTuple

from twin.model.device import Device
from twin.model.fleet import GI, Card
from twin.model.parts import PARTS

HOST_NETWORK_SCRIPT: Final = "hostnetwork.sh"
BF_SLR: Final = "bf-slr.sh"
EXEC_TIMEOUT_S: Final = 900
"""dmsd ends a command after this many seconds (provisioning.md 3.1)."""

UPTIME: Final = "cat /proc/uptime"


# --- PCI addresses


@lru_cache(maxsize=4096)
def pci_address(text: str) -> str:
    """`0000-2b-00` or `2b-00` (labels, specs) as `0000:2b:00`: with domain, as the host network script wants it."""
    parts = text.replace(":", "-").split("-")
    if len(parts) == 2:
        parts = ["0000", *parts]
    return ":".join(parts)


def pci_without_domain(text: str) -> str:
    """`2b:00`, as `bf-slr.sh` is called."""
    return pci_address(text).split(":", 1)[1]


# --- commands as controllers write them


def query_card(pci: str) -> str:
    """Part number and description, for the capacity check."""
    return f"flint -d {pci_address(pci)}.0 query full"


def query_firmware(pci: str) -> str:
    return f"flint -d {pci_address(pci)}.0 q"


def read_mfrl(pci: str) -> str:
    """The register that says whether a PCI rescan is required."""
    return f"mlxreg -d {pci_address(pci)}.0 --get --reg_name MFRL"


def query_reset(pci: str) -> str:
    return f"mlxfwreset -d {pci_address(pci)}.0 q"


def reset_firmware(pci: str) -> str:
    """Level 3 (driver restart and PCI reset), the driver as sync owner."""
    return f"mlxfwreset -d {pci_address(pci)}.0 -y -l 3 --sync 1 r"


def power(command: str) -> str:
    """A cold cycle of the host: `cycle` or `reset`."""
    return f"ipmitool chassis power {command}"


def host_network_setup(vfs: int, pci: str, mtu: int) -> str:
    return (f"{HOST_NETWORK_SCRIPT} --num_of_vfs={vfs} --device_pci_address={pci_address(pci)} "
            f"--control_plane_mtu={mtu}")


def host_network_delete(pci: str) -> str:
    return f"{HOST_NETWORK_SCRIPT} --delete --device_pci_address={pci_address(pci)}"


def shut_down_arm(pci: str, command: str) -> tuple[str, ...]:
    """First half of a warm reboot, by pod exec: the DPU's Arm goes down."""
    return (BF_SLR, pci_without_domain(pci), command, "arm")


def reboot_host(pci: str, command: str) -> tuple[str, ...]:
    """Second half of a warm reboot, by pod exec: the host goes down and comes back with the card reset."""
    return (BF_SLR, pci_without_domain(pci), command, "host")


def checksum(path: str) -> tuple[str, ...]:
    return ("md5sum", path)


# --- answers as controllers read them

_FIRMWARE: Final = re.compile(r"^FW Version:[ \t]*(\S+)", re.MULTILINE)
_RUNNING: Final = re.compile(r"^FW Version\(Running\):[ \t]*(\S+)", re.MULTILINE)
_RESCAN: Final = re.compile(r"^pci_rescan_required\s*\|\s*(\S+)", re.MULTILINE)
_LEVEL3: Final = re.compile(r"^3: Driver restart and PCI reset.*?-\s*((?:Not )?Supported)", re.MULTILINE | re.I)
_SYNC1: Final = re.compile(r"^1: Driver is the owner.*?-\s*((?:Not )?Supported)", re.MULTILINE | re.I)


class NoAnswer(ValueError):
    """The command ran, but what it printed does not hold the answer."""


@lru_cache(maxsize=256)
def _find(pattern: re.Pattern[str], text: str, what: str) -> str:
    found = pattern.search(text)
    if found is None:
        raise NoAnswer(f"no {what} in the output: {text.strip()[:200]!r}")
    return found[1]


def firmware_on_flash(text: str) -> str:
    """Raises NoAnswer."""
    return _find(_FIRMWARE, text, "FW Version")


def firmware_running(text: str) -> str:
    """Raises NoAnswer. flint prints the running version only when it differs from the one on flash."""
    running = _RUNNING.search(text)
    return running[1] if running else firmware_on_flash(text)


def rescan_required(text: str) -> str:
    """The field as printed, in hexadecimal. Raises NoAnswer."""
    return _find(_RESCAN, text, "pci_rescan_required")


def hex_number(text: str) -> int:
    """Raises ValueError, worded as Go's strconv does."""
    try:
        return int(text.removeprefix("0x"), 16)
    except ValueError as error:
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax') from error


def level3_supported(text: str) -> bool:
    """Raises NoAnswer."""
    return _find(_LEVEL3, text, "reset level 3").lower() == "supported"


def sync1_supported(text: str) -> bool:
    """Raises NoAnswer."""
    return _find(_SYNC1, text, "reset sync 1").lower() == "supported"


def uptime_s(text: str) -> float:
    """Seconds. Raises NoAnswer."""
    try:
        return float(text.split()[0])
    except (IndexError, ValueError) as error:
        raise NoAnswer(f"no uptime in the output: {text.strip()[:200]!r}") from error


# --- commands as a host understands them


class Command(NamedTuple):
    """A command that a host knows. `pci` has the domain; unused fields are empty."""

    kind: str
    """flint, flint-full, mfrl, reset-query, reset, uptime, power, network, network-delete, slr-arm, slr-host, md5sum"""
    pci: str = ""
    argument: str = ""
    """The power command, or the path."""
    vfs: int = 0
    mtu: int = 0


class ShellError(Exception):
    """A command ended with `code` after `takes_s` seconds; the text is what it wrote to stderr."""

    def __init__(self, code: int, text: str, takes_s: float = 0.0) -> None:
        super().__init__(text)
        self.code = code
        self.takes_s = takes_s


def parse(command: str) -> Command:
    """What a command line asks for. Raises ShellError as a shell or the tool would complain."""
    result = _parse(command)
    if isinstance(result, Command):
        return result
    raise ShellError(*result)


@lru_cache(maxsize=4096)
def _parse(command: str) -> Command | tuple[int, str]:
    try:
        words = shlex.split(command)
    except ValueError:
        return 2, "bash: -c: unexpected EOF while looking for matching quote"
    if not words:
        return 0, ""
    return parse_words(tuple(words))


@lru_cache(maxsize=4096)
def parse_words(words: tuple[str, ...]) -> Command | tuple[int, str]:
    """As `parse`, for words; a complaint is (exit code, text)."""
    program = words[0]
    reader = _PROGRAMS.get(program)
    if reader is None:
        return 127, f"bash: {program}: command not found"
    return reader(words[1:]) or (1, f"{program}: unrecognized arguments: {' '.join(words[1:])}")


def _function(device: str) -> str:
    """`0000:2b:00.0` -> `0000:2b:00`; '' if it is no address of function 0."""
    match = re.fullmatch(r"((?:[0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2})\.0", device)
    return pci_address(match[1]) if match else ""


def _flint(words: tuple[str, ...]) -> Command | None:
    if len(words) < 3 or words[0] not in ("-d", "--device") or not (pci := _function(words[1])):
        return None
    if words[2:] in (("q",), ("query",)):
        return Command("flint", pci)
    return Command("flint-full", pci) if words[2:] in (("q", "full"), ("query", "full")) else None


def _mlxreg(words: tuple[str, ...]) -> Command | None:
    if len(words) == 5 and words[0] == "-d" and words[2:] == ("--get", "--reg_name", "MFRL"):
        pci = _function(words[1])
        return Command("mfrl", pci) if pci else None
    return None


def _mlxfwreset(words: tuple[str, ...]) -> Command | None:
    if len(words) < 3 or words[0] != "-d" or not (pci := _function(words[1])):
        return None
    if words[2:] in (("q",), ("query",)):
        return Command("reset-query", pci)
    return Command("reset", pci) if words[2:] == ("-y", "-l", "3", "--sync", "1", "r") else None


def _cat(words: tuple[str, ...]) -> Command | tuple[int, str]:
    if words == ("/proc/uptime",):
        return Command("uptime")
    return 1, f"cat: {' '.join(words)}: No such file or directory"


def _ipmitool(words: tuple[str, ...]) -> Command | None:
    if len(words) == 3 and words[:2] == ("chassis", "power") and words[2] in ("cycle", "reset"):
        return Command("power", argument=words[2])
    return None


def _network(words: tuple[str, ...]) -> Command | None:
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    pci = given.pop("device_pci_address", "")
    if not re.fullmatch(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}", pci):
        return None
    if given == {"delete": ""}:
        return Command("network-delete", pci)
    vfs, mtu = given.pop("num_of_vfs", ""), given.pop("control_plane_mtu", "")
    if given or not vfs.isdecimal() or not mtu.isdecimal():
        return None
    return Command("network", pci, vfs=int(vfs), mtu=int(mtu))


def _bf_slr(words: tuple[str, ...]) -> Command | None:
    if len(words) != 3 or words[1] not in ("cycle", "reset") or words[2] not in ("arm", "host"):
        return None
    return Command(f"slr-{words[2]}", pci_address(words[0]), words[1])


def _md5sum(words: tuple[str, ...]) -> Command | None:
    return Command("md5sum", argument=words[0]) if len(words) == 1 else None


_PROGRAMS: Final = {
    "flint": _flint, "mlxreg": _mlxreg, "mlxfwreset": _mlxfwreset, "cat": _cat, "ipmitool": _ipmitool,
    HOST_NETWORK_SCRIPT: _network, BF_SLR: _bf_slr, "md5sum": _md5sum,
}


# --- answers as a host prints them


class Board(NamedTuple):
    """What flint knows of a card beside its firmware."""

    part_number: str
    psid: str
    description: str


def board(card: Card) -> Board:
    """What this card of the fleet says of itself: by its part number, else by its model, cores and memory."""
    part = PARTS.get(card.opn)
    if part is not None:
        return Board(part.opn, card.psid or part.psid, part.description)
    return Board(card.opn, card.psid or "N/A", f"NVIDIA BlueField-3 {card.model} DPU; {card.cores} Arm cores; "
                                               f"{card.memory_bytes // GI}GB on-board DDR; integrated BMC")


def unknown_board(opn: str) -> Board:
    """An engineering sample: no table knows its number, and its description says no sizes."""
    return Board(opn, "N/A", "N/A")


def print_flint(board: Board, d: Device, *, full: bool = False) -> str:
    return _flint_text(board, d.flash, d.running, full)


@lru_cache(maxsize=256)
def _flint_text(board: Board, flash: str, running: str, full: bool) -> str:
    runs = f"FW Version(Running):   {running}\n" if running != flash else ""
    what = f"Part Number:           {board.part_number}\nDescription:           {board.description}\n" if full else ""
    return (
        f"Image type:            FS4\n"
        f"FW Version:            {flash}\n"
        f"{runs}"
        f"{what}"
        f"Product Version:       {flash}\n"
        f"Description:           UID                GuidsNumber\n"
        f"PSID:                  {board.psid}\n"
        f"Security Attributes:   secure-fw\n"
    )


def print_mfrl(d: Device) -> str:
    return _mfrl_text(d.rescan_required)


@lru_cache(maxsize=2)
def _mfrl_text(rescan_required: bool) -> str:
    rows = (("reset_trigger", 0x4D), ("reset_type", 0x1D), ("pci_rescan_required", int(rescan_required)))
    body = "".join(f"{name:<34}| 0x{value:08x}\n" for name, value in rows)
    return f"Sending access register...\n\n{'Field Name':<34}| Data\n{'=' * 49}\n{body}"


def print_reset(d: Device) -> str:
    return _reset_text(d.level3, d.sync1)


@lru_cache(maxsize=4)
def _reset_text(level3: bool, sync1: bool) -> str:
    def row(text: str, supported: bool) -> str:
        return f"{text:<66}-{'Supported' if supported else 'Not Supported'}\n"

    return (
        "Reset-levels:\n"
        + row('0: Driver, PCI link, network link will remain up ("live-Patch")', False)
        + row('1: Only ARM side will not remain up ("Immediate reset").', True)
        + row("3: Driver restart and PCI reset", level3)
        + row("4: Warm Reboot", True)
        + "\nReset-types (relevant only for reset-levels 1,3,4):\n"
        + row("0: Full chip reset", True)
        + row("4: ARM OS shut down", True)
        + "\nReset-sync (relevant only for reset-level 3):\n"
        + row("0: Tool is the owner", not sync1)
        + row("1: Driver is the owner", sync1)
    )


def print_uptime(seconds: float) -> str:
    return f"{seconds:.2f} {seconds:.2f}\n"


ANSWERS: Final[Mapping[str, Callable[[Board, Device], str]]] = {
    "flint": print_flint,
    "flint-full": partial(print_flint, full=True),
    "mfrl": lambda board, device: print_mfrl(device),
    "reset-query": lambda board, device: print_reset(device),
}
"""What a question to a card (a `Command.kind`) prints."""
