"""A controller process in virtual time: its controllers, caches, memory, rate limit; it can end and start again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from twin.backends.base import Dms, HostAgent, KubeApi, KubeClusters, Settings
from twin.model.meta import Key
from twin.runtime.backends import Backends
from twin.runtime.memory import Memory
from twin.runtime.reconcile import Controller, Reconciler
from twin.sim.client import ApiCosts, Cache, RateLimit, SimKube
from twin.sim.clock import SimClock, TwinEnvironment
from twin.sim.kube import ApiServer
from twin.sim.runner import Meter, Runner, touch
from twin.sim.volume import SimVolume


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process finds around it. The callables make a client that charges the given meter."""

    env: TwinEnvironment
    host_cluster: ApiServer
    clusters: dict[str, ApiServer]
    """DPU clusters by kubeconfig text."""
    dms: Callable[[Meter], Dms]
    agent: Callable[[Meter], HostAgent]
    volume: SimVolume
    host_costs: ApiCosts
    dpu_costs: ApiCosts
    qps: float
    burst: int
    pass_ns: int
    resync_ns: int
    settings: Settings
    policies: frozenset[str]
    collapse: bool
    on_pass: Callable[[str, Key, int, int, int], None]
    on_error: Callable[[str, Key, str], None]
    on_effect: Callable[[str, str, bool], None] | None
    """Fault hook: (process, effect, is it over); may raise Crash."""


class SimClusters:
    """`KubeClusters` for one controller: kubeconfig text -> client. Every client starts with a full rate limit."""

    def __init__(self, around: Surroundings, caches: dict[str, Cache], meter: Meter) -> None:
        self._around = around
        self._caches = caches
        self._meter = meter

    def connect(self, kubeconfig: str) -> KubeApi:
        server = self._around.clusters.get(kubeconfig)
        if server is None:
            raise ValueError("invalid configuration: no configuration has been provided, "
                             "try setting KUBERNETES_MASTER environment variable")
        cache = self._caches.get(kubeconfig)
        if cache is None:
            cache = self._caches[kubeconfig] = Cache(server)
        return SimKube(cache, self._meter, self._around.dpu_costs, credential=kubeconfig)


class Manager:
    """One process. `start` lists and watches; `stop` forgets everything; both may be repeated."""

    def __init__(self, around: Surroundings, name: str, controllers: Sequence[Controller], index: int) -> None:
        self.name = name
        self.controllers = tuple(controllers)
        self.running = False
        self.wanted = True
        """Is it part of the installation? If not it does not start."""
        self.starts = 0
        self.runners: dict[str, Runner] = {}
        self.retired: list[Runner] = []
        """Runners of earlier lives of this process, for their figures."""
        self.memory = Memory()
        self.caches: dict[str, Cache] = {}
        self.on_effect = around.on_effect
        self._meters: list[Meter] = []
        self._around = around
        self._index = index

    def start(self) -> None:
        if not self.wanted:
            return
        around = self._around
        self.running = True
        self.starts += 1
        self.memory = Memory()
        self.caches = {"": Cache(around.host_cluster)}
        limit = RateLimit(around.qps, around.burst)
        tokens: dict[Any, dict[Any, None]] = {}
        self.memory.touched = lambda token: touch(tokens, token)
        reconcilers: list[tuple[Runner, Reconciler]] = []
        meters: list[Meter] = []
        self._meters = meters
        for i, controller in enumerate(self.controllers):
            meter, background = Meter(controller.name), Meter(controller.name, billed=False)
            meters += (meter, background)
            reconciler = controller.make(self._backends(meter, background, limit, tokens))
            runner = Runner(
                around.env, reconciler, meter, index=self._index + i, workers=controller.workers,
                collapse=around.collapse, pass_ns=around.pass_ns,
                on_crash=self.crash, on_pass=self._passed(controller.name), on_error=self._failed(controller.name))
            self.runners[controller.name] = runner
            reconcilers.append((runner, reconciler))
        self.listen(self.on_effect)
        for runner, reconciler in reconcilers:
            for watch in reconciler.watches:
                self.caches[""].watch(runner, reconciler, watch)
        if around.resync_ns:
            around.env.call_at(around.resync_ns, self._resync, self.starts)

    def listen(self, hook: Callable[[str, str, bool], None] | None) -> None:
        """From now on this fault hook hears of every effect of this process."""
        self.on_effect = hook
        for meter in self._meters:
            meter.on_effect = None if hook is None else partial(hook, self.name)

    def stop(self) -> None:
        """The process is gone: memory, caches and queues with it. What it started in the world goes on."""
        if not self.running:
            return
        self.running = False
        for runner in self.runners.values():
            runner.stop()
            self.retired.append(runner)
        self.runners = {}
        for cache in self.caches.values():
            cache.close()
        self.caches = {}
        self.memory.drop()

    def crash(self) -> None:
        """An injected crash: the process ends here and is started again at once."""
        self.stop()
        self._around.env.call_at(0, self.start)

    def all_runners(self, name: str) -> Iterable[Runner]:
        yield from (r for r in self.retired if r.meter.controller == name)
        if name in self.runners:
            yield self.runners[name]

    def _backends(self, meter: Meter, background: Meter, limit: RateLimit,
                  tokens: dict[Any, dict[Any, None]]) -> Backends:
        around, cache = self._around, self.caches[""]
        return Backends(
            kube=SimKube(cache, meter, around.host_costs, limit),
            background=SimKube(cache, background, around.host_costs, limit),
            clusters=self._clusters(meter), dms=around.dms(meter), agent=around.agent(meter),
            volume=around.volume.client(meter), memory=_Remembered(self.memory, meter, tokens, self.crash),
            clock=SimClock(around.env), policies=around.policies, settings=around.settings)

    def _clusters(self, meter: Meter) -> KubeClusters:
        return SimClusters(self._around, self.caches, meter)

    def _passed(self, controller: str) -> Callable[[Key, int, int, int], None]:
        on_pass = self._around.on_pass
        return partial(on_pass, controller)

    def _failed(self, controller: str) -> Callable[[Key, str], None]:
        on_error = self._around.on_error
        return lambda key, message: on_error(controller, key, message)

    def _resync(self, starts: int) -> None:
        if self.running and starts == self.starts:
            self.caches[""].resync()
            self._around.env.call_at(self._around.resync_ns, self._resync, starts)


class _Remembered(Memory):
    """The process's memory as one controller sees it: what a pass asks is noted in that controller's meter."""

    def __init__(self, shared: Memory, meter: Meter, tokens: dict[Any, dict[Any, None]],
                 crashed: Callable[[], None]) -> None:
        super().__init__()
        self.crashed = crashed
        self._values = shared._values
        self._tasks = shared._tasks
        self._running = shared._running
        self.touched = shared.touched
        self.read = lambda token: meter.read(tokens, token)
        self.resuming = self._outside
        self._meter = meter

    def _outside(self) -> None:
        """What a task does between passes starts from its own moment, not from what the last pass cost."""
        self._meter.cost_ns = 0

    def start(self, token: Any, body: Any, attempt: int = 0) -> Any:
        self._meter.effects += 1
        return super().start(token, body, attempt)

    def forget(self, token: Any) -> None:
        if token in self._tasks:
            self._meter.effects += 1
        super().forget(token)
