"""The BFB volume, live: a mounted folder, and downloads into it as upstream makes them (provisioning.md 4.1).

upstream: one plain GET, no time-out, no resume, no checksum; whatever came with status 200 is renamed into place.
A `checked` one (policy `checked-downloads`) goes on where it broke and checks every image's CRC before the rename.
"""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

import msgspec
import urllib3

from twin.backends.base import RESUME_WAIT_S, RESUMES, Operation
from twin.model import bfb_image

MOUNT: Final = "/bfb"
CHUNK: Final = 1 << 20
DIAL_S: Final = 30.0  # Go's default transport


class LiveVolume:
    """`twin.backends.base.BfbVolume`. `folder` is where the volume is mounted here; users' paths begin with /bfb.

    `deliver` is given the end of every download to run, see `twin.backends.dms.LiveDms`.
    """

    def __init__(self, folder: Path, *, workers: int = 8,
                 deliver: Callable[[Callable[[], None]], None] = lambda end: end()) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="bfb")
        self._deliver = deliver
        self._transfers: dict[int, Transfer] = {}
        self._lock = threading.Lock()

    def locate(self, path: str) -> Path:
        """Where a path of the volume is on this machine. Raises: OSError when it leaves the volume."""
        parts = PurePosixPath(path)
        if not parts.is_relative_to(MOUNT) or ".." in parts.parts:
            raise PermissionError(f"open {path}: not on the volume {MOUNT}")
        return self.folder / parts.relative_to(MOUNT)

    def exists(self, path: str) -> bool:
        self._mounted("stat", path)
        try:
            self.locate(path).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _worded("stat", path, error) from error
        return True

    def remove(self, path: str) -> None:
        self._mounted("remove", path)
        try:
            self.locate(path).unlink(missing_ok=True)
        except OSError as error:
            raise _worded("remove", path, error) from error

    def write(self, path: str, content: bytes) -> None:
        self._mounted("open", path)
        target = self.locate(path)
        part = target.with_name(f".{target.name}.part")
        try:
            part.write_bytes(content)
            part.chmod(0o644)
            part.rename(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _worded("open", path, error) from error

    def versions(self, path: str) -> Mapping[str, str]:
        self._mounted("open", path)
        try:
            with self.locate(path).open("rb") as file:
                found = bfb_image.versions(file)
        except OSError as error:
            raise _worded("open", path, error) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return {str(k): str(v) for k, v in msgspec.structs.asdict(found).items()}

    def download(self, url: str, path: str, temp: str, *, checked: bool = False) -> Operation:
        operation = Operation(f"download {url}")
        transfer = Transfer(url, path, temp, checked=checked)
        operation.on_cancel = transfer.cancel
        with self._lock:
            self._transfers[id(transfer)] = transfer

        def run() -> None:
            try:
                self._download(transfer)
            except (OSError, ValueError) as error:
                failure = error
                self._deliver(lambda: operation.fail(failure))
            else:
                self._deliver(lambda: operation.succeed(path))
            finally:
                with self._lock:
                    self._transfers.pop(id(transfer), None)

        self._pool.submit(run)
        return operation

    def close(self) -> None:
        """Break off downloads; their temporary files stay, as after a crash."""
        with self._lock:
            transfers = list(self._transfers.values())
        for transfer in transfers:
            transfer.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- inside

    def _mounted(self, verb: str, path: str) -> None:
        if not self.folder.is_dir():
            raise OSError(f"{verb} {path}: input/output error")

    def _download(self, transfer: Transfer) -> None:
        partial = self.locate(transfer.temp)
        if transfer.checked:
            self._fetch_all(transfer, partial)
            with partial.open("rb") as file:
                try:
                    bfb_image.check(file)
                except bfb_image.BadImage as error:
                    partial.unlink(missing_ok=True)
                    raise OSError(f"failed to download {transfer.url}: {error}") from error
        else:
            self._fetch(transfer, partial, 0)
        try:
            partial.chmod(0o644)
            partial.rename(self.locate(transfer.path))
        except OSError as error:
            raise _worded("rename", transfer.temp, error) from error

    def _fetch_all(self, transfer: Transfer, partial: Path) -> None:
        """Fetch, and after a break go on where it broke."""
        wait_s = RESUME_WAIT_S[0]
        for left in range(RESUMES, -1, -1):
            try:
                self._fetch(transfer, partial, partial.stat().st_size if partial.exists() else 0)
                return
            except Broken:
                if not left or transfer.cancelled.wait(wait_s):
                    raise
                wait_s = min(2 * wait_s, RESUME_WAIT_S[1])

    def _fetch(self, transfer: Transfer, partial: Path, have: int) -> None:
        """GET into the temporary file, after the first `have` bytes."""
        self._mounted("open", transfer.temp)
        url = transfer.url
        try:
            response = _pool(url).request(
                "GET", url, preload_content=False, redirect=True, headers={"Range": f"bytes={have}-"} if have else {},
                retries=urllib3.Retry(None, connect=0, read=0, redirect=10, status=0, other=0),
                timeout=urllib3.Timeout(connect=DIAL_S, read=None))
        except urllib3.exceptions.HTTPError as error:
            raise Broken(_no_answer(url, error)) from error
        try:
            if response.status == 416 and have:
                return
            resumed = response.status == 206 and have > 0
            if response.status != 200 and not resumed:
                raise OSError(f"failed to download {url}, http status code: {response.status}")
            transfer.begin(response)
            self._store(transfer, response, partial, append=resumed)
        finally:
            response.close()

    def _store(self, transfer: Transfer, response: urllib3.BaseHTTPResponse, partial: Path, *, append: bool) -> None:
        try:
            with partial.open("ab" if append else "wb") as file:
                for chunk in response.stream(CHUNK):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except urllib3.exceptions.HTTPError as error:
            raise Broken(f'Get "{transfer.url}": {_broken(error)}') from error
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise Broken(f'Get "{transfer.url}": read tcp: {(error.strerror or "i/o timeout").lower()}') from error
            raise _worded("write", transfer.temp, error) from error


class Transfer:
    """One download, which may be broken off from another thread."""

    def __init__(self, url: str, path: str, temp: str, *, checked: bool) -> None:
        self.url, self.path, self.temp = url, path, temp
        self.checked = checked
        self.cancelled = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None

    def begin(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        if self.cancelled.is_set():
            raise OSError(f'Get "{self.url}": context canceled')

    def cancel(self) -> None:
        self.cancelled.set()
        response = self._response
        if response is not None:
            with contextlib.suppress(Exception):
                response.shutdown()


class Broken(OSError):
    """The transfer broke off; what came so far is good."""


def _pool(url: str) -> urllib3.PoolManager:
    """As Go's default transport: the environment's proxy for this URL, if any."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy)
    return urllib3.PoolManager()


def _worded(verb: str, path: str, error: OSError) -> OSError:
    """As Go words it, with the volume's path instead of ours."""
    if error.strerror is None:
        return error
    return OSError(f"{verb} {path}: {error.strerror.lower()}")


def _no_answer(url: str, error: urllib3.exceptions.HTTPError) -> str:
    reason = getattr(error, "reason", None) or error
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return f'Get "{url}": dial tcp: lookup {parts.hostname}: no such host'
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        cause = "connection refused" if "refused" in str(reason) else "connect failed"
        return f'Get "{url}": dial tcp {where}: connect: {cause}'
    if isinstance(reason, urllib3.exceptions.ConnectTimeoutError):
        return f'Get "{url}": dial tcp {where}: i/o timeout'
    return f'Get "{url}": {_broken(error)}'


def _broken(error: Exception) -> str:
    text = str(error)
    if "reset" in text:
        return "read tcp: connection reset by peer"
    return "unexpected EOF" if "IncompleteRead" in text or "Connection broken" in text else text
