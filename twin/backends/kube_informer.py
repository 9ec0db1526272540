"""Informers: list in pages, watch, follow bookmarks, list again on 410, reconnect with jitter; one thread per kind.

The rules are those of client-go's reflector: a watch that ends is reopened where it was; a refused connection is tried
again from there; any other error means a new list. Waiting grows from 0.8 s to 30 s, doubled and jittered.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import urllib3

from twin.backends.base import ApiError, Gone, Unavailable
from twin.backends.kube_cache import Cache, Entry
from twin.backends.kube_http import Connection, Status, error_of
from twin.model.meta import Key, Object, replace

PAGE: Final = 500
WATCH_S: Final = (300.0, 600.0)  # how long the server is asked to keep a watch
SILENCE_S: Final = 75.0  # bookmarks come once a minute: longer silence is a dead connection
FIRST_WAIT_S: Final = 0.8
LONGEST_WAIT_S: Final = 30.0


class _ListMeta(msgspec.Struct, frozen=True, rename={"go_on": "continue", "resource_version": "resourceVersion"}):
    resource_version: str = ""
    go_on: str = ""


class Page(msgspec.Struct):
    """One page of a list; items are decoded one by one, so that a mistake names its object."""

    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct):
    metadata: _ListMeta = _ListMeta()


class _Named(msgspec.Struct):
    metadata: dict[str, Any] = {}


class Decoder:
    """JSON to one kind."""

    def __init__(self, kind: type[Object]) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def whole(self, raw: bytes | msgspec.Raw) -> Object:
        """Raises: ApiError (reason DecodeError) when the server holds what this version does not understand."""
        try:
            try:
                return self._decoder.decode(raw)
            except msgspec.ValidationError:
                if b"null" not in bytes(raw):
                    raise
                # Go writes a time that is not set as null, and reads null as not set.
                return msgspec.convert(_without_nulls(msgspec.json.decode(raw)), self.kind)
        except msgspec.ValidationError as error:
            meta = msgspec.json.decode(raw, type=_Named).metadata
            key = Key(meta.get("namespace", ""), meta.get("name", ""))
            raise ApiError(f"{self.kind.KIND} {key}: {error}; are the CRDs of another version?",
                           reason="DecodeError") from error

    def __call__(self, raw: bytes | msgspec.Raw) -> Object:
        """As `whole`, without managed fields: they are most of an object's bulk, and no cache needs them."""
        obj = self.whole(raw)
        if obj.metadata.managed_fields:
            return replace(obj, metadata=replace(obj.metadata, managed_fields=()))
        return obj


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def list_pages(connection: Connection, path: str, query: dict[str, str] | None = None) -> Iterator[Page]:
    """Every page of a list. Raises: Gone when the list took so long that its pages expired."""
    query = {**(query or {}), "limit": str(PAGE)}
    while True:
        page = msgspec.json.decode(connection.request("GET", path, query), type=Page)
        yield page
        if not page.metadata.go_on:
            return
        query["continue"] = page.metadata.go_on


class Informer:
    """Keeps one kind of one cluster in a cache."""

    def __init__(self, connection: Connection, cache: Cache, kind: type[Object], path: str,
                 say: Callable[[str], None] = lambda line: None) -> None:
        self.kind = kind
        self.path = path
        self.lists = 0  # how often everything was listed: 1 after a quiet life
        self._connection = connection
        self._cache = cache
        self._decode = Decoder(kind)
        self._say = say
        self._random = random.Random()
        self._stopping = threading.Event()
        self._tried = threading.Event()  # the first list was answered, well or badly
        self._synced = False
        self._failure: ApiError | None = None
        self._response: urllib3.BaseHTTPResponse | None = None
        self._thread = threading.Thread(target=self._run, name=f"informer-{kind.KIND}", daemon=True)
        self._thread.start()

    def await_sync(self, deadline_s: float) -> None:
        """Return once the cache holds the kind. Raises: what the server said, or Unavailable after the deadline."""
        end = time.monotonic() + deadline_s
        while not self._synced:
            if not self._tried.wait(max(0.0, end - time.monotonic())):
                raise Unavailable(f"informer of {self.kind.KIND} is not synced after {deadline_s:.0f} s")
            if self._failure is not None and not self._synced:
                raise self._failure

    @property
    def synced(self) -> bool:
        return self._synced

    def stop(self) -> None:
        """End the watch and its thread."""
        self._stopping.set()
        response = self._response
        if response is not None:
            with contextlib.suppress(Exception):
                response.shutdown()
        self._thread.join(5.0)

    # --- the reflector

    def _run(self) -> None:
        version = ""
        wait_s = FIRST_WAIT_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                if not version:
                    version = self._list()
                version = self._watch(version)
                wait_s = FIRST_WAIT_S
                continue
            except Gone as error:
                version = ""
                self._say(f"{self.kind.KIND}: listing again: {error}")
                if self._synced:
                    continue
                self._fail(error)
            except Unavailable as error:
                self._fail(error)
            except ApiError as error:
                version = ""
                self._fail(error)
            if time.monotonic() - started > 120.0:  # it worked for a while: forget the back-off
                wait_s = FIRST_WAIT_S
            self._stopping.wait(wait_s * (1.0 + self._random.random()))
            wait_s = min(LONGEST_WAIT_S, 2.0 * wait_s)

    def _fail(self, error: ApiError) -> None:
        self._failure = error
        self._tried.set()
        self._say(f"{self.kind.KIND}: {error}")

    def _list(self) -> str:
        entries: dict[Key, Entry] = {}
        version = ""
        for page in list_pages(self._connection, self.path):
            version = page.metadata.resource_version
            for item in page.items or ():
                raw = bytes(item)
                obj = self._decode(raw)
                entries[obj.key] = Entry(obj, raw)
        self._cache.replace(self.kind, entries)
        self.lists += 1
        self._failure = None
        self._synced = True
        self._tried.set()
        return version

    def _watch(self, version: str) -> str:
        """Follow changes from this version until the server ends the watch; returns the last version seen."""
        timeout_s = self._random.uniform(*WATCH_S)
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version,
                 "timeoutSeconds": str(round(timeout_s))}
        response = self._response = self._connection.stream(self.path, query, SILENCE_S)
        try:
            for line in () if self._stopping.is_set() else _lines(response):
                version = self._apply(line) or version
        except urllib3.exceptions.ReadTimeoutError:
            return version  # no bookmark: the connection is dead, or an API server started lately and has no news
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if not self._stopping.is_set():
                self._say(f"{self.kind.KIND}: watch broken: {error}")
                self._stopping.wait(FIRST_WAIT_S * self._random.random())
        finally:
            self._response = None
            response.close()
        return version

    def _apply(self, line: bytes) -> str:
        event = msgspec.json.decode(line, type=_WatchEvent)
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=Status)
            raise error_of(status.code or 500, bytes(event.object))
        raw = bytes(event.object)
        obj = self._decode(raw)
        if event.type == "DELETED":
            self._cache.remove(self.kind, obj.key)
        else:
            self._cache.put(self.kind, obj, raw)
        return obj.metadata.resource_version


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The JSON documents of a watch, as they arrive."""
    rest = b""
    for chunk in response.stream(1 << 16):
        rest += chunk
        if b"\n" in chunk:
            *whole, rest = rest.split(b"\n")
            yield from (line for line in whole if line)
