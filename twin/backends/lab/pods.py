"""What kubelets, schedulers and drains ask of a real API server: pod subresources and deletion without grace."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from twin.backends.base import Conflict, NotFound
from twin.backends.kube import Cluster, resource_path
from twin.model.core import Pod


class LivePodVerbs:
    """`twin.actors.hosts.PodVerbs` and `twin.actors.maintenance.Evictor`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def bind(self, pod: Pod, node: str) -> None:
        """pods/binding. Raises: ApiError."""
        self._post(pod, "binding", {
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.metadata.name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}})

    def kill(self, pod: Pod) -> None:
        """DELETE with grace period 0. What is gone already is fine. Raises: ApiError."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
                "preconditions": {"uid": pod.metadata.uid}}
        path = resource_path(Pod, pod.metadata.namespace, pod.metadata.name)
        with contextlib.suppress(NotFound, Conflict):  # Conflict: another pod has its name by now
            self._cluster.connection.request("DELETE", path, body=msgspec.json.encode(body))

    def evict(self, pod: Pod, now: float) -> None:
        """pods/eviction. Raises: ApiError, 429 when a PodDisruptionBudget forbids it now."""
        self._post(pod, "eviction", {
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace}})

    def _post(self, pod: Pod, part: str, body: dict[str, Any]) -> None:
        path = resource_path(Pod, pod.metadata.namespace, pod.metadata.name, part)
        self._cluster.connection.request("POST", path, body=msgspec.json.encode(body))
