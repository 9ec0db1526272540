"""The DMS wire: certificates, ALPN, streams, cancellation. What hosts answer is tests/contract/test_dms.py."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import twin.backends.dms
import twin.backends.lab.dms_emulator
from twin.backends.base import DmsTarget, NotFound, Operation, RpcError
from twin.backends.dms import LiveDms
from twin.backends.lab.certificates import Pair, authority, issue
from twin.backends.lab.dms_emulator import DmsServer, Received, Switches
from twin.backends.tls import carry
from twin.model.meta import Key

pytestmark = pytest.mark.slow

ADDRESS = "127.1.78.1"
SECRET = Key("ns", "client")
CA = authority("dms-ca")
CLIENT = issue(CA, "client")


class Host:
    """A personality that notes what it is told and may hold a stream."""

    def __init__(self) -> None:
        self.files: list[Received] = []
        self.go = threading.Event()
        self.go.set()

    def run(self, command: str) -> str:
        self.go.wait(20)
        return f"ran {command}"

    def set_mode(self, mode: str) -> None: ...

    def offered(self, version: str) -> None:
        if version == "refused.bfb":
            raise RpcError("INCOMPATIBLE", "not for this card")

    def received(self, file: Received) -> None:
        self.files.append(file)

    def activate(self, version: str) -> None:
        raise RpcError("NON_EXISTENT_VERSION", f"no {version}")

    def reboot_status(self) -> tuple[bool, str]:
        return False, "RETRIABLE_FAILURE"


def secret_of(client: Pair, ca: Pair) -> dict[str, str]:
    parts = {"tls.crt": client.certificate, "tls.key": client.key, "ca.crt": ca.certificate}
    return {k: base64.b64encode(v.encode()).decode() for k, v in parts.items()}


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def server(host: Host, tmp_path: Path) -> Iterator[DmsServer]:
    server = DmsServer("host-1", ADDRESS, host, lambda: (issue(CA, "host-1", addresses=(ADDRESS,)), CA.certificate),
                       folder=tmp_path / "images")
    server.start()
    yield server
    host.go.set()
    server.stop()


@contextlib.contextmanager
def client_of(secret: Callable[[Key], Any]) -> Iterator[LiveDms]:
    dms = LiveDms(secret)
    yield dms
    dms.close()


@pytest.fixture
def dms() -> Iterator[LiveDms]:
    with client_of(lambda key: secret_of(CLIENT, CA)) as dms:
        yield dms


TARGET = DmsTarget(ADDRESS, 9339, SECRET)


def ended(op: Operation) -> Operation:
    deadline = time.monotonic() + 90
    while not op.finished:
        assert time.monotonic() < deadline, f"{op.name} did not end"
        time.sleep(0.005)
    return op


def test_a_large_file_arrives_whole_on_the_disk_of_the_host(server: DmsServer, host: Host, dms: LiveDms,
                                                            tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    (tmp_path / "a.bfb").write_bytes(content)
    assert ended(dms.os_install(TARGET, "a.bfb", str(tmp_path / "a.bfb"))).error is None
    assert [(f.version, f.size, f.md5) for f in host.files] == [
        ("a.bfb", len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())]
    assert (tmp_path / "images" / "a.bfb").read_bytes() == content
    assert list((tmp_path / "images").iterdir()) == [tmp_path / "images" / "a.bfb"]


def test_a_stream_goes_no_faster_than_the_host_takes_it(server: DmsServer, host: Host, dms: LiveDms, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = twin.backends.lab.dms_emulator
    taken = threading.Event()
    write = emulator._Sink.write

    def held(sink: Any, chunk: bytes) -> None:
        taken.set()
        host.go.wait(20)
        write(sink, chunk)

    monkeypatch.setattr(emulator._Sink, "write", held)
    host.go.clear()
    with (tmp_path / "big.bfb").open("wb") as file:
        file.truncate(200 << 20)
    read: list[int] = []
    content = twin.backends.dms._content

    def counted(*args: Any) -> Iterator[Any]:
        for message in content(*args):
            read.append(len(message.transfer_content))
            yield message

    monkeypatch.setattr("twin.backends.dms._content", counted)
    op = dms.os_install(TARGET, "big.bfb", str(tmp_path / "big.bfb"))
    assert taken.wait(10)
    before = -1
    while before != sum(read):  # until nothing moves any more
        before = sum(read)
        time.sleep(0.2)
    assert sum(read) < 32 << 20, "the rest waits on the disk, not in memory"
    host.go.set()
    assert ended(op).error is None
    assert sum(read) == 200 << 20


def test_a_refused_offer_and_a_failed_activation_say_why(server: DmsServer, dms: LiveDms, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    refused = ended(dms.os_install(TARGET, "refused.bfb", str(tmp_path / "x"))).error
    assert isinstance(refused, RpcError)
    assert (refused.code, str(refused)) == ("INCOMPATIBLE", "not for this card")
    failed = ended(dms.os_activate(TARGET, "a;b")).error
    assert isinstance(failed, RpcError)
    assert (failed.code, str(failed)) == ("NON_EXISTENT_VERSION", "no a;b")
    assert ended(dms.reboot_status(TARGET)).value == (False, "RETRIABLE_FAILURE")


@pytest.mark.parametrize(("client", "trusted", "says"), [
    (CLIENT, authority("another"), "x509: certificate signed by unknown authority"),
    (issue(authority("another"), "client"), CA, "Unavailable"),
    (issue(CA, "client", expired=True), CA, "Unavailable"),
], ids=["the server's authority is unknown", "ours is unknown to the server", "our certificate has expired"])
def test_certificates_that_do_not_fit_are_refused(server: DmsServer, client: Pair, trusted: Pair, says: str) -> None:
    with client_of(lambda key: secret_of(client, trusted)) as dms, pytest.raises(RpcError) as refused:
        dms.get(TARGET, "uptime")
    assert refused.value.code == "UNAVAILABLE"
    assert says in str(refused.value)


def test_a_server_for_another_address_is_not_believed(host: Host) -> None:
    server = DmsServer("h", ADDRESS, host, lambda: (issue(CA, "h", addresses=("127.1.78.9",)), CA.certificate))
    server.start()
    with client_of(lambda key: secret_of(CLIENT, CA)) as dms, pytest.raises(RpcError, match="x509"):
        dms.get(TARGET, "uptime")
    server.stop()


def test_a_missing_secret_or_key_is_a_failed_precondition() -> None:
    def absent(key: Key) -> dict[str, str]:
        raise NotFound(f'secrets "{key.name}" not found')

    with client_of(absent) as dms, pytest.raises(RpcError, match='secrets "client" not found') as missing:
        dms.get(TARGET, "uptime")
    assert missing.value.code == "FAILED_PRECONDITION"
    half = {k: v for k, v in secret_of(CLIENT, CA).items() if k != "ca.crt"}
    with client_of(lambda key: half) as dms, pytest.raises(RpcError, match=r"secret ns/client has no ca\.crt"):
        dms.get(TARGET, "uptime")


def test_closing_cancels_what_is_under_way(server: DmsServer, host: Host) -> None:
    host.go.clear()
    dms = LiveDms(lambda key: secret_of(CLIENT, CA))
    op = dms.command(TARGET, "sleep")
    deadline = time.monotonic() + 90
    while not dms._calls:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    dms.close()
    error = ended(op).error
    assert isinstance(error, RpcError)
    assert error.code == "CANCELLED"


def test_more_commands_than_workers_wait_their_turn(server: DmsServer) -> None:
    dms = LiveDms(lambda key: secret_of(CLIENT, CA), workers=2)
    ops = [dms.command(TARGET, f"echo {n}") for n in range(10)]
    assert [ended(op).value for op in ops] == [f"ran echo {n}" for n in range(10)]
    dms.close()


def test_a_taken_address_is_said_in_one_line(server: DmsServer, host: Host) -> None:
    second = DmsServer("host-2", ADDRESS, host, lambda: (issue(CA, "x"), CA.certificate))
    with pytest.raises(OSError, match=rf"^host-2: {ADDRESS}:9339 is taken$"):
        second.start()


def test_a_server_that_does_not_negotiate_alpn_is_served_as_upstream_does(host: Host, dms: LiveDms,
                                                                          tmp_path: Path) -> None:
    """TLS without ALPN before a plain gRPC server: gRPC alone refuses it, the relay does not."""
    inner = grpc.server(ThreadPoolExecutor(4))
    inner.add_generic_rpc_handlers(DmsServer("inner", "", host, lambda: (CLIENT, ""))._handlers())
    path = tmp_path / "inner"
    inner.add_insecure_port(f"unix:{path}")
    inner.start()
    pair = issue(CA, "old", addresses=("127.1.78.3",))
    (tmp_path / "pair.pem").write_text(pair.certificate + pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=CA.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tmp_path / "pair.pem")
    listener = socket.create_server(("127.1.78.3", 9339))
    threading.Thread(target=_terminate, args=(listener, context, str(path)), daemon=True).start()
    target = DmsTarget("127.1.78.3", 9339, SECRET)
    try:
        assert dms.get(target, "old") == "ran old"
        (tmp_path / "a.cfg").write_bytes(b"x" * 900_000)
        assert ended(dms.os_install(target, "a.cfg", str(tmp_path / "a.cfg"))).error is None
        assert host.files[0].content == b"x" * 900_000
    finally:
        listener.close()
        inner.stop(0)


def _terminate(listener: socket.socket, context: ssl.SSLContext, path: str) -> None:
    def serve(local: socket.socket, secure: ssl.SSLSocket) -> None:
        with local, secure:
            carry(local, secure)

    while True:
        try:
            plain, _ = listener.accept()
            secure = context.wrap_socket(plain, server_side=True)
        except OSError:
            return
        local = socket.socket(socket.AF_UNIX)
        local.connect(path)
        threading.Thread(target=serve, args=(local, secure), daemon=True).start()


class Late:
    """A server whose certificate cannot be read at first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.serving = False

    def start(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no certificate: connection refused")
        self.serving = True

    def stop(self) -> None:
        self.serving = False


def test_a_server_that_cannot_start_is_tried_until_it_can_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin.backends.lab.dms_emulator, "AGAIN_S", 0.01)
    said: list[str] = []
    late, other = Late(3), Late(0)
    switches = Switches({"late": late, "other": other}, said.append)
    try:
        switches.want_all({"late": True, "other": True})
        deadline = time.monotonic() + 10
        while not (late.serving and other.serving):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert said == ["no certificate: connection refused"]
    finally:
        switches.close()
