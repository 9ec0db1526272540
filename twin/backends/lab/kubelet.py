"""The kubelet's port 10250 of an emulated host: `exec` over WebSocket, as the API server proxies it.

Nothing of a container is here: what a command answers is injected.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import ssl
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from twin.backends.lab.certificates import Pair
from twin.backends.pod_exec import ERROR, PROTOCOL, STDOUT
from twin.model.meta import Key

PORT: Final = 10250
_WEBSOCKET: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


class NoContainer(Exception):
    """The pod is not on this host, or its container does not run."""


Execute = Callable[[Key, str, Sequence[str]], tuple[int, str]]
"""(pod, container, command) -> (exit code, stdout). Blocks as long as the command takes. Raises NoContainer."""


class Kubelet:
    """Listens on a host's own address. `start` and `stop` may alternate, as hosts reboot."""

    def __init__(self, address: str, pair: Pair, execute: Execute, *, port: int = PORT) -> None:
        self.address = address
        self.port = port
        self._execute = execute
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pair"
            path.touch(0o600)
            path.write_text(pair.certificate + pair.key)
            self._context.load_cert_chain(path)
        self._server: Any = None

    @property
    def serving(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        """Raises: OSError when the address is taken."""
        if self._server is not None:
            return
        server = _Server((self.address, self.port), _Handler)
        server.execute, server.context = self._execute, self._context
        threading.Thread(target=lambda: server.serve_forever(0.05), name=f"kubelet-{self.address}", daemon=True).start()
        self._server = server

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    execute: Execute
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake belongs to the connection's own thread."""
        try:
            secure = self.context.wrap_socket(request, server_side=True)
        except (ssl.SSLError, OSError):
            return
        with secure:
            _Handler(secure, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        route = [unquote(p) for p in parts.path.strip("/").split("/")]
        key = self.headers.get("Sec-WebSocket-Key")
        if len(route) != 4 or route[0] != "exec" or key is None:
            self.send_error(404, "only exec over WebSocket")
            return
        _, namespace, pod, container = route
        try:
            command = parse_qs(parts.query).get("command", [])
            code, printed = self.server.execute(Key(namespace, pod), container, command)
        except NoContainer:
            self._refuse(f'container not found ("{container}")')
            return
        accept = base64.b64encode(hashlib.sha1(key.encode() + _WEBSOCKET).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept),
                            ("Sec-WebSocket-Protocol", PROTOCOL)):
            self.send_header(name, value)
        self.end_headers()
        if printed:
            self._frame(2, bytes([STDOUT]) + printed.encode())
        self._frame(2, bytes([ERROR]) + msgspec.json.encode(_status(code)))
        self._frame(8, (1000).to_bytes(2, "big"))
        self.close_connection = True

    do_POST = do_GET

    def _refuse(self, text: str) -> None:
        body = f"unable to upgrade connection: {text}".encode()
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | opcode, size])
        elif size < 1 << 16:
            head = bytes([0x80 | opcode, 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x80 | opcode, 127]) + size.to_bytes(8, "big")
        self.wfile.write(head + payload)

    def log_message(self, format: str, *args: object) -> None: ...


def _status(code: int) -> dict[str, Any]:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": f"command terminated with non-zero exit code: exit status {code}",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]}}
