"""One live process: the controllers of `controllers.CONTROLLERS` on real backends, as `twin.sim.manager` builds them.

Managers keep what upstream's processes keep apart: API client with its rate limit, informers, memory. Nothing here
decides anything about DPUs.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from api.live_actors import ACTORS, GatedEvictor, Tools
from api.live_log import Log
from api.live_record import NEIGHBOURS, WATCHED, Recorder, fleet_of
from api.live_shadow import ShadowClusters, ShadowHands, ShadowKube, ShadowMemory, Would
from api.rehearse import recorded
from controllers import CONTROLLERS
from twin.actors.actor import Actor
from twin.backends.base import KubeApi, Settings
from twin.backends.bfb import LiveVolume
from twin.backends.dms import LiveDms
from twin.backends.kube import Cluster, LiveClusters, LiveKube, open_cluster
from twin.backends.lab.pods import LivePodVerbs
from twin.backends.pod_exec import LiveHostAgent
from twin.backends.wrap import Call, Ears, Wrapped, WrappedClusters, WrappedDms, WrappedKube
from twin.model.core import Secret
from twin.model.fleet import Fleet
from twin.model.meta import Key, Object
from twin.model.provisioning import DpuDevice
from twin.runtime.backends import Backends
from twin.runtime.backstage import Backstage, LiveMemory
from twin.runtime.lease import Elector, Rules
from twin.runtime.live import LiveRunner, NotLeading, Readers
from twin.runtime.reconcile import Controller, Reconciler, Result

LEASE: Final = "dpf-twin-live"
NEIGHBOURS_MANAGER: Final = "neighbours"
DRAIN_S: Final = 30.0
"""controller-runtime's graceful shutdown period."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to run and where."""

    kubeconfig: Path | None
    """None: the service account of the pod we run in."""
    context: str | None = None
    controllers: Sequence[Controller] = CONTROLLERS
    actors: tuple[str, ...] = ()
    """Neighbours to play, names of `api.live_actors.ACTORS`."""
    policies: frozenset[str] = frozenset()
    settings: Settings = field(default_factory=Settings)
    volume: Path = Path("/bfb")
    identity: str = ""
    rules: Rules = field(default_factory=Rules)
    shadow: bool = False
    """Decide and log, touch nothing."""
    lead: bool = True
    """False: no lease is asked for (shadow, tests)."""
    qps: float = 20.0
    burst: int = 30
    resync_s: float = 600.0
    record: frozenset[str] | None = None
    """What is kept in memory for a run folder; None: everything up to 1,000 DPUs."""
    fleet: Fleet | None = None
    """What the trace's places come from; None: the cluster's own objects."""
    extra_kinds: tuple[type[Object], ...] = NEIGHBOURS


@dataclass(slots=True, eq=False)
class LiveManager:
    """One of upstream's processes: its cluster connection, memory and runners."""

    name: str
    cluster: Cluster
    memory: LiveMemory
    readers: Readers
    kubes: list[LiveKube] = field(default_factory=list)
    runners: list[LiveRunner] = field(default_factory=list)


class Live:
    """`prepare` connects and syncs, `run` leads and works until `stop`; a `failure` says why it ended by itself."""

    def __init__(self, config: Config, log: Log) -> None:
        self.config = config
        self.log = log
        self.managers: dict[str, LiveManager] = {}
        self.failure: BaseException | None = None
        self.ready = False
        self.observers: list[Callable[[str, Key, float, float, Result | Exception], None]] = []
        self.requests: list[Callable[[str, str, float, int], None]] = []
        self.calls: list[Callable[[Call], None]] = []
        self._stop = threading.Event()
        self._backstage = Backstage(self._bug)
        self._would = Would(log)
        self.elector = Elector(Key(config.settings.namespace, LEASE), config.identity, config.rules)
        self.lease_cluster = self._open(0.0, 0)
        self._volume = LiveVolume(config.volume, deliver=self._backstage.deliver)
        self._dms = LiveDms(self._secret, locate=self._volume.locate, deliver=self._backstage.deliver)
        self._clusters = LiveClusters(component="dpf-twin", qps=config.qps, burst=config.burst, before=self._before)
        self._agents: dict[str, LiveHostAgent] = {}
        self.recorder: Recorder | None = None
        self._actors: list[Actor] = []

    # --- connecting

    def _open(self, qps: float, burst: int) -> Cluster:
        config = self.config
        if config.kubeconfig is not None:
            cluster = open_cluster(config.kubeconfig, config.context, qps=qps, burst=burst, say=self._heard)
        else:
            from twin.backends.kube_http import TokenBucket, in_cluster
            cluster = Cluster(in_cluster, limit=TokenBucket(qps, burst) if qps else None, say=self._heard)
        cluster.connection.observe = self._requested
        return cluster

    @property
    def cluster(self) -> Cluster:
        """The provisioning manager's view of the host cluster; the one that is asked for reports."""
        return next(iter(self.managers.values())).cluster

    def prepare(self) -> None:
        """Connect every manager and fill its caches. Raises: ApiError, ValueError."""
        for controller in self.config.controllers:
            manager = self.managers.get(controller.manager)
            if manager is None:
                manager = self.managers[controller.manager] = self._manager(controller.manager)
            self._add(manager, controller)
        if self.config.actors:
            self._play(self._manager(NEIGHBOURS_MANAGER))
        for manager in self.managers.values():
            for runner in manager.runners:
                for watch in runner.reconciler.watches:
                    manager.cluster.informer(watch.kind)
        self.ready = True

    def observe(self) -> None:
        """Begin the trace."""
        cluster = self.cluster
        for kind in (*WATCHED, *self.config.extra_kinds):
            cluster.informer(kind)
        kept = self.config.record
        if kept is None:
            kept = recorded("", len(cluster.cache.list(DpuDevice, None, None)))
        self.recorder = Recorder(self.config.fleet or fleet_of(cluster), keep="trace" in kept,
                                 objects="objects" in kept)
        self.recorder.begin(cluster, (*WATCHED, *self.config.extra_kinds))

    def _manager(self, name: str) -> LiveManager:
        cluster = self._open(self.config.qps, self.config.burst)
        cluster.connection.before = self._before
        memory = ShadowMemory(self._bug, self._would) if self.config.shadow else LiveMemory(self._bug)
        manager = LiveManager(name, cluster, memory, Readers())
        cluster.cache.touched = manager.readers.touched
        manager.memory.touched = manager.readers.touched
        manager.memory.read = manager.readers.read
        return manager

    def _add(self, manager: LiveManager, controller: Controller) -> None:
        reconciler = controller.make(self.backends(manager, controller.name))
        manager.runners.append(self._runner(reconciler, controller.workers, manager.readers))

    def _runner(self, reconciler: Reconciler, workers: int, readers: Readers | None) -> LiveRunner:
        name = reconciler.name
        return LiveRunner(
            reconciler, workers=workers, readers=readers, may_work=self.may_work,
            on_pass=lambda key, wait, took, outcome: self._passed(name, key, wait, took, outcome), on_bug=self._bug)

    def _play(self, manager: LiveManager) -> None:
        """The neighbours of `Config.actors`, in a process's place of their own."""
        self.managers[manager.name] = manager
        for stand_in in (a for a in ACTORS if a.name in self.config.actors):
            backends = self.backends(manager, stand_in.name)
            evictor = LivePodVerbs(manager.cluster)
            actor = stand_in.make(backends.kube, Tools(
                namespace=self.config.settings.namespace, clock=self._backstage,
                evictor=cast(Any, ShadowHands(evictor, stand_in.name, self._would)) if self.config.shadow
                else GatedEvictor(evictor, self._gate)))
            # What an actor waits for changes without a cache telling: each of its passes is run.
            runner = self._runner(cast(Any, actor), 1, None)
            actor.wake = runner.wake
            manager.runners.append(runner)
            self._actors.append(actor)

    def backends(self, manager: LiveManager, controller: str) -> Backends:
        """What one controller is given."""
        config, stage = self.config, self._backstage
        ears = Ears(self._gate, manager.readers.outside, self._told)
        kube, background = (LiveKube(manager.cluster, controller) for _ in range(2))
        kube.reads = manager.readers.read
        manager.kubes += [kube, background]
        agent = self._agent(manager)
        if config.shadow:
            would = self._would
            return Backends(
                kube=cast(KubeApi, ShadowKube(kube, controller, ears, would)),
                background=cast(KubeApi, ShadowKube(background, controller, ears, would)),
                clusters=ShadowClusters(self._clusters, controller, ears, would),
                dms=cast(Any, ShadowHands(self._dms, controller, would)),
                agent=cast(Any, ShadowHands(agent, controller, would)),
                volume=cast(Any, ShadowHands(self._volume, controller, would)),
                memory=manager.memory, clock=stage, policies=config.policies, settings=config.settings)
        return Backends(
            kube=cast(KubeApi, WrappedKube(kube, controller, ears)),
            background=cast(KubeApi, WrappedKube(background, controller, ears)),
            clusters=WrappedClusters(self._clusters, controller, ears),
            dms=cast(Any, WrappedDms(self._dms, controller, ears, stage, stage)),
            agent=cast(Any, Wrapped(agent, controller, ears, stage)),
            volume=cast(Any, Wrapped(self._volume, controller, ears, stage)),
            memory=manager.memory, clock=stage, policies=config.policies, settings=config.settings)

    def _agent(self, manager: LiveManager) -> LiveHostAgent:
        found = self._agents.get(manager.name)
        if found is None:
            found = self._agents[manager.name] = LiveHostAgent(manager.cluster, deliver=self._backstage.deliver)
        return found

    def _secret(self, key: Key) -> Mapping[str, str]:
        found = self.cluster.cache.get(Secret, key)
        return found.data if found is not None else LiveKube(self.cluster).read_live(Secret, key).data

    # --- working

    def may_work(self) -> bool:
        return not self.config.lead or self.elector.may_work(time.monotonic())

    def _gate(self) -> None:
        """Before every effect. Raises: NotLeading."""
        if not self.may_work():
            raise NotLeading("the lease is lost: nothing more is written")

    def _before(self, method: str) -> None:
        """Once more when a request has waited for its turn, maybe while the lease went. Raises: NotLeading."""
        if method != "GET":
            self._gate()

    def run(self) -> None:
        """Wait for the lease, work until `stop` or a failure, drain, give the lease back."""
        try:
            if self.config.lead and not self._lead():
                return
            self.log("leading", identity=self.config.identity)
            if self.recorder is None:
                self.observe()
            for manager in self.managers.values():
                for runner in manager.runners:
                    runner.listen(manager.cluster)
                    runner.start()
            for actor in self._actors:
                actor.start()
            self._backstage.call_in(self.config.resync_s, self._resync)
            self._stay()
        finally:
            self._drain()

    def stop_in(self, seconds: float) -> None:
        """Stop after so long."""
        self._backstage.call_in(seconds, self.stop)

    def stop(self) -> None:
        """Begin to end; harmless when repeated and from signal handlers."""
        self._stop.set()

    def _lead(self) -> bool:
        """Wait until we lead; False when told to stop before."""
        said = ""
        while not self._stop.is_set():
            if self._turn():
                return True
            if self.elector.holder not in ("", said):
                said = self.elector.holder
                self.log("waiting for the lease", holder=said)
            self._stop.wait(self.config.rules.retry_s)
        return False

    def _stay(self) -> None:
        while not self._stop.wait(self.config.rules.retry_s if self.config.lead else None):
            if not self._turn():
                self._bug(NotLeading("the lease is lost"))

    def _turn(self) -> bool:
        kube = LiveKube(self.lease_cluster, "dpf-twin")
        return self.elector.turn(cast(KubeApi, kube), time.monotonic(), time.time())

    def _resync(self) -> None:
        for manager in self.managers.values():
            manager.cluster.cache.resync()
        self._backstage.call_in(self.config.resync_s, self._resync)

    def _drain(self) -> None:
        """Nothing new begins; passes under way may end; then the lease goes back."""
        self.ready = False
        runners = [r for m in self.managers.values() for r in m.runners]
        for runner in runners:
            runner.stop()
        deadline = time.monotonic() + DRAIN_S
        unfinished = [r.name for r in runners if not r.drain(deadline if not self.failure else time.monotonic() + 1.0)]
        if unfinished:
            self.log("passes did not end in time", controllers=unfinished)
        for manager in self.managers.values():
            manager.memory.drop()
            for kube in manager.kubes:
                kube.close()
        if self.config.lead and not unfinished:
            self.elector.release(cast(KubeApi, LiveKube(self.lease_cluster)), time.time())
        for agent in self._agents.values():
            agent.close()
        self._dms.close()
        self._volume.close()
        self._backstage.stop()
        self.log("stopped")

    def close(self) -> None:
        """End every connection."""
        self._clusters.close()
        for manager in self.managers.values():
            manager.cluster.close()
        self.lease_cluster.close()

    # --- what is told

    def _bug(self, error: BaseException) -> None:
        """Something nobody expected, or the lease is lost: the process ends, as a Go program panics."""
        if self.failure is None:
            self.failure = error
            if not isinstance(error, NotLeading):
                self.log("bug", error=f"{type(error).__name__}: {error}",
                         trace="".join(traceback.format_exception(error)))
        self._stop.set()

    def _heard(self, line: str) -> None:
        self.log("informer", said=line)

    def _requested(self, verb: str, path: str, seconds: float, code: int) -> None:
        for told in self.requests:
            told(verb, path, seconds, code)

    def _told(self, call: Call) -> None:
        if self.recorder is not None:
            self.recorder.told(call)
        for told in self.calls:
            told(call)

    def _passed(self, controller: str, key: Key, wait: float, took: float, outcome: Result | Exception) -> None:
        error = str(outcome) if isinstance(outcome, Exception) else outcome.error
        if error:
            self.log("Reconciler error", controller=controller, object=str(key), error=error)
        for told in self.observers:
            told(controller, key, wait, took, outcome)
