"""Clients of DPU clusters, by the admin kubeconfig Secret of their DPUCluster (provisioning.md 7.2)."""

from __future__ import annotations

import base64
from functools import lru_cache

from controllers.provisioning.dpu_pass import not_found
from twin.backends.base import KubeApi, KubeReader
from twin.model.core import Secret
from twin.model.meta import Key
from twin.model.names import KUBECONFIG_KEY
from twin.model.provisioning import DpuCluster
from twin.runtime.backends import Backends

FOLLOW_ROTATION = "follow-kubeconfig-rotation"
"""Policy: a changed kubeconfig Secret is read again."""


class ClusterClients:
    """Process memory: the clients made so far, by controller and DPUCluster UID."""

    def __init__(self) -> None:
        self.by_cluster: dict[tuple[str, str], tuple[str, KubeApi]] = {}


def kubeconfig_of(kube: KubeReader, cluster: DpuCluster) -> tuple[str, str]:
    """(admin kubeconfig text, resourceVersion of its Secret), from the cache. Raises ValueError."""
    key = Key(cluster.metadata.namespace, cluster.spec.kubeconfig)
    if not key.name:
        raise ValueError(f"kubeconfig of DPUCluster {cluster.key} is not set")
    secret = kube.get(Secret, key)
    if secret is None:
        raise ValueError(not_found(Secret, key.name))
    data = secret.data.get(KUBECONFIG_KEY)
    if data is None:
        raise ValueError(f"secret {key} not in the expected format: data.{KUBECONFIG_KEY} not found")
    return _decoded(data), secret.metadata.resource_version


@lru_cache(maxsize=256)
def _decoded(data: str) -> str:
    """One text for one Secret: what is made of it is found again by it (`join_command.endpoint`)."""
    return base64.b64decode(data).decode()


def cluster_client(b: Backends, kube: KubeReader, cluster: DpuCluster, controller: str) -> KubeApi:
    """A client for the DPU cluster. Raises ValueError when its kubeconfig cannot be had or used.

    upstream: dpu-cluster-client-cached. A rotated kubeconfig is not noticed until the controller restarts.
    `controller` keeps the clients of two controllers apart, since each pays for its own requests.
    """
    clients = b.memory.get(ClusterClients).by_cluster
    slot = (controller, cluster.metadata.uid)
    follow = FOLLOW_ROTATION in b.policies
    found = clients.get(slot)
    if found is not None and not follow:
        return found[1]
    text, version = kubeconfig_of(kube, cluster)
    if found is not None and found[0] == version:
        return found[1]
    client = b.clusters.connect(text)
    clients[slot] = (version, client)
    return client
