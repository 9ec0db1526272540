"""Which DPUCluster a new DPU joins (provisioning.md 5.5): counts kept in process memory, learnt once from the cache."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from twin.backends.base import KubeReader
from twin.model.meta import Key, Object
from twin.model.provisioning import Dpu, DpuCluster, DpuClusterRef, Phase
from twin.runtime.memory import Memory

DEFAULT_MAX_NODES = 1000
SPILL_OVER = "allocator-spills-over"
TOKEN = "allocator"
"""What a pass that found no room has read."""


class NoRoom(Exception):
    """No DPUCluster takes the DPU; the text is upstream's."""


class Unallocated:
    """A `View` (twin.backends.base): the DPUs that have no DPUCluster yet, oldest first."""

    kinds: tuple[type[Object], ...] = (Dpu,)

    def __init__(self) -> None:
        self._keys: dict[Key, None] = {}

    def dpus(self) -> list[Key]:
        return list(self._keys)

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]:
        if isinstance(new, Dpu):
            if not new.spec.cluster.name:
                self._keys[new.key] = None
            elif self._keys:
                self._keys.pop(new.key, None)
        elif old is not None:
            self._keys.pop(old.key, None)
        return ()


class Allocator:
    """Which DPUs count against which DPUCluster. Get it by `memory.get(Allocator)`; a restart forgets it."""

    def __init__(self) -> None:
        self._dpus: dict[Key, dict[Key, None]] = {}
        self._learnt: dict[Key, DpuClusterRef] = {}
        """The reference that a DPU was counted for last: while it has that one, there is nothing to learn of it."""
        self._synced = False

    def choose(self, kube: KubeReader, memory: Memory, *, spill: bool = False) -> DpuCluster:
        """The DPUCluster for one more DPU. Raises NoRoom.

        upstream: allocator-first-cluster-only. The first by namespace and name decides, ready and roomy or not;
        `spill` goes on to the next ones.
        """
        if not self._synced:
            for dpu in kube.list(Dpu):
                self.learn(dpu.key, dpu)
            self._synced = True
        memory.read(TOKEN)
        clusters = sorted(kube.list(DpuCluster), key=_by_name)
        if not clusters:
            raise NoRoom("no cluster available")
        why = ""
        for cluster in clusters if spill else clusters[:1]:
            no = self._refusal(cluster)
            if not no:
                return cluster
            why = why or no
        raise NoRoom(why)

    def take(self, cluster: Key, dpu: Key) -> None:
        """Count the DPU against the cluster."""
        self._dpus.setdefault(cluster, {})[dpu] = None

    def learn(self, key: Key, dpu: Dpu) -> None:
        """Count a DPU that has a cluster already, ours or a user's choice; that cluster's limit is not looked at."""
        ref = dpu.spec.cluster
        if self._learnt.get(key) is ref:
            return
        if ref.name and (dpu.status is None or dpu.status.phase != Phase.DELETING):
            self.take(Key(ref.namespace, ref.name), key)
            self._learnt[key] = ref

    def release(self, dpu: Dpu, memory: Memory) -> None:
        """The DPU leaves: its place is free."""
        ref, key = dpu.spec.cluster, dpu.key
        self._learnt.pop(key, None)
        if self._dpus.get(Key(ref.namespace, ref.name), {}).pop(key, "absent") is None:
            memory.touched(TOKEN)

    def forget_cluster(self, cluster: Key, memory: Memory) -> None:
        """The DPUCluster is gone, with its count."""
        self._learnt.clear()
        if self._dpus.pop(cluster, None) is not None:
            memory.touched(TOKEN)

    def count(self, cluster: Key) -> int:
        return len(self._dpus.get(cluster, ()))

    def _refusal(self, cluster: DpuCluster) -> str:
        """Why the cluster takes no DPU now, or ''."""
        phase = cluster.status.phase if cluster.status is not None else "Pending"
        if phase != "Ready":
            return f"cluster {cluster.metadata.name} is not ready, phase: {phase}"
        limit = cluster.spec.max_nodes if cluster.spec.max_nodes is not None else DEFAULT_MAX_NODES
        if self.count(cluster.key) >= limit:
            return f"cluster {cluster.key} is full, max node: {limit}"
        return ""


def _by_name(cluster: DpuCluster) -> Key:
    return cluster.key
