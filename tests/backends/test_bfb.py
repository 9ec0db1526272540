"""The BFB volume on a real folder, with a real HTTP server."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from twin.backends.base import Operation
from twin.backends.bfb import LiveVolume
from twin.model import bfb_image
from twin.model.provisioning import BfbVersions

IMAGE = bfb_image.build(BfbVersions(bsp="4.9.0.13000", doca="2.9.0", uefi="4.9.0-13", atf="v2.2(release):4.9.0-13"),
                        firmware="32.43.1000", size=3_000_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; breaks off the first `breaks` answers in the middle."""

    files: dict[str, bytes]
    breaks: int
    asked: list[str]
    held: threading.Event


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        self.server.asked.append(self.headers.get("Range", ""))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.bfb")
            self.end_headers()
            return
        if content is None:
            self.send_error(404)
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.path == "/slow.bfb":
            self.wfile.write(body[:1000])
            self.server.held.wait(20)
            return
        if self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(body[:len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.breaks, server.asked = {"/a.bfb": IMAGE, "/slow.bfb": IMAGE}, 0, []
    server.held = threading.Event()
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(name="volume")
def _volume(tmp_path: Path) -> Iterator[LiveVolume]:
    volume = LiveVolume(tmp_path)
    yield volume
    volume.close()


def url(server: Server, path: str = "/a.bfb") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def ended(op: Operation) -> Operation:
    deadline = time.monotonic() + 90
    while not op.finished:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return op


def fetched(volume: LiveVolume, address: str, *, checked: bool = False) -> Operation:
    return ended(volume.download(address, "/bfb/a.bfb", "/bfb/bfb-uid", checked=checked))


def test_a_download_lands_under_its_name_with_its_versions(volume: LiveVolume, server: Server) -> None:
    assert fetched(volume, url(server)).error is None
    assert volume.exists("/bfb/a.bfb")
    assert not volume.exists("/bfb/bfb-uid")
    assert (volume.folder / "a.bfb").read_bytes() == IMAGE
    assert (volume.folder / "a.bfb").stat().st_mode & 0o777 == 0o644
    assert volume.versions("/bfb/a.bfb") == {
        "bsp": "4.9.0.13000", "doca": "2.9.0", "uefi": "4.9.0-13", "atf": "v2.2(release):4.9.0-13"}


def test_a_redirect_is_followed(volume: LiveVolume, server: Server) -> None:
    assert fetched(volume, url(server, "/moved")).error is None


def test_failures_are_worded_as_upstream_words_them(volume: LiveVolume, server: Server) -> None:
    missing = url(server, "/none.bfb")
    assert str(fetched(volume, missing).error) == f"failed to download {missing}, http status code: 404"
    assert str(fetched(volume, "http://127.0.0.1:9/a").error) == (
        'Get "http://127.0.0.1:9/a": dial tcp 127.0.0.1:9: connect: connection refused')
    assert "no such host" in str(fetched(volume, "http://nowhere.invalid/a").error)
    assert not volume.exists("/bfb/a.bfb")


def test_a_broken_transfer_fails_and_starts_over_by_default(volume: LiveVolume, server: Server) -> None:
    server.breaks = 1
    assert str(fetched(volume, url(server)).error) == f'Get "{url(server)}": unexpected EOF'
    assert not volume.exists("/bfb/a.bfb")
    assert fetched(volume, url(server)).error is None
    assert server.asked == ["", ""]


def test_content_that_is_no_image_is_taken_by_default_and_refused_when_checked(server: Server, tmp_path: Path) -> None:
    damaged = bytearray(IMAGE)
    damaged[-1] ^= 1
    server.files["/a.bfb"] = bytes(damaged)
    volume = LiveVolume(tmp_path)
    assert fetched(volume, url(server)).error is None
    volume.remove("/bfb/a.bfb")
    assert "CRC" in str(fetched(volume, url(server), checked=True).error)
    assert list(tmp_path.iterdir()) == []
    volume.close()


def test_a_checked_download_resumes_where_it_broke(server: Server, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twin.backends.bfb.RESUME_WAIT_S", (0.01, 0.01))
    server.breaks = 2
    volume = LiveVolume(tmp_path)
    assert fetched(volume, url(server), checked=True).error is None
    assert (tmp_path / "a.bfb").read_bytes() == IMAGE
    assert [a != "" for a in server.asked] == [False, True, True]
    volume.close()


def test_a_cancelled_download_ends_and_tells_nobody(volume: LiveVolume, server: Server) -> None:
    op = volume.download(url(server, "/slow.bfb"), "/bfb/a.bfb", "/bfb/bfb-uid")
    told: list[Operation] = []
    op.callbacks.append(told.append)
    deadline = time.monotonic() + 90
    while not volume.exists("/bfb/bfb-uid"):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    op.cancel()
    volume.close()  # waits for the thread: it would hang if the transfer went on
    assert not told
    assert not volume.exists("/bfb/a.bfb")


def test_an_unreachable_volume_is_an_io_error_not_an_absent_file(tmp_path: Path) -> None:
    volume = LiveVolume(tmp_path / "gone")
    asks: list[Callable[[], object]] = [
        lambda: volume.exists("/bfb/a"), lambda: volume.remove("/bfb/a"), lambda: volume.write("/bfb/a", b"")]
    for ask, verb in zip(asks, ("stat", "remove", "open"), strict=True):
        with pytest.raises(OSError, match=f"^{verb} /bfb/a: input/output error$"):
            ask()
    volume.close()


def test_paths_stay_on_the_volume(volume: LiveVolume) -> None:
    for path in ("/etc/passwd", "/bfb/../etc/passwd", "a"):
        with pytest.raises(OSError, match="not on the volume /bfb"):
            volume.write(path, b"")


def test_writing_replaces_and_removing_twice_is_fine(volume: LiveVolume) -> None:
    volume.write("/bfb/x.cfg", b"one")
    volume.write("/bfb/x.cfg", b"two")
    assert (volume.folder / "x.cfg").read_bytes() == b"two"
    volume.remove("/bfb/x.cfg")
    volume.remove("/bfb/x.cfg")
    assert not volume.exists("/bfb/x.cfg")


def test_what_cannot_be_parsed_names_the_file(volume: LiveVolume) -> None:
    volume.write("/bfb/x.bfb", b"<html>" * 10)
    with pytest.raises(ValueError, match=r"^/bfb/x\.bfb: bad magic"):
        volume.versions("/bfb/x.bfb")
