"""The DPU clusters of an installation, followed for the record: which Nodes they hold, and when that changed.

Nothing here serves a controller: those ask DPU clusters directly, so that an outage shows at once. A cluster that is
down is only not heard of; it is listed again when it answers.
"""

from __future__ import annotations

import base64
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final

from twin.backends.base import ApiError, Unavailable
from twin.backends.kube import Cluster, LiveKube
from twin.backends.kube_http import Credentials, from_kubeconfig
from twin.model.core import Node, Secret
from twin.model.meta import Key, Object
from twin.model.names import KUBECONFIG_KEY
from twin.model.provisioning import DpuCluster

AGAIN_S: Final = 5.0
"""A kubeconfig that cannot be had yet is looked for again after so long."""
Seen = Callable[[str, Object | None, Object | None], None]
"""(DPU cluster as namespace/name, old, new): a Node of it changed."""


class DpuClusters:
    """Follows every DPUCluster that has a kubeconfig, until the host cluster's connection is closed."""

    def __init__(self, host: Cluster, seen: Seen) -> None:
        self._host = host
        self._seen = seen
        self._changed: queue.SimpleQueue[DpuCluster | Key | None] = queue.SimpleQueue()
        self._followed: dict[Key, Cluster] = {}
        self._waiting: dict[Key, DpuCluster] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="dpu-clusters", daemon=True)
        self._thread.start()
        host.closing.append(self.close)
        host.watch(DpuCluster, self._notice)

    def nodes(self) -> dict[str, list[Node]]:
        """The Nodes of each cluster as last heard of, by namespace/name of the DPUCluster."""
        with self._lock:
            followed = dict(self._followed)
        return {str(key): cluster.cache.list(Node, None, None) for key, cluster in followed.items()}

    def close(self) -> None:
        self._changed.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- inside

    def _notice(self, old: Object | None, new: Object | None) -> None:
        """Called under the host cache's lock: others do the work."""
        if isinstance(new, DpuCluster):
            if new.spec.kubeconfig:
                self._changed.put(new)
        elif old is not None:
            self._changed.put(old.key)

    def _run(self) -> None:
        while True:
            try:
                change = self._changed.get(timeout=AGAIN_S if self._waiting else None)
            except queue.Empty:
                for waiting in list(self._waiting.values()):
                    self._follow(waiting)
                continue
            if change is None:
                break
            if isinstance(change, Key):
                self._forget(change)
            elif change.key not in self._followed:
                self._follow(change)
        for key in list(self._followed):
            self._forget(key)

    def _follow(self, dpu_cluster: DpuCluster) -> None:
        key = dpu_cluster.key
        try:
            cluster = Cluster(lambda: self._credentials(dpu_cluster))
        except ApiError:
            self._waiting[key] = dpu_cluster
            return
        self._waiting.pop(key, None)
        cluster.cache.watch(Node, lambda old, new: self._seen(str(key), old, new))
        with contextlib.suppress(ApiError):
            cluster.informer(Node, deadline_s=0.0)  # it goes on by itself
        with self._lock:
            self._followed[key] = cluster

    def _credentials(self, dpu_cluster: DpuCluster) -> Credentials:
        """As the Secret has them now: asked again when the cluster refuses the old ones. Raises: ApiError."""
        key = Key(dpu_cluster.metadata.namespace, dpu_cluster.spec.kubeconfig)
        data = LiveKube(self._host, cached=False).read_live(Secret, key).data
        try:
            return from_kubeconfig(base64.b64decode(data[KUBECONFIG_KEY]).decode())
        except (KeyError, ValueError) as error:
            raise Unavailable(f"secret {key}: {error}") from error

    def _forget(self, key: Key) -> None:
        self._waiting.pop(key, None)
        with self._lock:
            cluster = self._followed.pop(key, None)
        if cluster is not None:
            cluster.close()
