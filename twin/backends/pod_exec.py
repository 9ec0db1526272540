"""Pod exec, live: `HostAgent` over the API server's WebSocket (protocol v4.channel.k8s.io)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from twin.backends.base import NotFound, Operation, RpcError, Unavailable
from twin.backends.kube import Cluster, resource_path
from twin.backends.kube_http import error_of
from twin.model.core import Pod
from twin.model.meta import Key

PROTOCOL: Final = "v4.channel.k8s.io"
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
CONNECT_S: Final = 30.0


class LiveHostAgent:
    """`twin.backends.base.HostAgent`. `deliver` is given the end of every operation, see `twin.backends.dms`."""

    def __init__(self, cluster: Cluster, *, container: str = "dms", workers: int = 32,
                 deliver: Callable[[Callable[[], None]], None] = lambda end: end()) -> None:
        self._cluster = cluster
        self._container = container
        self._deliver = deliver
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="exec")
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def execute(self, pod: Key, command: Sequence[str]) -> Operation:
        operation = Operation(f"exec {pod}")
        words = tuple(command)

        def run() -> None:
            try:
                text = self._execute(pod, words)
            except RpcError as error:
                failure = error
                self._deliver(lambda: operation.fail(failure))
                return
            self._deliver(lambda: operation.succeed(text))

        self._pool.submit(run)
        return operation

    def close(self) -> None:
        """Break off what runs."""
        with self._lock:
            sockets = list(self._open.values())
        for each in sockets:
            with contextlib.suppress(Exception):
                each.abort()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _execute(self, pod: Key, command: Sequence[str]) -> str:
        import websocket
        socket = self._connect(pod, command)
        with self._lock:
            self._open[id(socket)] = socket
        said = {STDOUT: bytearray(), STDERR: bytearray(), ERROR: bytearray()}
        try:
            while True:
                frame = socket.recv()
                if not frame:
                    break
                data = frame if isinstance(frame, bytes) else frame.encode()
                said.setdefault(data[0], bytearray()).extend(data[1:])
        except (websocket.WebSocketException, OSError) as error:
            raise RpcError("UNAVAILABLE", f"error reading from error stream: {error}") from error
        finally:
            with self._lock:
                self._open.pop(id(socket), None)
            with contextlib.suppress(Exception):
                socket.close(timeout=1)
        _check(bytes(said[ERROR]))
        return said[STDOUT].decode(errors="replace")

    def _connect(self, pod: Key, command: Sequence[str]) -> Any:
        """Raises: RpcError."""
        import websocket
        connection = self._cluster.connection
        query = [("container", self._container), *(("command", c) for c in command), ("stdout", "true"),
                 ("stderr", "true")]
        path = resource_path(Pod, pod.namespace, pod.name, "exec")
        credentials = connection.credentials
        try:
            socket = websocket.create_connection(
                f"{connection.server.replace('https', 'wss', 1)}{path}?{urlencode(query)}", CONNECT_S,
                sslopt={"context": credentials.context}, subprotocols=[PROTOCOL], enable_multithread=True,
                header=[f"{k}: {v}" for k, v in credentials.authorization().items()], suppress_origin=True)
        except websocket.WebSocketBadStatusException as error:
            raise _refusal(error.status_code, error.resp_body or b"") from error
        except (websocket.WebSocketException, OSError) as error:
            text = f'error sending request: Post "{connection.server}{path}": {error}'
            raise RpcError("UNAVAILABLE", text) from error
        socket.settimeout(None)  # a command takes as long as it takes
        return socket


def _refusal(code: int, body: bytes) -> RpcError:
    """The API server's Status, or the kubelet's own text."""
    if not body.startswith(b"{"):
        return RpcError("NOT_FOUND" if code == 404 else "UNKNOWN", body.decode(errors="replace").strip())
    error = error_of(code, body)
    if isinstance(error, NotFound):
        return RpcError("NOT_FOUND", str(error))
    if isinstance(error, Unavailable) or "dialing backend" in str(error):
        return RpcError("UNAVAILABLE", str(error))
    return RpcError("PERMISSION_DENIED" if error.code in (401, 403) else "UNKNOWN", str(error))


def _check(status: bytes) -> None:
    """Raise what the error channel says, unless it says Success."""
    if not status:
        raise RpcError("UNAVAILABLE", "error reading from error stream: EOF")
    said = msgspec.json.decode(status)
    if said.get("status") == "Success":
        return
    for cause in (said.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            raise RpcError("UNKNOWN", f"command terminated with exit code {cause.get('message')}")
    raise RpcError("UNKNOWN", said.get("message", "unknown error"))
