"""What a live process notes: the records of a simulated run, metrics, and how long things took.

The trace is that of `twin.sim.trace`; phases, outages and waits are read off the informers by the very chronicle that
watches a simulated API server. Values of Secrets reach none of it.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, cast

from api.live_clusters import DpuClusters
from twin.backends.kube import Cluster
from twin.backends.wrap import Call
from twin.model.core import Node, NodeMaintenance, TenantControlPlane
from twin.model.fleet import Fleet, Host, Rack
from twin.model.meta import Key, Object
from twin.model.operator import DpfOperatorConfig
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuSet
from twin.sim.chronicle import Chronicle
from twin.sim.clock import SECOND
from twin.sim.trace import Trace

WATCHED: Final[tuple[type[Object], ...]] = (
    DpuNode, DpuDevice, DpuCluster, DpuFlavor, Bfb, DpuSet, Dpu, Node, DpfOperatorConfig)
"""Kinds whose versions are recorded, in the order in which the first ones are told."""
NEIGHBOURS: Final[tuple[type[Object], ...]] = (NodeMaintenance, TenantControlPlane)
LATEST: Final = 10_000
"""Calls of each verb whose durations are kept: a process may run for months."""
RACK_LABELS: Final = ("topology.kubernetes.io/rack", "topology.kubernetes.io/zone")
_SECRETS: Final = re.compile(r"(?i)\b[a-z0-9]{6}\.[a-z0-9]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END"
                             r"|(Bearer )\S+", re.DOTALL)


def plain(text: str) -> str:
    """A text without what looks like a bootstrap token, a private key or a bearer token."""
    return _SECRETS.sub(lambda found: f"{found[1] or ''}REDACTED", text)


class _Server:
    """What the chronicle asks of an API server, answered from informers."""

    def __init__(self, cluster: Cluster) -> None:
        self.observers: dict[type[Object], list[Callable[[Object | None, Object | None, int], None]]] = {}
        self._cluster = cluster
        self.writer = ""
        """Nobody is known: a watch does not say who wrote."""

    def find(self, kind: type[Object], key: Key) -> Any:
        return self._cluster.cache.get(kind, key)

    def table(self, kind: type[Object]) -> Mapping[Key, Object]:
        return {obj.key: obj for obj in self._cluster.cache.list(kind, None, None)}


class Recorder:
    """One live run. `begin` starts to observe; everything else may be called from any thread."""

    def __init__(self, fleet: Fleet, *, keep: bool = True, objects: bool = True) -> None:
        self.trace = Trace(keep=keep, objects=objects)
        self.fleet = fleet
        self.epoch_s = time.time()
        self.latencies: dict[str, deque[float]] = {}
        """Seconds by verb, the latest ones: `create`, `status`, `os_install`, ..."""
        self._start_ns = time.monotonic_ns()
        self._lock = threading.RLock()
        self._versions: dict[tuple[type[Object], Key], str] = {}
        self.chronicle: Chronicle | None = None
        self.dpu_clusters: DpuClusters | None = None
        for card in fleet.cards:
            self.trace.place(card.name, card.rack, card.host)

    @property
    def now_ns(self) -> int:
        return time.monotonic_ns() - self._start_ns

    @property
    def now_s(self) -> float:
        return self.now_ns / SECOND

    def begin(self, cluster: Cluster, kinds: tuple[type[Object], ...]) -> None:
        """Observe these kinds from now on."""
        server = _Server(cluster)
        self.chronicle = Chronicle(self.fleet, cast(Any, server), self.trace)
        for kind in kinds:
            cluster.watch(kind, self._observer(server, kind))
        if self.trace.keep_objects:
            self.dpu_clusters = DpuClusters(cluster, self._seen_in)

    def _seen_in(self, cluster: str, old: Object | None, new: Object | None) -> None:
        """A Node of a DPU cluster changed."""
        either = new or old
        if either is not None and old is not new:
            with self._lock:
                self.trace.object(self.now_ns, _op(old, new), cluster, either)

    def _observer(self, server: _Server, kind: type[Object]) -> Callable[[Object | None, Object | None], None]:
        def seen(old: Object | None, new: Object | None) -> None:
            if old is new:
                return
            either = new or old
            assert either is not None
            with self._lock:
                at = self.now_ns
                if isinstance(new, Dpu) and old is None:
                    self._meet(new)
                for observer in server.observers.get(kind, ()):
                    observer(old, new, at)
                self.trace.object(at, _op(old, new), "", either)
        return seen

    def _meet(self, dpu: Dpu) -> None:
        """A DPU that no fleet file told of."""
        name, host = dpu.metadata.name, dpu.spec.dpu_node_name
        if name not in self.trace.places and self.chronicle is not None:
            known = self.fleet.host.get(host)
            self.trace.place(name, known.rack if known is not None else "r1", host)
            self.chronicle.meet(name, host)

    def told(self, call: Call) -> None:
        """A backend's verb was answered."""
        with self._lock:
            verb = f"{call.cluster} {call.verb}" if call.cluster else call.verb
            if not call.kind and verb == "get":
                verb = "get_command"  # DMS Get, not an API server's
            self.latencies.setdefault(verb, deque(maxlen=LATEST)).append(call.seconds)
            if call.kind and call.verb not in ("get", "list"):
                self.trace.write(self.now_ns, call.controller, call.verb, call.cluster, call.kind, call.key.namespace,
                                 call.key.name, call.version, call.outcome)

    def device(self, change: str, host: str, dpu: str = "", detail: str = "") -> None:
        with self._lock:
            self.trace.device(self.now_ns, change, host, dpu, plain(detail))

    def fault(self, kind: str, target: str, began: bool) -> None:
        with self._lock:
            self.trace.fault(self.now_ns, kind, target, began)

    def locked(self) -> threading.RLock:
        """Held by whoever reads the trace while the run goes on."""
        return self._lock


def _op(old: Object | None, new: Object | None) -> str:
    """What a watch would call it."""
    return "DELETED" if new is None else "ADDED" if old is None else "MODIFIED"


def fleet_of(cluster: Cluster) -> Fleet:
    """The hosts that an installation's DPUNodes and Nodes name; their DPUs come with their DPU objects.

    Racks by the topology labels of Nodes, r1 without.
    """
    labels = {n.metadata.name: n.metadata.labels for kind in (DpuNode, Node)
              for n in cast(Any, cluster.cache.list(kind, None, None))}
    hosts = [Host(name=name, rack=_rack(found), index=i, ip="", cards=())
             for i, (name, found) in enumerate(sorted(labels.items()))]
    racks = dict.fromkeys(h.rack for h in hosts)
    return replace(_nowhere(), racks=tuple(Rack(r, math.inf) for r in racks), hosts=tuple(hosts))


def _rack(labels: Mapping[str, str]) -> str:
    return next((labels[label] for label in RACK_LABELS if labels.get(label)), "r1")


def _nowhere() -> Fleet:
    from twin.model import fleet_file
    return fleet_file.from_data({"apiVersion": "dpf-twin/v1", "name": "live", "hosts": [{"name": "none"}]})
