"""The image servers of a fleet, as one real HTTP proxy on loopback.

`http_proxy` in the environment of `live` sends every download here, so URLs of a scenario need not be changed. Images
are built from what the fleet says of them: small files that carry the right versions.
"""

from __future__ import annotations

import http.server
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from twin.backends.lab.control_plane import ADDRESS
from twin.model import bfb_image
from twin.model.fleet import Fleet, ImageFile
from twin.model.provisioning import BfbVersions

IMAGE_BYTES: Final = 4 << 20
CHUNK: Final = 1 << 16
GARBAGE: Final = "garbage"


@lru_cache(maxsize=16)
def image_bytes(file: ImageFileKey) -> bytes:
    """The BFB that stands for this file: its versions and firmware, 4 MiB instead of its nominal size."""
    versions = BfbVersions(**dict(file.versions))
    return bfb_image.build(versions, firmware=file.firmware, size=IMAGE_BYTES)


class ImageFileKey:
    """What makes two image files the same content."""

    __slots__ = ("firmware", "versions")

    def __init__(self, file: ImageFile) -> None:
        self.versions = tuple((k, file.versions[k]) for k in ("bsp", "doca", "uefi", "atf") if k in file.versions)
        self.firmware = file.firmware

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageFileKey) and (self.versions, self.firmware) == (other.versions, other.firmware)

    def __hash__(self) -> int:
        return hash((self.versions, self.firmware))


class ImageProxy:
    """Answers GETs of absolute URLs from the fleet's image servers. Troubles are set from outside, by server name.

    `status` answers this code instead; `down` breaks connections, those under way too; `slow` takes so many times as
    long; `instead` sends another file of the server, or GARBAGE.
    """

    def __init__(self, fleet: Fleet, *, port: int = 0, speed: float = 1.0,
                 paced: Callable[[str], float] = lambda server: 0.0) -> None:
        self.fleet = fleet
        self.status: dict[str, int] = {}
        self.down: dict[str, None] = {}
        self.slow: dict[str, float] = {}
        self.instead: dict[str, str] = {}
        self._speed = speed
        self._paced = paced
        self._server = _Server((ADDRESS, port), _Handler)
        self._server.proxy = self
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}"
        threading.Thread(target=lambda: self._server.serve_forever(0.05), name="image-proxy", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, url: str) -> tuple[int, bytes, float]:
        """(status, content, seconds it takes). Status 0: no answer at all."""
        server = self.fleet.image_server(url)
        if server is None:
            return 502, b"", 0.0
        if server.name in self.down:
            return 0, b"", 0.0
        file = server.file(url)
        status = self.status.get(server.name) or (200 if file else 404)
        if status != 200 or file is None:
            return status, b"", 0.0
        takes = self._paced(server.name) or file.size_bytes / server.bandwidth_bytes_per_s
        takes /= self._speed
        instead = self.instead.get(server.name)
        if instead == GARBAGE:
            return 200, b"no BFB" * CHUNK, takes
        if instead is not None:
            file = server.file(f"{server.url.rstrip('/')}/{instead}")
            if file is None:
                return 404, b"", 0.0
        return 200, image_bytes(ImageFileKey(file)), takes

    def slowness(self, url: str) -> float:
        """So many times as long as usual do transfers of this URL take now; 0: they break off."""
        server = self.fleet.image_server(url)
        if server is None or server.name in self.down:
            return 0.0
        return self.slow.get(server.name, 1.0)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    proxy: ImageProxy


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        status, content, takes_s = self.server.proxy.answer(self.path)
        self.close_connection = True
        if not status:
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        due = time.monotonic()
        try:
            for at in range(0, len(content), CHUNK):
                part = content[at:at + CHUNK]
                self.wfile.write(part)
                slowness = self.server.proxy.slowness(self.path)
                if not slowness:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(self.connection.detach())  # now this resets the connection
                    return
                due += takes_s * slowness * len(part) / len(content)
                time.sleep(max(0.0, due - time.monotonic()))  # the nominal file's time, spread over the small one
        except OSError:
            return  # the client went away

    def log_message(self, format: str, *args: object) -> None: ...
