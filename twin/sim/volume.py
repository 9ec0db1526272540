"""The shared volume at /bfb, which image servers fill.

Reading and writing go over the volume's link, so an outage of the volume (its capacity 0) holds every stream that reads
from it; verbs then fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, Final

from twin.backends.base import Operation
from twin.model import bfb_image
from twin.model.fleet import ImageServer
from twin.sim.clock import TwinEnvironment
from twin.sim.downloads import Download
from twin.sim.files import GARBAGE_HEAD as GARBAGE_HEAD
from twin.sim.files import File as File
from twin.sim.files import SimImageServer
from twin.sim.files import file_of as file_of
from twin.sim.links import Link, Links
from twin.sim.runner import Meter, touch
from twin.sim.space import Space

NO_SPACE: Final = "no space left on device"


class SimVolume:
    """The volume's files and troubles. `client(meter)` is what a controller holds.

    `reader_link` is the path of the controller pod to the outside, shared by its downloads. `size_bytes` None: it never
    fills. What a download that found no room has brought stays under its temporary name, as upstream leaves it.
    """

    def __init__(self, env: TwinEnvironment, links: Links, servers: Iterable[ImageServer], *,
                 bandwidth_bytes_per_s: float, reader_link: Link | None = None, parse_ns: int = 0,
                 latency_ns: int = 0, size_bytes: int | None = None) -> None:
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
        self.space = Space(env, links, size_bytes, self.downloads, self._full)

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
        old = self.files.pop(path, None) if file is None else self.files.get(path)
        if file is not None:
            self.files[path] = file
        self.space.used += (file.size if file is not None else 0) - (old.size if old is not None else 0)
        self.space.look()
        touch(self.readers, ("file", path))

    def _full(self) -> None:
        """Every write fails from now on. A download that has all its bytes needs no more."""
        for download in list(self.downloads):
            if download.stream is not None and download.missing - self.links.moved(download.stream) >= 1.0:
                download.interrupt(f"write {download.temp}: {NO_SPACE}", server=False)

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
        old = self._volume.files.get(path)
        if len(content) > self._volume.space.room() + (old.size if old is not None else 0):
            raise OSError(f"write {path}: {NO_SPACE}")
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
