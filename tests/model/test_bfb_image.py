"""BFB files: what is built is read back, and what is not a BFB is refused with the byte where it stops being one."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.model import bfb_image
from twin.model.bfb_image import BadImage
from twin.model.provisioning import BfbVersions

MADE = BfbVersions(bsp="4.9.0.13262", doca="2.9.0", uefi="4.9.0-42-gb8e9ab2a32", atf="v2.2(release):4.9.0-14-g9f2bd5c")


def test_a_built_image_carries_its_versions_and_its_firmware() -> None:
    file = io.BytesIO(bfb_image.build(MADE, firmware="32.43.1014"))
    assert bfb_image.versions(file) == MADE
    assert bfb_image.firmware_of(file) == "32.43.1014"
    bfb_image.check(file)


def test_the_header_is_the_published_one() -> None:
    raw = bfb_image.build(MADE)
    magic, bits, length, _, following = struct.unpack("<IIIIQ", raw[:24])
    assert raw[:2] == b"Bf"
    assert magic == 0x13026642
    assert (bits & 0xF, bits >> 20 & 0xF, bits >> 24) == (1, 3, bfb_image.BL2)
    assert following == 1 << 5 | 1 << 62 | 1 << 63
    assert raw[24 + length + -length % 8:][:2] == b"Bf"


def test_an_image_has_the_size_that_was_asked_for_to_eight_bytes() -> None:
    assert abs(len(bfb_image.build(MADE, size=100_000)) - 100_000) <= 32


def test_longer_headers_are_skipped() -> None:
    raw = bfb_image.build(MADE)
    magic, bits, length, crc, following = struct.unpack("<IIIIQ", raw[:24])
    header = struct.pack("<IIIIQ", magic, bits & ~(0xF << 20) | 4 << 20, length, crc, following)
    assert bfb_image.versions(io.BytesIO(header + b"\xff" * 8 + raw[24:])) == MADE


@pytest.mark.parametrize(("bsp", "doca"), [("4.2.3.12968", "2.2.3"), ("2.0.0.1", "0.0.0"), ("5.0.0.135", "3.0.0")])
def test_doca_is_the_bsp_with_its_major_version_less_two(bsp: str, doca: str) -> None:
    assert bfb_image.doca_of(bsp) == doca


@pytest.mark.parametrize("bsp", ["1.9.9.1", "0.1.0.1", "x.y.z.1", "4.2", ""])
def test_a_bsp_below_two_or_without_three_numbers_is_invalid(bsp: str) -> None:
    with pytest.raises(BadImage, match="invalid BSP version"):
        bfb_image.doca_of(bsp)


def test_an_image_without_uefi_strings_has_no_version() -> None:
    raw = bfb_image.build(MADE).replace("BlueField".encode("utf-16-le"), "GreenField"[:9].encode("utf-16-le"))
    with pytest.raises(BadImage, match="no UEFI version"):
        bfb_image.versions(io.BytesIO(raw))


def test_a_flipped_bit_is_found() -> None:
    raw = bytearray(bfb_image.build(MADE, size=4000))
    raw[-20] ^= 1
    with pytest.raises(BadImage, match="image 63 has CRC"):
        bfb_image.check(io.BytesIO(bytes(raw)))


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_crashes(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"bad magic|truncated|unknown header"):
        list(bfb_image.headers(io.BytesIO(data)))


@given(st.integers(1, 400))
def test_a_truncated_image_is_refused(cut: int) -> None:
    raw = bfb_image.build(MADE, size=600)
    with pytest.raises(BadImage):
        bfb_image.check(io.BytesIO(raw[:len(raw) - cut]))
