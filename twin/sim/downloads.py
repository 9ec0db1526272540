"""One download into the BFB volume: a GET to a temporary file, then a rename (provisioning.md 4.1).

upstream: one GET; a transfer that breaks is over, and whatever came with status 200 is renamed into place. A `checked`
download goes on where it broke and refuses content that is no BFB.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final, Protocol

from twin.backends.base import RESUME_WAIT_S, RESUMES, Operation
from twin.model import bfb_image
from twin.sim.clock import Call, TwinEnvironment, ns
from twin.sim.files import File, SimImageServer
from twin.sim.links import Link, Links
from twin.sim.space import Space

_PART: Final = "part of "
_MIXED: Final = "parts of two files"


class Volume(Protocol):
    """Where a download goes to (`twin.sim.volume.SimVolume`)."""

    env: TwinEnvironment
    links: Links
    link: Link
    reader_link: Link | None
    files: dict[str, File]
    down: bool
    latency_ns: int
    downloads: dict[Any, None]
    space: Space

    def server_of(self, url: str) -> SimImageServer | None: ...

    def put(self, path: str, file: File | None) -> None: ...


class Download:
    """`op` ends with it. The part that came so far stands on the volume under the temporary name."""

    __slots__ = ("_checked", "_file", "_left", "_path", "_started", "_timer", "_url", "_volume", "_wait_s",
                 "missing", "op", "server", "stream", "temp")

    def __init__(self, volume: Volume, url: str, path: str, temp: str, *, checked: bool) -> None:
        self.op = Operation("download")
        self.op.on_cancel = self._cancel
        self.server: SimImageServer | None = None
        self._volume, self._url, self._path, self.temp = volume, url, path, temp
        self._checked = checked
        self._left = RESUMES if checked else 0
        self._wait_s = RESUME_WAIT_S[0]
        self.stream: Operation | None = None
        self._started = 0
        """Bytes that were there when the stream began."""
        self.missing = 0.0
        self._timer: Call | None = None
        self._file: File | None = None

    def begin(self) -> None:
        """Ask the server, from the first byte or for what is missing."""
        self._timer = None
        volume, url = self._volume, self._url
        host = url.split("//", 1)[-1].split("/", 1)[0]
        server = volume.server_of(url)
        if volume.down:
            self._fail(f"open {self.temp}: input/output error")
        elif server is None:
            self._broken(f'Get "{url}": dial tcp: lookup {host.split(":")[0]}: no such host')
        elif server.down:
            self._broken(f'Get "{url}": dial tcp {host}: connect: connection refused')
        else:
            file = server.file(url)
            status = server.status or (200 if file else 404)
            if status != 200 or file is None:
                self._fail(f"failed to download {url}, http status code: {status}")
            else:
                self._fetch(server, file)

    def interrupt(self, why: str, *, server: bool) -> None:
        """The server or the volume breaks the transfer."""
        if self.stream is None:
            return
        self._stop()
        if server and self._left:
            self._again()
        else:
            self.op.fail(OSError(f'Get "{self._url}": {why}' if server else why))

    # --- inside

    def _fetch(self, server: SimImageServer, file: File) -> None:
        volume, part = self._volume, self._volume.files.get(self.temp)
        self._started = part.size if self._checked and part is not None else 0
        whole = self._started == 0 or part is None or part.identity == _PART + file.identity
        self._file = file if whole else File(_MIXED, file.size)
        volume.put(self.temp, File(_PART + self._file.identity, self._started))
        self.server = server
        links = tuple(link for link in (server.link, volume.reader_link, volume.link) if link is not None)
        self.missing = max(0.0, float(file.size - self._started))
        self.stream = volume.links.transfer(links, self.missing, name=f"download {self._path}")
        self.stream.callbacks.append(lambda done: self._came(done))
        volume.downloads[self] = None
        volume.space.look()

    def _came(self, stream: Operation) -> None:
        file = self._file
        if stream is not self.stream or file is None:
            return
        self.stream = None
        volume = self._volume
        volume.downloads.pop(self, None)
        volume.put(self.temp, None)
        bad = bad_image(file) if self._checked else ""
        if bad:
            self._fail(f"failed to download {self._url}: {bad}")
            return
        volume.put(self._path, file)
        self.op.succeed()

    def _stop(self) -> None:
        """End the stream; what it brought stays."""
        stream, self.stream = self.stream, None
        volume = self._volume
        volume.downloads.pop(self, None)
        if stream is not None and self._file is not None:
            came = self._started + int(volume.links.moved(stream))
            volume.links.abort(stream, OSError("context canceled"))
            if self.temp in volume.files:
                volume.put(self.temp, File(_PART + self._file.identity, came))

    def _broken(self, why: str) -> None:
        """No answer came."""
        if self._left:
            self._again()
        else:
            self._fail(why)

    def _again(self) -> None:
        """Ask once more, after a while."""
        self._left -= 1
        self._timer = self._volume.env.call_at(ns(self._wait_s), self.begin)
        self._wait_s = min(2 * self._wait_s, RESUME_WAIT_S[1])

    def _fail(self, why: str) -> None:
        self._volume.env.call_at(self._volume.latency_ns, self.op.fail, OSError(why))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stop()


def bad_image(file: File) -> str:
    """Why this content is no BFB, or ''."""
    if file.identity == _MIXED:
        return f"image {bfb_image.INITRAMFS} has another CRC than its header says"
    if file.image is None:
        try:
            for _ in bfb_image.headers(BytesIO(file.content or b"")):
                pass
        except bfb_image.BadImage as error:
            return str(error)
    return ""
