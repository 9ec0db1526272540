"""What a controller is made of: its world, as protocols, and its process memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from twin.backends.base import BfbVolume, Clock, Dms, HostAgent, KubeApi, KubeClusters, Settings
from twin.runtime.memory import Memory


@dataclass(frozen=True, slots=True)
class Backends:
    """All worlds one controller may need. A factory takes what it uses: `DpuReconciler.make(backends)`.

    `kube` is for reconcile passes, `background` for background tasks (same API server, no pass to charge).
    """

    kube: KubeApi
    background: KubeApi
    clusters: KubeClusters
    dms: Dms
    agent: HostAgent
    volume: BfbVolume
    memory: Memory
    clock: Clock
    policies: frozenset[str] = frozenset()
    settings: Settings = field(default_factory=Settings)
