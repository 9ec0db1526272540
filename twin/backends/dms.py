"""DMS, live: gNOI and gNMI over mutual TLS (provisioning.md 3).

Each call has a channel of its own, as upstream dials for each task: a host that comes back is reached at once and no
back-off of an earlier failure is inherited. Long calls run on a bounded pool and end an `Operation`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from twin.backends.base import ApiError, DmsTarget, Operation, RpcError
from twin.backends.proto import gnmi_pb2, gnoi_os_pb2, gnoi_system_pb2, gnoi_types_pb2
from twin.backends.tls import Identity, Relay, negotiates_alpn
from twin.model.meta import Key

DIAL_S: Final = 5.0  # provisioning.md 8.2
COMMAND_S: Final = 930.0  # dmsd gives up a command after 900 s; then its answer must still reach us
ACTIVATE_S: Final = 1800.0  # provisioning.md 3.2: 30 minutes for Activate and its RebootStatus polls
STATUS_S: Final = 30.0
CHUNK: Final = 1 << 18  # dmsd accepts messages of up to 4 MiB; a quarter keeps cancellation prompt

# grpc-go servers answer pings more frequent than every 5 minutes by hanging up.
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 310_000), ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)
_BROKEN: Final = ("recvmsg", "Socket closed", "Connection reset", "Broken pipe", "GOAWAY", "Stream removed",
                  "Cancelling all calls")
R = TypeVar("R")


def go_error(code: str, text: str) -> RpcError:
    """A gRPC failure as grpc-go prints it; conditions show this text."""
    name = "Canceled" if code == "CANCELLED" else "".join(word.title() for word in code.split("_"))
    return RpcError(code, f"rpc error: code = {name} desc = {text}")


class LiveDms:
    """`twin.backends.base.Dms`.

    `secret` returns the data of a Secret or raises ApiError. `locate` says where a path of the BFB volume is mounted.
    `deliver` is given the end of every operation to run: a runner passes a function that queues it to its own thread;
    the default runs it in the pool's.
    """

    def __init__(self, secret: Callable[[Key], Mapping[str, str]], *, workers: int = 64,
                 locate: Callable[[str], Path] = Path,
                 deliver: Callable[[Callable[[], None]], None] = lambda end: end()) -> None:
        self._secret = secret
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dms")
        self._deliver = deliver
        self._locate = locate
        self._relays: dict[tuple[str, int, Identity], Relay] = {}
        self._calls: dict[int, Any] = {}  # open calls, to cancel
        self._lock = threading.Lock()
        self._closed = False

    # --- the protocol

    def dial(self, target: DmsTarget) -> None:
        try:
            socket.create_connection((target.ip, target.port), DIAL_S).close()
        except TimeoutError as error:
            raise RpcError("UNAVAILABLE", f"dial tcp {target.ip}:{target.port}: i/o timeout") from error
        except OSError as error:
            raise RpcError("UNAVAILABLE", _dial_text(target, error)) from error

    def get(self, target: DmsTarget, command: str) -> str:
        answer = self._unary(target, "/gnmi.gNMI/Get", command_request(command), gnmi_pb2.GetResponse, COMMAND_S)
        for notification in answer.notification:
            for update in notification.update:
                return str(update.val.string_val)
        raise RpcError("INTERNAL", "no update in the gNMI response")

    def set_mode(self, target: DmsTarget, mode: str) -> None:
        self._unary(target, "/gnmi.gNMI/Set", mode_request(mode), gnmi_pb2.SetResponse, COMMAND_S)

    def command(self, target: DmsTarget, command: str) -> Operation:
        return self._start(f"command {target.ip}", lambda: self.get(target, command))

    def os_install(self, target: DmsTarget, version: str, path: str) -> Operation:
        return self._start(f"os-install {target.ip} {version}",
                           lambda: self._install(target, version, self._locate(path)))

    def os_activate(self, target: DmsTarget, version: str) -> Operation:
        return self._start(f"os-activate {target.ip} {version}", lambda: self._activate(target, version))

    def reboot_status(self, target: DmsTarget) -> Operation:
        return self._start(f"reboot-status {target.ip}", lambda: self._reboot_status(target))

    def verify(self, target: DmsTarget) -> tuple[str, str]:
        """gNOI OS.Verify: the running version, and why the last activation failed. DPF v25.4 does not call it."""
        answer = self._unary(target, "/gnoi.os.OS/Verify", gnoi_os_pb2.VerifyRequest(), gnoi_os_pb2.VerifyResponse,
                             STATUS_S)
        return answer.version, answer.activation_fail_message

    def close(self) -> None:
        """Cancel what runs and end the pool."""
        with self._lock:
            self._closed = True
            calls, relays = list(self._calls.values()), list(self._relays.values())
            self._relays.clear()
        for call in calls:
            call.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for relay in relays:
            relay.close()

    # --- calls

    def _start(self, name: str, work: Callable[[], Any]) -> Operation:
        operation = Operation(name)

        def run() -> None:
            try:
                value = work()
            except (RpcError, OSError) as error:
                failure = error
                self._deliver(lambda: operation.fail(failure))
                return
            self._deliver(lambda: operation.succeed(value))

        self._pool.submit(run)
        return operation

    def _install(self, target: DmsTarget, version: str, path: Path) -> str:
        """Offer the version; stream the file when asked; done when the server validated it."""
        with path.open("rb") as file, self._channel(target) as channel:
            ready = threading.Event()
            ended = threading.Event()
            stream = channel.stream_stream(
                "/gnoi.os.OS/Install", request_serializer=gnoi_os_pb2.InstallRequest.SerializeToString,
                response_deserializer=gnoi_os_pb2.InstallResponse.FromString)
            call = stream(_content(file, version, path.stat().st_size, ready, ended))
            try:
                with self._cancellable(call):
                    for answer in call:
                        kind = answer.WhichOneof("response")
                        if kind == "transfer_ready":
                            ready.set()
                        elif kind == "install_error":
                            raise install_error(answer.install_error)
                        elif kind == "validated":
                            return str(answer.validated.version)
            except grpc.RpcError as error:
                raise self._failure(target, error) from error
            finally:
                ended.set()
                ready.set()
                call.cancel()
        raise go_error("UNAVAILABLE", "the stream ended before the image was validated")

    def _activate(self, target: DmsTarget, version: str) -> str:
        request = gnoi_os_pb2.ActivateRequest(version=version)
        answer = self._unary(target, "/gnoi.os.OS/Activate", request, gnoi_os_pb2.ActivateResponse, ACTIVATE_S)
        if answer.WhichOneof("response") == "activate_error":
            kind = gnoi_os_pb2.ActivateError.Type.Name(answer.activate_error.type)
            raise RpcError(kind, answer.activate_error.detail or kind)
        return version

    def _reboot_status(self, target: DmsTarget) -> tuple[bool, str]:
        cpu = gnoi_types_pb2.Path(elem=[gnoi_types_pb2.PathElem(name="CPU")])
        answer = self._unary(target, "/gnoi.system.System/RebootStatus",
                             gnoi_system_pb2.RebootStatusRequest(subcomponents=[cpu]),
                             gnoi_system_pb2.RebootStatusResponse, STATUS_S)
        if answer.active:
            return True, ""
        name = gnoi_system_pb2.RebootStatus.Status.Name(answer.status.status)
        return False, name.removeprefix("STATUS_")

    def _unary(self, target: DmsTarget, method: str, request: Any, answer: type[R], deadline_s: float) -> R:
        with self._channel(target) as channel:
            ask = channel.unary_unary(method, request_serializer=type(request).SerializeToString,
                                      response_deserializer=answer.FromString)  # type: ignore[attr-defined]
            try:
                future = ask.future(request, timeout=deadline_s)
                with self._cancellable(future):
                    result: R = future.result()
                    return result
            except grpc.FutureCancelledError as error:
                raise go_error("CANCELLED", "context canceled") from error
            except grpc.RpcError as error:
                raise self._failure(target, error) from error

    @contextlib.contextmanager
    def _cancellable(self, call: Any) -> Iterator[None]:
        with self._lock:
            if self._closed:
                call.cancel()
            self._calls[id(call)] = call
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(id(call), None)

    # --- channels

    def _channel(self, target: DmsTarget) -> Any:
        """A channel of its own. Raises: RpcError when it cannot be set up."""
        identity = self.identity(target.identity)
        try:
            native = negotiates_alpn(target.ip, target.port, identity)
        except OSError as error:
            raise go_error("UNAVAILABLE", _unreachable(target, error)) from error
        if not native:
            return grpc.insecure_channel(self._relay(target, identity).target,
                                         options=(*_OPTIONS, ("grpc.default_authority", target.ip)))
        credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
        return grpc.secure_channel(f"{target.ip}:{target.port}", credentials, options=_OPTIONS)

    def identity(self, name: Key) -> Identity:
        """The client certificate in this Secret. Raises: RpcError."""
        try:
            return Identity.from_secret(str(name), self._secret(name))
        except (ApiError, ValueError) as error:
            raise RpcError("FAILED_PRECONDITION", str(error)) from error

    def _relay(self, target: DmsTarget, identity: Identity) -> Relay:
        name = (target.ip, target.port, identity)
        with self._lock:
            relay = self._relays.get(name)
            if relay is None:
                relay = self._relays[name] = Relay(target.ip, target.port, identity)
            return relay

    def _failure(self, target: DmsTarget, error: Any) -> RpcError:
        code = str(error.code().name)
        detail = str(error.details() or "")
        if code == "DEADLINE_EXCEEDED":
            detail = "context deadline exceeded"
        elif code == "CANCELLED":
            detail = "context canceled"
        elif code == "UNAVAILABLE" and any(sign in detail for sign in _BROKEN):
            detail = "error reading from server: EOF"
        return go_error(code, detail)


def _content(file: Any, version: str, size: int, ready: threading.Event,
             ended: threading.Event) -> Iterator[gnoi_os_pb2.InstallRequest]:
    """The client's half of Install. gRPC asks for the next message when the peer has room for it."""
    yield gnoi_os_pb2.InstallRequest(transfer_request=gnoi_os_pb2.TransferRequest(version=version, package_size=size))
    ready.wait()
    while not ended.is_set() and (chunk := file.read(CHUNK)):
        yield gnoi_os_pb2.InstallRequest(transfer_content=chunk)
    if not ended.is_set():
        yield gnoi_os_pb2.InstallRequest(transfer_end=gnoi_os_pb2.TransferEnd())


def command_request(command: str) -> gnmi_pb2.GetRequest:
    """gNMI Get of `/nvidia/command[run=COMMAND]/run`."""
    elements = [gnmi_pb2.PathElem(name="nvidia"), gnmi_pb2.PathElem(name="command", key={"run": command}),
                gnmi_pb2.PathElem(name="run")]
    return gnmi_pb2.GetRequest(path=[gnmi_pb2.Path(elem=elements)])


def mode_request(mode: str) -> gnmi_pb2.SetRequest:
    """gNMI Set of `/nvidia/mode/config/mode`."""
    path = gnmi_pb2.Path(elem=[gnmi_pb2.PathElem(name=n) for n in ("nvidia", "mode", "config", "mode")])
    return gnmi_pb2.SetRequest(update=[gnmi_pb2.Update(path=path, val=gnmi_pb2.TypedValue(string_val=mode))])


def install_error(error: gnoi_os_pb2.InstallError) -> RpcError:
    kind = gnoi_os_pb2.InstallError.Type.Name(error.type)
    return RpcError(kind, error.detail or kind)


def _dial_text(target: DmsTarget, error: OSError) -> str:
    return f"dial tcp {target.ip}:{target.port}: connect: {(error.strerror or str(error)).lower()}"


def _unreachable(target: DmsTarget, error: OSError) -> str:
    """grpc-go's text for a channel that cannot be made."""
    if isinstance(error, TimeoutError):
        cause = f"transport: Error while dialing: dial tcp {target.ip}:{target.port}: i/o timeout"
    elif isinstance(error, (ssl.SSLEOFError, ConnectionResetError)):
        cause = "transport: authentication handshake failed: EOF"
    elif isinstance(error, ssl.SSLError):
        cause = ("transport: authentication handshake failed: tls: failed to verify certificate: x509: "
                 + ("certificate has expired or is not yet valid" if "expired" in str(error)
                    else "certificate signed by unknown authority" if "CERTIFICATE_VERIFY_FAILED" in str(error)
                    else str(error)))
    else:
        cause = f"transport: Error while dialing: {_dial_text(target, error)}"
    return f'connection error: desc = "{cause}"'
