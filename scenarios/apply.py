"""kubectl, played: apply with its three-way merge, patch, delete, as a user of the host cluster (or a DPU cluster)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scenarios.base import Delete, Manifest, Patch
from twin.backends.base import ApiError
from twin.model.kinds import kind_of
from twin.model.meta import Key, Object, Unstructured
from twin.sim.kube import ApiServer, Resource
from twin.sim.world import World

USER = "kubectl"


class Refused(Exception):
    """The API server refused what the user asked for. `str` is kubectl's line."""


class Kubectl:
    """One user of a world. Remembers what it applied last, as kubectl's annotation does."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._applied: dict[tuple[str, str, Key], Mapping[str, Any]] = {}

    def apply(self, manifest: Manifest) -> None:
        """Create, or merge the difference to what was applied last. Raises Refused."""
        server = self._world.host_cluster
        data = manifest.data
        resource, key = self._where(str(data.get("apiVersion", "")), manifest.id.kind, manifest.id.namespace,
                                    manifest.id.name)
        if key.namespace:
            # The guides' first step is `kubectl create namespace`.
            self._world.ensure_namespace(key.namespace)
        memory = (str(data.get("apiVersion", "")), manifest.id.kind, key)
        body = {k: v for k, v in data.items() if k != "status"}
        if key.namespace:
            body["metadata"] = {**body.get("metadata", {}), "namespace": key.namespace}
        try:
            if server.table(resource).get(key) is None:
                server.create_manifest(body, USER, self._world.env.now)
            else:
                merge = three_way(self._applied.get(memory, {}), body)
                server.patch_resource(resource, key, merge, USER, self._world.env.now)
        except ApiError as error:
            raise Refused(f"{manifest.id}: {_told(error)}") from error
        self._applied[memory] = body

    def patch(self, patch: Patch) -> None:
        """Raises Refused."""
        server, (resource, key) = self._server(patch.cluster), self._where(
            patch.apiVersion, patch.kind, patch.namespace, patch.name)
        try:
            if patch.merge is not None:
                server.patch_resource(resource, key, patch.merge, USER, self._world.env.now, status=patch.status)
            else:
                server.json_patch(resource, key, patch.json_patch or [], USER, self._world.env.now, status=patch.status)
        except ApiError as error:
            raise Refused(f"{patch.kind}/{key}: {_told(error)}") from error

    def delete(self, delete: Delete) -> None:
        """Raises Refused, also when there is no such object."""
        server, (resource, key) = self._server(delete.cluster), self._where(
            delete.apiVersion, delete.kind, delete.namespace, delete.name)
        try:
            server.delete(resource, key, USER, self._world.env.now, propagation=delete.propagation)
        except ApiError as error:
            raise Refused(f"{delete.kind}/{key}: {_told(error)}") from error

    def _server(self, cluster: str) -> ApiServer:
        if not cluster:
            return self._world.host_cluster
        namespace, _, name = cluster.rpartition("/")
        server = self._world.dpu_clusters.get(Key(namespace, name))
        if server is None:
            raise Refused(f"DPUCluster {cluster}: it has no API server")
        return server

    def _where(self, api_version: str, kind: str, namespace: str, name: str) -> tuple[Resource, Key]:
        from twin.model.kinds import KINDS

        cls: type[Object] = KINDS.get(kind, Unstructured) if not api_version else kind_of(api_version, kind)
        if cls is Unstructured:
            return f"{kind}.{api_version.rpartition('/')[0]}", Key(namespace, name)
        return cls, Key((namespace or "default") if cls.NAMESPACED else "", name)


def _told(error: ApiError) -> str:
    """A webhook may refuse without a reason."""
    return f"{error} ({f'{error.code} {error.reason}'.rstrip()})"


def three_way(last: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch that sets all of `new` and removes what only `last` had."""
    merge: dict[str, Any] = {}
    for name, value in new.items():
        before = last.get(name)
        if isinstance(value, Mapping):
            merge[name] = three_way(before if isinstance(before, Mapping) else {}, value)
        else:
            merge[name] = value
    for name in last:
        if name not in new:
            merge[name] = None
    return merge
