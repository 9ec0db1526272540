"""The BlueField boot stream (BFB) as a file: a chain of images, each behind a header of 24 bytes or more.

Header, little endian: magic 0x13026642 ("Bf", 0x02, 0x13); a word of bit fields, lowest first: major 4, minor 4,
reserved 4, next version 4, this version 4, header length in 8-byte units 4, image id 8; image length in bytes; CRC-32
of the image; a 64-bit mask of the ids that still follow. Images are padded to 8 bytes (the public headers of NVIDIA's
boot loaders and tools). Versions come from strings inside (provisioning.md 4.1): UEFI's from image 5, as UTF-16
"BlueField:<version>" and "BId<build>", the trusted firmware's from a "(release):" string.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

from twin.model.provisioning import BfbVersions

MAGIC: Final = 0x13026642
BL2: Final = 1
BL31: Final = 3
UEFI: Final = 5
KERNEL: Final = 62
INITRAMFS: Final = 63

_HEADER: Final = struct.Struct("<IIIIQ")
_MAJOR: Final = 1
_UEFI_VERSION: Final = re.compile(r"BlueField:\s*(\d+\.\d+\.\d+)([-.\w]*)")
_BUILD: Final = re.compile(r"\bBId(\d+)")
_ATF_VERSION: Final = re.compile(rb"v[\d.]+\(release\):[-.\w]+")
_SCANNED_BYTES: Final = 32 * 1024 * 1024
"""No boot loader is larger; more of an image is not looked at."""


class BadImage(ValueError):
    """The file is no BFB, or one without the versions it must hold."""


class Header(NamedTuple):
    """One image: its id, where its bytes begin in the file, how many there are, and what its header says of it."""

    image_id: int
    offset: int
    length: int
    crc: int
    following: int


def headers(file: BinaryIO) -> Iterator[Header]:
    """The chain of images from the file's start. Raises BadImage where the chain is broken."""
    at = 0
    while True:
        file.seek(at)
        raw = file.read(_HEADER.size)
        if len(raw) < _HEADER.size:
            raise BadImage(f"truncated image header at byte {at}")
        magic, bits, length, crc, following = _HEADER.unpack(raw)
        if magic != MAGIC:
            raise BadImage(f"bad magic 0x{magic:08x} at byte {at}, not a BFB image")
        words = bits >> 20 & 0xF
        if bits & 0xF != _MAJOR or words * 8 < _HEADER.size:
            raise BadImage(f"unknown header version {bits & 0xF}.{bits >> 4 & 0xF} at byte {at}")
        offset = at + words * 8
        yield Header(bits >> 24, offset, length, crc, following)
        at = offset + length + -length % 8
        if not following:
            return


def versions(file: BinaryIO) -> BfbVersions:
    """bsp, doca, uefi and atf. Raises BadImage."""
    uefi_text = atf = ""
    for header in headers(file):
        if header.image_id not in (BL2, BL31, UEFI):
            continue
        data = _bytes(file, header)
        if header.image_id == UEFI:
            uefi_text = data.decode("utf-16-le", errors="replace") + data[1:].decode("utf-16-le", errors="replace")
        elif not atf:
            found = _ATF_VERSION.search(data)
            atf = found[0].decode() if found else ""
    number, build = _UEFI_VERSION.search(uefi_text), _BUILD.search(uefi_text)
    if number is None or build is None:
        raise BadImage("no UEFI version in the image")
    bsp = f"{number[1]}.{build[1]}"
    return BfbVersions(bsp=bsp, doca=doca_of(bsp), uefi=number[1] + number[2], atf=atf)


def doca_of(bsp: str) -> str:
    """The DOCA version of a BSP: its major version less 2 (4.2.3.12968 is DOCA 2.2.3). Raises BadImage below 2."""
    parts = bsp.split(".")
    if len(parts) < 3 or not all(p.isdecimal() for p in parts[:3]):
        raise BadImage(f"invalid BSP version {bsp!r}")
    major = int(parts[0]) - 2
    if major < 0:
        raise BadImage(f"invalid BSP version {bsp!r}: the major version must be at least 2")
    return f"{major}.{parts[1]}.{parts[2]}"


def check(file: BinaryIO) -> None:
    """Every image is whole and has the CRC its header says. Raises BadImage. Reads the whole file."""
    for header in headers(file):
        left, crc = header.length + -header.length % 8, 0
        file.seek(header.offset)
        while left:
            data = file.read(min(left, 1 << 20))
            if not data:
                raise BadImage(f"image {header.image_id} is cut off")
            crc = zlib.crc32(data, crc)
            left -= len(data)
        if crc != header.crc:
            raise BadImage(f"image {header.image_id} has CRC 0x{crc:08x}, its header says 0x{header.crc:08x}")


def _bytes(file: BinaryIO, header: Header) -> bytes:
    file.seek(header.offset)
    data = file.read(min(header.length, _SCANNED_BYTES))
    if len(data) < min(header.length, _SCANNED_BYTES):
        raise BadImage(f"image {header.image_id} is cut off")
    return data


# --- writing, for labs and tests

_FIRMWARE: Final = re.compile(rb"nic-firmware=([\d.]+)\n")


def build(made: BfbVersions, *, firmware: str = "", size: int = 0) -> bytes:
    """A BFB that boots nothing but carries these versions, padded to about `size` bytes.

    `firmware` is left in the initramfs as a line that `firmware_of` finds: the emulator's installer burns it.
    """
    number, _, number_build = made.bsp.rpartition(".")
    suffix = made.uefi.removeprefix(number)
    uefi = f"BlueField:{number}{suffix}\0BId{number_build}\0".encode("utf-16-le")
    head = f"dpf-twin\nnic-firmware={firmware}\n".encode() if firmware else b"dpf-twin\n"
    chain = [(BL2, b"\0" * 64 + made.atf.encode() + b"\0"), (UEFI, b"\0" * 128 + uefi), (KERNEL, b"MZ" + b"\0" * 62)]
    used = sum(len(data) + _HEADER.size for _, data in chain) + _HEADER.size + len(head)
    chain.append((INITRAMFS, head + b"\0" * max(0, size - used)))
    return b"".join(_encoded(chain))


def _encoded(chain: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    for i, (image_id, data) in enumerate(chain):
        padded = data + b"\0" * (-len(data) % 8)
        following = 0
        for later, _ in chain[i + 1:]:
            following |= 1 << later
        bits = _MAJOR | 1 << 4 | (_HEADER.size // 8) << 20 | image_id << 24
        yield _HEADER.pack(MAGIC, bits, len(data), zlib.crc32(padded), following)
        yield padded


def firmware_of(file: BinaryIO) -> str:
    """The NIC firmware that `build` left in the image, '' if none. Raises BadImage."""
    for header in headers(file):
        if header.image_id == INITRAMFS:
            file.seek(header.offset)
            found = _FIRMWARE.search(file.read(min(header.length, 4096)))
            return found[1].decode() if found else ""
    return ""
