"""BfbVolume: the same tests on the simulated volume and on a real folder that downloads from a real HTTP server."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from twin.backends.base import BfbVolume, Operation
from twin.backends.bfb import LiveVolume
from twin.model import bfb_image
from twin.model.fleet import ImageFile, ImageServer
from twin.model.provisioning import BfbVersions
from twin.sim.clock import SECOND, TwinEnvironment
from twin.sim.links import Links
from twin.sim.runner import Meter
from twin.sim.volume import GARBAGE_HEAD, SimVolume

SIZE = 2_400_000  # some of the client's reads
LARGER = 3_000_000  # so that parts of two images do not make one
PATH, TEMP = "/bfb/ns-bfb.bfb", "/bfb/bfb-uid"
NEW = {"bsp": "4.9.0.13000", "doca": "2.9.0", "uefi": "4.9.0-13", "atf": "v2.2(release):4.9.0-13"}
OLD = {"bsp": "4.7.0.13127", "doca": "2.7.0", "uefi": "4.7.0-42", "atf": "v2.2(release):4.7.0-25"}
ANCIENT = {"bsp": "1.9.0.1", "doca": "", "uefi": "1.9.0-1", "atf": ""}
FILES = {"new.bfb": NEW, "old.bfb": OLD, "ancient.bfb": ANCIENT}


def size_of(name: str) -> int:
    return LARGER if name == "old.bfb" else SIZE


class Rig(ABC):
    """One volume, and an image server that has `FILES`. Nobody answers at `dead`."""

    volume: BfbVolume
    base: str
    dead: str

    def get(self, name: str = "new.bfb", *, checked: bool = False) -> Operation:
        return self.volume.download(f"{self.base}/{name}", PATH, TEMP, checked=checked)

    @abstractmethod
    def status(self, code: int) -> None:
        """The server answers this instead."""

    @abstractmethod
    def instead(self, name: str) -> None:
        """The server sends another of its files, or a page that is none; '' heals."""

    @abstractmethod
    def break_off(self, times: int) -> None:
        """The next transfers break in the middle."""

    @abstractmethod
    def stall(self) -> None:
        """The next transfer stops in the middle: it neither goes on nor breaks while the test acts."""

    @abstractmethod
    def outage(self, down: bool) -> None:
        """The volume is gone, or back."""

    @abstractmethod
    def let(self, true: Callable[[], bool]) -> None:
        """Let time pass until it is so."""

    def end(self, op: Operation) -> str:
        """Wait for the end; why it failed, or ''."""
        self.let(lambda: op.finished)
        assert op.error is None or isinstance(op.error, OSError)
        return str(op.error or "")

    def close(self) -> None:  # noqa: B027  most have nothing to close
        ...


class SimRig(Rig):
    base, dead = "http://images.example.com:8080/bfb", "http://dead.example.com:8080"

    def __init__(self) -> None:
        self.env = TwinEnvironment()
        files = {name: ImageFile(name, size_of(name), name, versions, "") for name, versions in FILES.items()}
        servers = [ImageServer("images", self.base, SIZE, files), ImageServer("dead", self.dead, SIZE)]
        self.world = SimVolume(self.env, Links(self.env), servers, bandwidth_bytes_per_s=1e9)
        self.world.server_down("dead", True)
        self.server = self.world.servers["images"]
        self.volume = self.world.client(Meter("test"))

    def status(self, code: int) -> None:
        self.server.status = 0 if code == 200 else code

    def instead(self, name: str) -> None:
        self.server.instead = "garbage" if name == "page" else name

    def break_off(self, times: int) -> None:
        def strike(left: int) -> None:
            if self.world.downloads:
                left -= 1
                self.world.server_down("images", True)
                self.world.server_down("images", False)
            if left:
                self.env.call_at(SECOND // 3, strike, left)

        self.env.call_at(SECOND // 3, strike, times)

    def stall(self) -> None:
        """Virtual time stands still while the test acts."""

    def outage(self, down: bool) -> None:
        self.world.outage(down)

    def let(self, true: Callable[[], bool]) -> None:
        while not true():
            self.env.step()


class Server(http.server.ThreadingHTTPServer):
    """`FILES` as real images."""

    daemon_threads = True
    code = 200
    instead = ""
    breaks = 0
    stalls = 0
    over: threading.Event
    """Set at the end of the test: nobody needs to stall any longer."""
    part: Path
    """Where the client stores what comes."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        content = content_of(self.server.instead or self.path.rpartition("/")[2])
        if content is None or self.server.code != 200:
            self.send_error(404 if content is None else self.server.code)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.server.stalls:
            self.server.stalls -= 1
            self.wfile.write(content[start:start + (len(content) - start) * 2 // 3])
            self.server.over.wait(90)
            return
        if not self.server.breaks:
            self.wfile.write(content[start:])
            return
        self.server.breaks -= 1
        self.wfile.write(content[start:start + (len(content) - start) * 2 // 3])
        deadline = time.monotonic() + 20
        while not self.stored() > start and time.monotonic() < deadline:
            time.sleep(0.002)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # with a reset, as when the process is killed

    def stored(self) -> int:
        return self.server.part.stat().st_size if self.server.part.exists() else 0

    def log_message(self, format: str, *args: object) -> None: ...


def content_of(name: str) -> bytes | None:
    if name == "page":
        return GARBAGE_HEAD + bytes(1000)
    return bfb_image.build(BfbVersions(**FILES[name]), size=size_of(name)) if name in FILES else None


class LiveRig(Rig):
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("twin.backends.bfb.RESUME_WAIT_S", (0.001, 0.001))
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        self.folder = folder / "volume"
        self.folder.mkdir()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.part = self.folder / TEMP.removeprefix("/bfb/")
        self.server.over = threading.Event()
        threading.Thread(target=partial(self.server.serve_forever, 0.01), daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}/bfb"
        self.taken = socket.socket()  # bound and not listening: the port is ours and refuses
        self.taken.bind(("127.0.0.1", 0))
        self.dead = f"http://127.0.0.1:{self.taken.getsockname()[1]}"
        self.volume = self.live = LiveVolume(self.folder)

    def status(self, code: int) -> None:
        self.server.code = code

    def instead(self, name: str) -> None:
        self.server.instead = name

    def break_off(self, times: int) -> None:
        self.server.breaks = times

    def stall(self) -> None:
        self.server.stalls = 1

    def outage(self, down: bool) -> None:
        away = self.folder.with_name("away")
        self.folder.rename(away) if down else away.rename(self.folder)

    def let(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def close(self) -> None:
        self.server.over.set()
        self.live.close()
        self.server.shutdown()
        self.server.server_close()
        self.taken.close()


@pytest.fixture(params=["sim", pytest.param("live", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = SimRig() if request.param == "sim" else LiveRig(tmp_path, monkeypatch)
    yield rig
    rig.close()


def there(rig: Rig) -> tuple[bool, bool]:
    return rig.volume.exists(PATH), rig.volume.exists(TEMP)


def test_a_download_lands_under_its_name_with_its_versions(rig: Rig) -> None:
    assert there(rig) == (False, False)
    assert rig.end(rig.get()) == ""
    assert there(rig) == (True, False)
    assert rig.volume.versions(PATH) == NEW


def test_a_download_replaces_what_is_there(rig: Rig) -> None:
    rig.end(rig.get("old.bfb"))
    assert rig.volume.versions(PATH) == OLD
    assert rig.end(rig.get()) == ""
    assert rig.volume.versions(PATH) == NEW


@pytest.mark.parametrize("checked", [False, True], ids=["", "checked"])
def test_any_status_but_200_is_the_end_and_leaves_nothing(rig: Rig, checked: bool) -> None:
    rig.status(503)
    assert rig.end(rig.get(checked=checked)) == f"failed to download {rig.base}/new.bfb, http status code: 503"
    rig.status(200)
    assert rig.end(rig.get("none", checked=checked)) == f"failed to download {rig.base}/none, http status code: 404"
    assert there(rig) == (False, False)


@pytest.mark.parametrize("checked", [False, True], ids=["", "checked"])
def test_a_server_that_does_not_listen_refuses_to_the_last_attempt(rig: Rig, checked: bool) -> None:
    url = f"{rig.dead}/new.bfb"
    where = rig.dead.removeprefix("http://")
    assert rig.end(rig.volume.download(url, PATH, TEMP, checked=checked)) == (
        f'Get "{url}": dial tcp {where}: connect: connection refused')
    assert there(rig) == (False, False)


def test_a_name_that_nobody_has_is_said_to_be_unknown(rig: Rig) -> None:
    url = "http://nowhere.invalid/new.bfb"
    assert rig.end(rig.volume.download(url, PATH, TEMP)) == (
        f'Get "{url}": dial tcp: lookup nowhere.invalid: no such host')


def test_a_transfer_that_breaks_is_over_and_the_next_starts_from_nothing(rig: Rig) -> None:
    rig.break_off(1)
    assert rig.end(rig.get()) == f'Get "{rig.base}/new.bfb": read tcp: connection reset by peer'
    assert there(rig) == (False, True), "what came so far stays"
    assert rig.end(rig.get()) == ""
    assert there(rig) == (True, False)
    assert rig.volume.versions(PATH) == NEW


def test_a_checked_transfer_goes_on_where_it_broke(rig: Rig) -> None:
    rig.break_off(1)
    assert rig.end(rig.get(checked=True)) == ""
    assert there(rig) == (True, False)
    assert rig.volume.versions(PATH) == NEW


def test_content_that_is_no_image_is_taken_and_cannot_be_parsed(rig: Rig) -> None:
    rig.instead("page")
    assert rig.end(rig.get()) == ""
    with pytest.raises(ValueError) as unreadable:
        rig.volume.versions(PATH)
    assert str(unreadable.value) == f"{PATH}: bad magic 0x4f44213c at byte 0, not a BFB image"


def test_checked_content_that_is_no_image_is_refused_and_leaves_nothing(rig: Rig) -> None:
    rig.instead("page")
    assert rig.end(rig.get(checked=True)) == (
        f"failed to download {rig.base}/new.bfb: bad magic 0x4f44213c at byte 0, not a BFB image")
    assert there(rig) == (False, False)


def test_another_image_than_asked_for_is_taken_checked_or_not(rig: Rig) -> None:
    rig.instead("old.bfb")
    for checked in (False, True):
        assert rig.end(rig.get(checked=checked)) == ""
        assert rig.volume.versions(PATH) == OLD


def test_a_checked_transfer_that_goes_on_with_another_image_is_refused(rig: Rig) -> None:
    rig.break_off(1)
    rig.end(rig.get("old.bfb"))
    assert rig.end(rig.get(checked=True)).startswith(f"failed to download {rig.base}/new.bfb: image 63 ")
    assert there(rig) == (False, False)
    assert rig.end(rig.get(checked=True)) == ""


def test_a_bsp_below_two_cannot_be_parsed(rig: Rig) -> None:
    rig.end(rig.get("ancient.bfb"))
    with pytest.raises(ValueError) as old:
        rig.volume.versions(PATH)
    assert str(old.value) == f"{PATH}: invalid BSP version '1.9.0.1': the major version must be at least 2"


def test_a_cancelled_download_tells_nobody_and_lands_nowhere(rig: Rig) -> None:
    rig.stall()
    op = rig.get()
    told: list[Operation] = []
    op.callbacks.append(told.append)
    rig.let(lambda: rig.volume.exists(TEMP))
    op.cancel()
    again = rig.get("old.bfb")
    rig.end(again)
    rig.end(rig.get("old.bfb"))
    assert told == []
    assert rig.volume.versions(PATH) == OLD


def test_a_volume_that_is_away_fails_every_verb_and_forgets_nothing(rig: Rig) -> None:
    rig.volume.write("/bfb/a.cfg", b"a")
    rig.outage(True)
    verbs: dict[str, Callable[[], object]] = {
        "stat /bfb/a.cfg": lambda: rig.volume.exists("/bfb/a.cfg"),
        "remove /bfb/a.cfg": lambda: rig.volume.remove("/bfb/a.cfg"),
        "open /bfb/b.cfg": lambda: rig.volume.write("/bfb/b.cfg", b"b"),
        "open /bfb/c.bfb": lambda: rig.volume.versions("/bfb/c.bfb")}
    for what, ask in verbs.items():
        with pytest.raises(OSError) as away:
            ask()
        assert str(away.value) == f"{what}: input/output error"
    assert rig.end(rig.get()) == f"open {TEMP}: input/output error"
    rig.outage(False)
    assert rig.volume.exists("/bfb/a.cfg")
    assert not rig.volume.exists("/bfb/b.cfg")


def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_parsed(rig: Rig) -> None:
    with pytest.raises(OSError) as absent:
        rig.volume.versions("/bfb/none.bfb")
    assert str(absent.value) == "open /bfb/none.bfb: no such file or directory"
    rig.volume.write("/bfb/x.cfg", b"short")
    with pytest.raises(ValueError) as short:
        rig.volume.versions("/bfb/x.cfg")
    assert str(short.value) == "/bfb/x.cfg: truncated image header at byte 0"


def test_writing_replaces_and_removing_what_is_gone_is_fine(rig: Rig) -> None:
    image = content_of("old.bfb")
    assert image is not None
    rig.volume.write("/bfb/x.bfb", b"one")
    rig.volume.write("/bfb/x.bfb", image)
    assert rig.volume.versions("/bfb/x.bfb") == OLD
    for _ in range(2):
        rig.volume.remove("/bfb/x.bfb")
        assert not rig.volume.exists("/bfb/x.bfb")
