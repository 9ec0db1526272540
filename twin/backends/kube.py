"""The API server, live: `KubeApi` over the official client's credentials and urllib3.

`LiveKube` serves one component. Components of one process share a `Cluster` (connection, informers, views), as
controllers of one manager share caches. Clusters reached through a kubeconfig at run time are asked directly:
upstream's clients of DPU clusters have no cache, so an outage shows at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from twin.backends.base import ASKED_FOR_CREDENTIALS, ApiError, Conflict, NotFound, View
from twin.backends.kube_cache import Cache, Callback
from twin.backends.kube_events import Recorder
from twin.backends.kube_http import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    Connection,
    Credentials,
    TokenBucket,
    from_kubeconfig,
)
from twin.backends.kube_informer import Decoder, Informer, list_pages
from twin.backends.kube_merge import full_manifest, overlay
from twin.model.core import Event
from twin.model.kinds import from_manifest, kind_of, to_manifest
from twin.model.meta import Key, Object, Unstructured
from twin.model.schema import has_crd
from twin.model.typed import as_sent

T = TypeVar("T", bound=Object)
V = TypeVar("V", bound=View)
SYNC_S: Final = 60.0
REMEMBERED: Final = 4096  # objects read or written lately, for the difference an update is made of
KUBECONFIGS: Final = 64


def resource_path(kind: type[Object], namespace: str | None = None, name: str = "", part: str = "") -> str:
    """Where a kind, a namespace of it, an object or its subresource lives."""
    root = f"/apis/{kind.GROUP}/{kind.VERSION}" if kind.GROUP else f"/api/{kind.VERSION}"
    return _path(root, kind.PLURAL, namespace if kind.NAMESPACED else None, name, part)


def _path(root: str, plural: str, namespace: str | None, name: str, part: str = "") -> str:
    space = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{space}/{plural}" + (f"/{name}" if name else "") + (f"/{part}" if part else "")


class Cluster:
    """One API server as one process sees it: a connection, views, and informers that start when first asked for."""

    def __init__(self, credentials: Callable[[], Credentials], *, limit: TokenBucket | None = None,
                 namespace: str | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        self.connection = Connection(credentials, limit=limit)
        self.cache = Cache()
        self.namespace = namespace
        self.closing: list[Callable[[], None]] = []
        """Called before the connection is closed."""
        self._say = say
        self._informers: dict[type[Object], Informer] = {}
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[type[Object], Key, str], bytes] = OrderedDict()
        self._decoders: dict[type[Object], Decoder] = {}
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    def informer(self, kind: type[Object], *, deadline_s: float = SYNC_S) -> Informer:
        """The informer of a kind, synced. Raises: ApiError."""
        with self._lock:
            found = self._informers.get(kind)
            if found is None:
                path = resource_path(kind, self.namespace)
                found = self._informers[kind] = Informer(self.connection, self.cache, kind, path, self._say)
        if not found.synced:
            found.await_sync(deadline_s)
        return found

    def watch(self, kind: type[Object], callback: Callback) -> None:
        """Be called on every change of a kind. The callback holds the cache's lock: queue a key, do not wait."""
        self.informer(kind)
        self.cache.watch(kind, callback)

    def informers(self) -> list[Informer]:
        with self._lock:
            return list(self._informers.values())

    def version(self) -> dict[str, Any]:
        """`/version`: the cheapest question that proves the server answers and knows us."""
        try:
            answer: dict[str, Any] = msgspec.json.decode(self.connection.request("GET", "/version"))
        except ApiError as error:
            if error.code == 401:
                raise ApiError(ASKED_FOR_CREDENTIALS, code=401, reason=error.reason) from error
            raise
        return answer

    def close(self) -> None:
        while self.closing:
            self.closing.pop()()
        for informer in self.informers():
            informer.stop()
        self.connection.close()

    # --- what requests share

    def decode(self, kind: type[T], raw: bytes) -> T:
        """Decode an answer and remember its text. Raises: ApiError when it cannot be decoded."""
        obj = cast(T, self.decoder(kind).whole(raw))
        with self._lock:
            self._recent[kind, obj.key, obj.metadata.resource_version] = raw
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        return obj

    def decoder(self, kind: type[Object]) -> Decoder:
        found = self._decoders.get(kind)
        if found is None:
            found = self._decoders[kind] = Decoder(kind)
        return found

    def stored(self, obj: Object) -> bytes:
        """The server's text of the version `obj` was made from. Raises: Conflict if that version is gone, NotFound."""
        kind, version = type(obj), obj.metadata.resource_version
        entry = self.cache.entry(kind, obj.key)
        if entry is not None and entry.obj.metadata.resource_version == version:
            return entry.raw
        with self._lock:
            recent = self._recent.get((kind, obj.key, version))
        if recent is not None:
            return recent
        raw = self.connection.request("GET", resource_path(kind, obj.metadata.namespace, obj.metadata.name))
        current = self.decode(kind, raw)
        if version and current.metadata.resource_version != version:
            raise conflict(kind, obj.key)
        return raw

    def manifest_path(self, manifest: Mapping[str, Any], *, named: bool = True) -> str:
        """Where a manifest belongs; kinds without a class are looked up in the server's discovery."""
        version, kind = str(manifest.get("apiVersion", "")), str(manifest.get("kind", ""))
        meta = manifest.get("metadata") or {}
        cls = kind_of(version, kind)
        if cls is not Unstructured:
            plural, namespaced = cls.PLURAL, cls.NAMESPACED
        else:
            plural, namespaced = self._discover(version, kind)
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        namespace = meta.get("namespace") or "default"
        return _path(root, plural, namespace if namespaced else None, meta.get("name", "") if named else "")

    def _discover(self, version: str, kind: str) -> tuple[str, bool]:
        found = self._plurals.get((version, kind))
        if found is None:
            root = f"/apis/{version}" if "/" in version else f"/api/{version}"
            try:
                resources = msgspec.json.decode(self.connection.request("GET", root))["resources"]
            except NotFound:
                resources = []
            for r in resources:
                if "/" not in r["name"]:
                    self._plurals[version, r["kind"]] = (r["name"], r["namespaced"])
            found = self._plurals.get((version, kind))
        if found is None:
            raise NotFound(f'no matches for kind "{kind}" in version "{version}"')
        return found


class LiveKube:
    """`twin.backends.base.KubeApi` for one component of a process.

    `reads` is told a token for everything a pass asks: (kind, key), (kind, None), (kind, label, value) or a view's own.
    The cluster's cache says through `touched` when a token's answer changes.
    """

    def __init__(self, cluster: Cluster, component: str = "dpf-twin", *, cached: bool = True) -> None:
        self.cluster = cluster
        self.component = component
        self.reads: Callable[[Hashable], None] = lambda token: None
        self._cached = cached
        self._recorder: Recorder | None = None

    # --- reads

    def get(self, kind: type[T], key: Key) -> T | None:
        if not self._cached:
            try:
                return self.read_live(kind, key)
            except NotFound:
                return None
        self.cluster.informer(kind)
        self.reads((kind, key))
        return self.cluster.cache.get(kind, key)

    def list(self, kind: type[T], namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Sequence[T]:
        if not self._cached:
            return self.list_live(kind, namespace, labels)
        self.cluster.informer(kind)
        if labels:
            self.reads((kind, *next(iter(labels.items()))))
        else:
            self.reads((kind, None))
        return self.cluster.cache.list(kind, namespace, labels)

    def view(self, view: type[V], token: Hashable) -> V:
        for kind in view.kinds:
            self.cluster.informer(kind)
        self.reads(token)
        return self.cluster.cache.view(view)

    def read_live(self, kind: type[T], key: Key) -> T:
        self.reads(("live", kind, key))
        return self._answer(kind, "GET", resource_path(kind, key.namespace, key.name))

    def list_live(self, kind: type[T], namespace: str | None = None,
                  labels: Mapping[str, str] | None = None) -> Sequence[T]:
        self.reads(("live", kind))
        query = {"labelSelector": ",".join(f"{k}={v}" for k, v in labels.items())} if labels else {}
        found = [self.cluster.decode(kind, bytes(item))
                 for page in list_pages(self.cluster.connection, resource_path(kind, namespace), query)
                 for item in page.items or ()]
        return sorted(found, key=lambda obj: obj.key)

    def version(self) -> dict[str, Any]:
        return self.cluster.version()

    # --- writes

    def create(self, obj: T) -> T:
        manifest = to_manifest(obj)
        path = self.cluster.manifest_path(manifest, named=False)
        return self._answer(type(obj), "POST", path, _sent(type(obj), manifest))

    def update(self, obj: T) -> T:
        return self._replace(obj, "")

    def update_status(self, obj: T) -> T:
        return self._replace(obj, "status")

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], *, status: bool = False,
              resource_version: str = "") -> T:
        if resource_version:
            merge = {**merge, "metadata": {**merge.get("metadata", {}), "resourceVersion": resource_version}}
        path = resource_path(kind, key.namespace, key.name, "status" if status else "")
        return self._answer(kind, "PATCH", path, merge, MERGE_PATCH)

    def json_patch(self, kind: type[T], key: Key, operations: Sequence[Mapping[str, Any]], *,
                   status: bool = False) -> T:
        """JSON Patch (RFC 6902)."""
        path = resource_path(kind, key.namespace, key.name, "status" if status else "")
        return self._answer(kind, "PATCH", path, list(operations), JSON_PATCH)

    def apply(self, manifest: Mapping[str, Any], manager: str, *, force: bool = False) -> Object:
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        raw = self.cluster.connection.request("PATCH", self.cluster.manifest_path(manifest), query,
                                              msgspec.json.encode(manifest), APPLY_PATCH)
        cls = kind_of(str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
        return from_manifest(msgspec.json.decode(raw)) if cls is Unstructured else self.cluster.decode(cls, raw)

    def delete(self, kind: type[T], key: Key, *, propagation: str = "Background", uid: str = "") -> None:
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        self.cluster.connection.request("DELETE", resource_path(kind, key.namespace, key.name),
                                        body=msgspec.json.encode(options))

    def event(self, about: Object, type_: str, reason: str, message: str) -> None:
        if self._recorder is None:
            self._recorder = Recorder(self.create, lambda key, merge: self.patch(Event, key, merge), self.component)
        self._recorder.record(about, type_, reason, message)

    def close(self) -> None:
        """Send the last Events. The cluster's connection is its owner's to close."""
        if self._recorder is not None:
            self._recorder.close()

    # --- inside

    def _replace(self, obj: T, part: str) -> T:
        """PUT the stored text with our difference in it: optimistic lock by resourceVersion, unknown fields kept."""
        kind, meta = type(obj), obj.metadata
        raw = self.cluster.stored(obj)
        base = full_manifest(self.cluster.decoder(kind).whole(raw))
        whole = overlay(msgspec.json.decode(raw), base, full_manifest(obj))
        whole |= {"apiVersion": kind.api_version(), "kind": kind.KIND}
        whole["metadata"].pop("managedFields", None)  # absent means: as they are
        return self._answer(kind, "PUT", resource_path(kind, meta.namespace, meta.name, part), _sent(kind, whole))

    def _answer(self, kind: type[T], method: str, path: str, body: Any = None,
                content_type: str = "application/json") -> T:
        raw = self.cluster.connection.request(
            method, path, body=None if body is None else msgspec.json.encode(body), content_type=content_type)
        if kind is Unstructured:
            return cast(T, from_manifest(msgspec.json.decode(raw)))
        return self.cluster.decode(kind, raw)


def _sent(kind: type[Object], manifest: dict[str, Any]) -> dict[str, Any]:
    """With the empty fields that upstream's Go types write out: the server's rules look at them."""
    if not has_crd(kind):
        return manifest
    return as_sent(kind, msgspec.json.decode(msgspec.json.encode(manifest)))


def conflict(kind: type[Object], key: Key) -> Conflict:
    """What the API server answers to a stale write."""
    resource = f"{kind.PLURAL}.{kind.GROUP}" if kind.GROUP else kind.PLURAL
    return Conflict(f'Operation cannot be fulfilled on {resource} "{key.name}": the object has been modified; '
                    "please apply your changes to the latest version and try again")


class LiveClusters:
    """`twin.backends.base.KubeClusters`: one direct client per kubeconfig text; a rotated kubeconfig gets a new one."""

    def __init__(self, *, component: str = "dpf-twin", qps: float = 0.0, burst: int = 0,
                 before: Callable[[str], None] = lambda method: None) -> None:
        self._component = component
        self._before = before  # see `Connection`
        self._rate = (qps, burst)
        self._clients: OrderedDict[str, LiveKube] = OrderedDict()
        self._lock = threading.Lock()

    def connect(self, kubeconfig: str) -> LiveKube:
        """Raises: ValueError when the kubeconfig cannot be used."""
        with self._lock:
            client = self._clients.get(kubeconfig)
            if client is None:
                credentials = from_kubeconfig(kubeconfig)
                limit = TokenBucket(*self._rate) if self._rate[0] else None
                client = LiveKube(Cluster(lambda: credentials, limit=limit), self._component, cached=False)
                client.cluster.connection.before = self._before
                self._clients[kubeconfig] = client
            self._clients.move_to_end(kubeconfig)
            while len(self._clients) > KUBECONFIGS:
                self._clients.popitem(last=False)[1].cluster.close()
            return client

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()
                client.cluster.close()
            self._clients.clear()


def open_cluster(kubeconfig: Path, context: str | None = None, *, qps: float = 20.0, burst: int = 30,
                 namespace: str | None = None, say: Callable[[str], None] = lambda line: None) -> Cluster:
    """The cluster a kubeconfig file names; the file is read again when the server no longer knows us.

    `qps` 0 means no limit; the defaults are controller-runtime's. Raises: ValueError.
    """
    limit = TokenBucket(qps, burst) if qps else None
    return Cluster(lambda: from_kubeconfig(kubeconfig, context), limit=limit, namespace=namespace, say=say)


def install_crds(kube: LiveKube, crds: Sequence[Mapping[str, Any]], *, deadline_s: float = 30.0) -> None:
    """Apply CustomResourceDefinitions and wait until the server serves them. Raises: ApiError."""
    for crd in crds:
        kube.apply(crd, "dpf-twin", force=True)
    deadline = time.monotonic() + deadline_s
    waiting = [str(crd["metadata"]["name"]) for crd in crds]
    while waiting:
        waiting = [name for name in waiting if not _established(kube, name)]
        if waiting and time.monotonic() > deadline:
            raise ApiError(f"CustomResourceDefinition {waiting[0]} is not established after {deadline_s:.0f} s",
                           reason="Timeout")
        if waiting:
            time.sleep(0.05)


def _established(kube: LiveKube, name: str) -> bool:
    raw = kube.cluster.connection.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = msgspec.json.decode(raw).get("status", {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
