"""A DMS per emulated host: a real gRPC server with mutual TLS before a host's personality.

The wire is real, what answers is injected: `Personality` is one host's side of DMS. Streams are taken to disk or only
hashed (a fleet's worth of BFBs does not fit a laptop); bf.cfg is always kept whole, because hosts read it.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from twin.backends.base import ApiError, RpcError
from twin.backends.lab.certificates import Pair
from twin.backends.proto import gnmi_pb2, gnoi_os_pb2, gnoi_system_pb2

PORT: Final = 9339
HEAD: Final = 1 << 20  # of an image that is only hashed, what its header parser may want
CONFIG_LIMIT: Final = 1 << 20
MESSAGE_LIMIT: Final = 4 << 20  # grpc-go's default, and so dmsd's
AGAIN_S: Final = 1.0
"""A server that could not start is tried again after so long."""
WORKERS: Final = 8
QUEUE: Final = 8  # no kernel takes so many connections for a queue of none
FULL_S: Final = 0.3  # a queue with room answers on loopback in far less
BIND_TRIES: Final = 40
BIND_TRY_S: Final = 0.05
_INSTALL_ERRORS: Final = tuple(gnoi_os_pb2.InstallError.Type.keys())
_ACTIVATE_ERRORS: Final = tuple(gnoi_os_pb2.ActivateError.Type.keys())


@dataclass(frozen=True, slots=True)
class Received:
    """A file that came in whole. `content` is all of a bf.cfg, and the first MiB of an image."""

    version: str
    size: int
    md5: str
    content: bytes
    path: Path | None


class Personality(Protocol):
    """One host's side of DMS. Calls block as long as the host takes; each may raise RpcError.

    A code of `InstallError` or `ActivateError` is sent as such, any other as a gRPC status.
    """

    def run(self, command: str) -> str:
        """Run a shell command, return what it printed."""
        ...

    def set_mode(self, mode: str) -> None: ...

    def offered(self, version: str) -> None:
        """A client wants to send this file: raise to refuse."""
        ...

    def received(self, file: Received) -> None:
        """The file is here: raise to refuse."""
        ...

    def activate(self, version: str) -> None:
        """Install `<bfb>;<cfg>`; returns when the device rebooted into it."""
        ...

    def reboot_status(self) -> tuple[bool, str]: ...


Identity = Callable[[], tuple[Pair, str]]
"""The server's certificate and key, and the authority of its clients; asked at every start, as a pod mounts them."""


class DmsServer:
    """The DMS of one host, on an address of its own. `start` and `stop` may alternate, as hosts reboot."""

    def __init__(self, name: str, address: str, personality: Personality, identity: Identity, *,
                 port: int = PORT, folder: Path | None = None) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.bytes_received = 0
        self._personality = personality
        self._identity = identity
        self._folder = folder
        self._server: Any = None

    @property
    def serving(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        """Listen. Raises: OSError when the address is taken, or the identity cannot be had."""
        if self._server is not None:
            return
        try:
            pair, authority = self._identity()
        except ApiError as error:  # its Secret cannot be read now: whoever wants it to listen asks again
            raise OSError(f"{self.name}: no certificate: {error}") from error
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"dms-{self.name}")
        server = grpc.server(pool, options=(
            ("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MESSAGE_LIMIT),
            ("grpc.http2.min_ping_interval_without_data_ms", 300_000)))
        server.add_generic_rpc_handlers(self._handlers())
        credentials = grpc.ssl_server_credentials(
            [(pair.key.encode(), pair.certificate.encode())], authority.encode(), True)
        try:
            bound = server.add_secure_port(f"{self.address}:{self.port}", credentials)
        except RuntimeError as error:
            bound, cause = 0, error
        else:
            cause = RuntimeError("not bound")
        if not bound:
            raise OSError(f"{self.name}: {self.address}:{self.port} is taken") from cause
        self.port = bound
        server.start()
        self._server = server

    def stop(self) -> None:
        """The host or its DMS is gone: open calls break, new connections are refused."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(0).wait()

    # --- services

    def _handlers(self) -> tuple[Any, ...]:
        unary: dict[str, dict[str, tuple[Callable[[Any, Any], Any], Any]]] = {
            "gnmi.gNMI": {"Get": (self._get, gnmi_pb2.GetRequest), "Set": (self._set, gnmi_pb2.SetRequest),
                          "Capabilities": (self._capabilities, gnmi_pb2.CapabilityRequest)},
            "gnoi.system.System": {"RebootStatus": (self._reboot_status, gnoi_system_pb2.RebootStatusRequest)},
            "gnoi.os.OS": {"Activate": (self._activate, gnoi_os_pb2.ActivateRequest)},
        }
        services = {service: {name: grpc.unary_unary_rpc_method_handler(
            self._guarded(method), request_deserializer=request.FromString,
            response_serializer=lambda answer: answer.SerializeToString())
            for name, (method, request) in methods.items()} for service, methods in unary.items()}
        services["gnoi.os.OS"]["Install"] = grpc.stream_stream_rpc_method_handler(
            self._install, request_deserializer=gnoi_os_pb2.InstallRequest.FromString,
            response_serializer=lambda answer: answer.SerializeToString())
        return tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())

    def _guarded(self, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            try:
                return method(request, context)
            except RpcError as error:
                return context.abort(status_of(error.code), wire_text(error))
        return call

    def _get(self, request: gnmi_pb2.GetRequest, context: Any) -> gnmi_pb2.GetResponse:
        updates = []
        for path in request.path:
            names = [e.name for e in path.elem]
            if names != ["nvidia", "command", "run"] or "run" not in path.elem[1].key:
                raise RpcError("INVALID_ARGUMENT", f"unsupported path /{'/'.join(names)}")
            printed = self._personality.run(path.elem[1].key["run"])
            updates.append(gnmi_pb2.Update(path=path, val=gnmi_pb2.TypedValue(string_val=printed)))
        return gnmi_pb2.GetResponse(notification=[gnmi_pb2.Notification(update=updates)])

    def _set(self, request: gnmi_pb2.SetRequest, context: Any) -> gnmi_pb2.SetResponse:
        done = []
        for update in (*request.update, *request.replace):
            names = [e.name for e in update.path.elem]
            if names != ["nvidia", "mode", "config", "mode"]:
                raise RpcError("INVALID_ARGUMENT", f"unsupported path /{'/'.join(names)}")
            self._personality.set_mode(update.val.string_val)
            done.append(gnmi_pb2.UpdateResult(path=update.path, op=gnmi_pb2.UpdateResult.UPDATE))
        return gnmi_pb2.SetResponse(response=done)

    def _capabilities(self, request: Any, context: Any) -> gnmi_pb2.CapabilityResponse:
        return gnmi_pb2.CapabilityResponse(
            supported_models=[gnmi_pb2.ModelData(name="nvidia", organization="NVIDIA", version="1.0.0")],
            supported_encodings=[gnmi_pb2.PROTO], gNMI_version="0.10.0")

    def _activate(self, request: gnoi_os_pb2.ActivateRequest, context: Any) -> gnoi_os_pb2.ActivateResponse:
        try:
            self._personality.activate(request.version)
        except RpcError as error:
            if error.code not in _ACTIVATE_ERRORS:
                raise
            return gnoi_os_pb2.ActivateResponse(activate_error=gnoi_os_pb2.ActivateError(
                type=error.code, detail=str(error)))
        return gnoi_os_pb2.ActivateResponse(activate_ok=gnoi_os_pb2.ActivateOK())

    def _reboot_status(self, request: Any, context: Any) -> gnoi_system_pb2.RebootStatusResponse:
        active, status = self._personality.reboot_status()
        return gnoi_system_pb2.RebootStatusResponse(
            active=active, status=gnoi_system_pb2.RebootStatus(status=f"STATUS_{status or 'UNKNOWN'}"))

    # --- Install

    def _install(self, requests: Iterator[gnoi_os_pb2.InstallRequest],
                 context: Any) -> Iterator[gnoi_os_pb2.InstallResponse]:
        first = next(requests, None)
        if first is None or first.WhichOneof("request") != "transfer_request":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a transfer request")
        version = first.transfer_request.version if first else ""
        try:
            self._personality.offered(version)
            yield gnoi_os_pb2.InstallResponse(transfer_ready=gnoi_os_pb2.TransferReady())
            file = self._take(version, requests)
            if file is None:
                context.abort(grpc.StatusCode.ABORTED, "the transfer did not end")
            else:
                self._personality.received(file)
        except RpcError as error:
            if error.code not in _INSTALL_ERRORS:
                context.abort(status_of(error.code), wire_text(error))
            yield gnoi_os_pb2.InstallResponse(install_error=gnoi_os_pb2.InstallError(
                type=error.code, detail=str(error)))
            return
        yield gnoi_os_pb2.InstallResponse(validated=gnoi_os_pb2.Validated(version=version))

    def _take(self, version: str, requests: Iterator[gnoi_os_pb2.InstallRequest]) -> Received | None:
        """Read the stream to its end; None if the client went away before."""
        sink = _Sink(version, self._folder)
        try:
            for request in requests:
                if request.WhichOneof("request") == "transfer_end":
                    return sink.finish()
                sink.write(request.transfer_content)
                self.bytes_received += len(request.transfer_content)
            return None
        finally:
            sink.close()


class BlackHole:
    """An address that swallows connections: its queue is full, so the kernel drops whoever else knocks.

    Takes the place of a `DmsServer` that no packet reaches; a client's own time-out ends its attempt.
    """

    def __init__(self, name: str, address: str, *, port: int = PORT) -> None:
        self.name = name
        self.address = address
        self.port = port
        self._sockets: list[socket.socket] = []

    @property
    def serving(self) -> bool:
        return bool(self._sockets)

    def start(self) -> None:
        """Raises: OSError when the address is taken."""
        if self._sockets:
            return
        listener = socket.socket()
        sockets = [listener]
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind(listener)
            listener.listen(0)
            for _ in range(QUEUE):
                sockets.append(socket.socket())
                sockets[-1].settimeout(FULL_S)
                try:
                    sockets[-1].connect((self.address, self.port))
                except TimeoutError:
                    break
        except OSError as error:
            for each in sockets:
                each.close()
            raise OSError(f"{self.name}: {self.address}:{self.port} is taken") from error
        self._sockets = sockets

    def stop(self) -> None:
        """Whoever still knocks is refused."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            each.close()

    def _bind(self, listener: socket.socket) -> None:
        """A server that has just stopped may hold its port for a moment."""
        for left in range(BIND_TRIES, -1, -1):
            try:
                listener.bind((self.address, self.port))
                return
            except OSError:
                if not left:
                    raise
                time.sleep(BIND_TRY_S)


class Switched(Protocol):
    """A server that may be started and stopped again and again."""

    @property
    def serving(self) -> bool: ...

    def start(self) -> None:
        """Raises: OSError."""
        ...

    def stop(self) -> None: ...


class Switches:
    """The servers of a fleet, each listening or not, as `want` last said. A thread of its own switches them.

    One that cannot start (its certificate cannot be read while the API server is away) is tried again until it can.
    """

    def __init__(self, servers: Mapping[str, Switched], say: Callable[[str], None] = lambda line: None) -> None:
        self.servers = dict(servers)
        self._say = say
        self._wanted = dict.fromkeys(self.servers, False)
        self._failed: dict[str, str] = {}  # why, as it was said
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="switches", daemon=True)
        self._thread.start()

    def want(self, name: str, listening: bool) -> None:
        """Say whether this server should listen. Returns at once."""
        self.want_all({name: listening})

    def want_all(self, listening: Mapping[str, bool]) -> None:
        """As `want`, of several at one time: what must stop stops before others take its address."""
        with self._changed:
            if any(self._wanted[name] is not on for name, on in listening.items()):
                self._wanted.update(listening)
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for server in self.servers.values():
            server.stop()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._due() - self._failed.keys(),
                                       AGAIN_S if self._failed else None)
                if self._closed:
                    return
                wanted = {name: self._wanted[name] for name in sorted(self._due())}
                self._failed = {name: why for name, why in self._failed.items() if name in wanted}
            for name, listening in sorted(wanted.items(), key=lambda item: item[1]):
                try:
                    self.servers[name].start() if listening else self.servers[name].stop()
                    self._failed.pop(name, None)
                except OSError as error:
                    if self._failed.get(name) != str(error):
                        self._say(str(error))
                    self._failed[name] = str(error)

    def _due(self) -> set[str]:
        return {name for name, server in self.servers.items() if server.serving is not self._wanted[name]}


class _Sink:
    """Where one stream goes."""

    def __init__(self, version: str, folder: Path | None) -> None:
        self._version = version
        self._digest = hashlib.md5(usedforsecurity=False)
        self._size = 0
        self._limit = CONFIG_LIMIT if version.endswith(".cfg") else HEAD
        self._head = bytearray()
        self._path = folder / Path(version).name if folder else None
        self._part = folder / f".{Path(version).name}.{threading.get_ident()}.part" if folder else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb") if self._part else None

    def write(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._size += len(chunk)
        if self._file:
            self._file.write(chunk)
        if len(self._head) < self._limit:
            self._head += chunk[:self._limit - len(self._head)]
        elif self._version.endswith(".cfg"):
            raise RpcError("TOO_LARGE", f"{self._version} is larger than {CONFIG_LIMIT} bytes")

    def finish(self) -> Received:
        if self._file and self._part and self._path:
            self._file.close()
            self._part.rename(self._path)
        return Received(self._version, self._size, self._digest.hexdigest(), bytes(self._head), self._path)

    def close(self) -> None:
        """Whatever is unfinished goes."""
        if self._file:
            self._file.close()
        if self._part:
            self._part.unlink(missing_ok=True)


def status_of(code: str) -> Any:
    """grpc's status for a name such as `DEADLINE_EXCEEDED`."""
    return getattr(grpc.StatusCode, code, grpc.StatusCode.UNKNOWN)


def wire_text(error: RpcError) -> str:
    """What goes over the wire: clients put `rpc error: code = ... desc = ` before it again."""
    text = str(error)
    return text.partition(" desc = ")[2] if text.startswith("rpc error: code = ") else text
