"""Files as worlds hand them around, and the image servers that they come from.

A file is its content's identity, its size and, for what controllers write, its bytes.
"""

from __future__ import annotations

from hashlib import md5
from typing import Final, NamedTuple

from twin.model.device import Image
from twin.model.fleet import ImageFile, ImageServer
from twin.model.provisioning import BfbVersions
from twin.sim.links import Link

GARBAGE: Final = "garbage"
"""The fault `image-server-wrong-content` without another image: bytes that are no BFB."""
GARBAGE_HEAD: Final = b"<!DOCTYPE html><title>Sign in</title>"
"""How they begin, as what a proxy answers does."""


class File(NamedTuple):
    """One file. `image` is None for what is no BFB; `content` is None for what only its identity stands for."""

    identity: str
    size: int
    image: Image | None = None
    content: bytes | None = None

    @property
    def md5(self) -> str:
        return md5(self.content if self.content is not None else self.identity.encode()).hexdigest()


def file_of(image: ImageFile) -> File:
    versions = BfbVersions(**{k: v for k, v in image.versions.items() if k in ("bsp", "doca", "uefi", "atf")})
    return File(image.content, image.size_bytes, Image(image.content, image.size_bytes, versions, image.firmware))


class SimImageServer:
    """One HTTP server. Its troubles are set from outside: `down`, `status` (0: as it should be), `instead`.

    `instead` delivers other content than asked for: GARBAGE, or the name of another of its files.
    """

    def __init__(self, record: ImageServer) -> None:
        self.record = record
        self.name = record.name
        self.link = Link(f"image-server {record.name}", record.bandwidth_bytes_per_s)
        self.down = False
        self.status = 0
        self.instead = ""

    def file(self, url: str) -> File | None:
        """What a GET of this URL delivers; None is a 404."""
        asked = self.record.file(url)
        if asked is None:
            return None
        if self.instead == GARBAGE:
            return File(f"{GARBAGE} for {asked.content}", asked.size_bytes, content=GARBAGE_HEAD)
        if self.instead:
            other = self.record.file(f"{self.record.url.rstrip('/')}/{self.instead}")
            return file_of(other) if other else None
        return file_of(asked)
