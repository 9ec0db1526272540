"""The shared volume at /bfb, and the image servers its files come from.

A file is its content's identity, its size and, for what controllers write, its bytes. Reading and writing go over the
volume's link, so an outage of the volume (its capacity 0) holds every stream that reads from it; verbs then fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import md5
from io import BytesIO
from typing import Any, Final, NamedTuple

from twin.backends.base import Operation
from twin.model import bfb_image
from twin.model.device import Image
from twin.model.fleet import ImageFile, ImageServer
from twin.model.provisioning import BfbVersions
from twin.sim.clock import TwinEnvironment
from twin.sim.downloads import Download
from twin.sim.links import Link, Links
from twin.sim.runner import Meter, touch

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


class SimVolume:
    """The volume's files and troubles. `client(meter)` is what a controller holds.

    `reader_link` is the path of the controller pod to the outside, shared by its downloads.
    """

    def __init__(self, env: TwinEnvironment, links: Links, servers: Iterable[ImageServer], *,
                 bandwidth_bytes_per_s: float, reader_link: Link | None = None, parse_ns: int = 0,
                 latency_ns: int = 0) -> None:
        self.env = env
        self.links = links
        self.link = Link("volume", bandwidth_bytes_per_s)
        self.reader_link = reader_link
        self.servers = {s.name: SimImageServer(s) for s in servers}
        self.files: dict[str, File] = {}
        self.down = False
        self.parse_ns = parse_ns
        self.latency_ns = latency_ns
        self.readers: dict[Any, dict[Any, None]] = {}
        """Passes that read ("file", path) or ("volume",), see `twin.sim.runner.touch`."""
        self.downloads: dict[Download, None] = {}
        """Those that move bytes now."""

    def client(self, meter: Meter) -> VolumeClient:
        return VolumeClient(self, meter)

    # --- troubles

    def outage(self, down: bool) -> None:
        """The NFS server is gone, or back. Streams stall meanwhile; downloads under way fail."""
        self.down = down
        self.links.set_capacity(self.link, 0.0 if down else self.link.nominal)
        touch(self.readers, ("volume",))
        if down:
            for download in list(self.downloads):
                download.interrupt(f"write {download.temp}: input/output error", server=False)

    def server_down(self, name: str, down: bool) -> None:
        """Refuses connections, or does again answer; what it was sending breaks off."""
        server = self.servers[name]
        server.down = down
        if down:
            for download in [d for d in self.downloads if d.server is server]:
                download.interrupt("read tcp: connection reset by peer", server=True)

    def server_slow(self, name: str, factor: float) -> None:
        """1/factor of its bandwidth; 1 heals."""
        link = self.servers[name].link
        self.links.set_capacity(link, link.nominal / factor)

    def put(self, path: str, file: File | None) -> None:
        """Somebody puts a file there, or takes it away (None)."""
        if file is None:
            self.files.pop(path, None)
        else:
            self.files[path] = file
        touch(self.readers, ("file", path))

    # --- what hosts read

    def read(self, path: str) -> File:
        """The file at this path. Raises OSError."""
        self.check("open", path)
        file = self.files.get(path)
        if file is None:
            raise FileNotFoundError(f"open {path}: no such file or directory")
        return file

    def check(self, verb: str, path: str) -> None:
        if self.down:
            raise OSError(f"{verb} {path}: input/output error")

    # --- downloads

    def server_of(self, url: str) -> SimImageServer | None:
        """The server whose URL is the longest beginning of this one."""
        fitting = [s for s in self.servers.values() if url.startswith(s.record.url)]
        return max(fitting, key=lambda s: len(s.record.url), default=None)

    def download(self, url: str, path: str, temp: str, *, checked: bool = False) -> Operation:
        """GET to `temp`, then rename to `path`."""
        made = Download(self, url, path, temp, checked=checked)
        made.begin()
        return made.op


class VolumeClient:
    """`twin.backends.base.BfbVolume` for one controller."""

    def __init__(self, volume: SimVolume, meter: Meter) -> None:
        self._volume = volume
        self._meter = meter

    def exists(self, path: str) -> bool:
        self._read(path)
        self._volume.check("stat", path)
        return path in self._volume.files

    def remove(self, path: str) -> None:
        self._read(path)
        self._meter.before("volume remove")
        self._volume.check("remove", path)
        if path in self._volume.files:
            self._volume.put(path, None)
        self._meter.after("volume remove")

    def write(self, path: str, content: bytes) -> None:
        self._meter.before("volume write")
        self._volume.check("open", path)
        self._volume.put(path, File(path, len(content), content=content))
        self._meter.after("volume write")

    def download(self, url: str, path: str, temp: str, *, checked: bool = False) -> Operation:
        self._meter.before("download")
        op = self._volume.download(url, path, temp, checked=checked)
        self._meter.after("download")
        return op

    def versions(self, path: str) -> Mapping[str, str]:
        self._read(path)
        self._meter.charge_ns(self._volume.parse_ns)
        file = self._volume.read(path)
        try:
            versions = file.image.versions if file.image else bfb_image.versions(BytesIO(file.content or b""))
            bfb_image.doca_of(versions.bsp)
        except bfb_image.BadImage as error:
            raise ValueError(f"{path}: {error}") from error
        return {"bsp": versions.bsp, "doca": versions.doca, "uefi": versions.uefi, "atf": versions.atf}

    def _read(self, path: str) -> None:
        readers = self._volume.readers
        self._meter.read(readers, ("volume",))
        self._meter.read(readers, ("file", path))
