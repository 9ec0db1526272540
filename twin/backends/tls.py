"""Mutual TLS to DMS: identities from Secrets, and peers that do not negotiate ALPN.

Upstream's client runs with ALPN enforcement off (GRPC_ENFORCE_ALPN_ENABLED=false), so a dmsd that selects no protocol
is served. gRPC's C core has no such switch: it refuses a peer without ALPN. For such a peer a `Relay` speaks TLS itself
and offers the plain stream to gRPC on a Unix socket that only this process can reach.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import select
import socket
import ssl
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONNECT_S: Final = 5.0  # as the dial of provisioning.md 8.2
HANDSHAKE_S: Final = 10.0
CHUNK: Final = 1 << 16
KEPT: Final = 1 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A client certificate with its key, and the authority that signs servers; PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    def __repr__(self) -> str:
        return "Identity(...)"  # never in a log

    @classmethod
    def from_secret(cls, name: str, data: Mapping[str, str]) -> Identity:
        """From the `data` of a kubernetes.io/tls Secret. Raises: ValueError naming the key that is missing."""
        parts = []
        for field in ("tls.crt", "tls.key", "ca.crt"):
            try:
                value = base64.b64decode(data.get(field, ""), validate=True)
            except binascii.Error as error:
                raise ValueError(f"secret {name}: {field} is not base64") from error
            if not value:
                raise ValueError(f"secret {name} has no {field}")
            parts.append(value)
        return cls(*parts)

    def context(self) -> ssl.SSLContext:
        """A client context. Raises: ssl.SSLError when key and certificate do not fit."""
        context = ssl.create_default_context(cadata=self.authority.decode())
        handle = os.memfd_create("identity")  # OpenSSL reads files; this one is on no disk
        try:
            os.write(handle, self.certificate + b"\n" + self.key)
            context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        context.set_alpn_protocols(["h2"])
        return context


def negotiates_alpn(host: str, port: int, identity: Identity) -> bool:
    """Shake hands once: does the peer select h2?

    Raises: OSError (nobody there, ssl.SSLError: somebody else is there).
    """
    with socket.create_connection((host, port), CONNECT_S) as plain:
        plain.settimeout(HANDSHAKE_S)
        with identity.context().wrap_socket(plain, server_hostname=host) as secure:
            return secure.selected_alpn_protocol() == "h2"


class Relay:
    """A Unix socket whose connections are carried to one peer over TLS, without asking for ALPN."""

    def __init__(self, host: str, port: int, identity: Identity) -> None:
        self._peer = (host, port)
        self._context = identity.context()
        self._folder = tempfile.mkdtemp(prefix="dpf-twin-relay-")  # mode 0700
        self._path = str(Path(self._folder) / "dms")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, name=f"relay-{host}", daemon=True).start()

    @property
    def target(self) -> str:
        """What gRPC dials."""
        return f"unix:{self._path}"

    def close(self) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
            os.rmdir(self._folder)

    def _accept(self) -> None:
        while True:
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            try:
                plain = socket.create_connection(self._peer, CONNECT_S)
                plain.settimeout(HANDSHAKE_S)
                secure = self._context.wrap_socket(plain, server_hostname=self._peer[0])
            except OSError:
                local.close()
                continue
            self._open += [local, secure]
            threading.Thread(target=self._connection, args=(local, secure), daemon=True).start()

    def _connection(self, local: socket.socket, secure: ssl.SSLSocket) -> None:
        carry(local, secure)
        for each in (local, secure):
            self._open.remove(each)
            each.close()


def carry(plain: socket.socket, secure: ssl.SSLSocket) -> None:
    """Carry bytes both ways until one side ends. One thread only: OpenSSL's connections are not shared between threads.

    What cannot be written is kept up to a limit, then no more is read from the other side: back-pressure.
    """
    waiting = {plain: bytearray(), secure: bytearray()}  # what each still has to be sent
    other: dict[socket.socket, socket.socket] = {plain: secure, secure: plain}
    for each in waiting:
        each.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            readable = [s for s in waiting if len(waiting[other[s]]) < KEPT]
            ready, writable, _ = select.select(readable, [s for s in waiting if waiting[s]], [])
            for sink in writable:
                _send(sink, waiting[sink])
            for source in ready:
                if not _receive(source, waiting[other[source]]):
                    _flush(other[source], waiting[other[source]])
                    return


def _receive(source: socket.socket, into: bytearray) -> bool:
    """Everything that is there now; False at its end."""
    while len(into) < KEPT:
        try:
            data = source.recv(CHUNK)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return True
        except OSError:  # ended without a farewell
            return False
        if not data:
            return False
        into += data
    # What OpenSSL has decrypted already no select() shows, so it must be taken now.
    while isinstance(source, ssl.SSLSocket) and source.pending():
        into += source.recv(CHUNK)
    return True


def _send(sink: socket.socket, data: bytearray) -> None:
    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
        while data:
            del data[:sink.send(bytes(data[:CHUNK]))]


def _flush(sink: socket.socket, data: bytearray) -> None:
    sink.settimeout(HANDSHAKE_S)
    if data:
        sink.sendall(bytes(data))
