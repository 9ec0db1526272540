"""A cluster for actor tests: a simulated API server, machines one can switch, and the actors a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twin.actors.actor import Actor
from twin.actors.hosts import PlainPodVerbs
from twin.backends.base import KubeApi
from twin.model.core import Namespace, Node, NodeStatus, Pod, PodSpec, PodStatus, ReplicaSet, ReplicaSetSpec
from twin.model.kinds import KINDS
from twin.model.meta import Condition, Key, Object, ObjectMeta, OwnerReference, condition, replace
from twin.sim.client import Cache, SimKube
from twin.sim.clock import SECOND, SimClock, TwinEnvironment, ns
from twin.sim.kube import ApiServer
from twin.sim.runner import Meter, Runner
from twin.sim.trace import Trace

T = TypeVar("T", bound=Object)
A = TypeVar("A", bound=Actor)

SPACE = "dpf-operator-system"

SECONDS: dict[str, float] = {
    "pod-start": 12, "job-start": 5, "dms-init": 10, "cert-issue": 2, "nfd-period": 60, "node-lifecycle-grace": 40,
    "drain-evict-pod": 2, "drain-retry": 5, "drain-timeout": 300, "maintenance-step": 1, "kamaji-control-plane": 75,
    "manual-reboot": 900, "operator-response": 600, "custom-action-job": 30, "reboot-script-job": 20,
    "heartbeat": 10, "dms-startup-probe": 10, "pod-eviction-grace": 300, "keepalived-start": 6,
}


@dataclass
class Card:
    pci_address: str
    pf0_name: str = "ens1f0np0"
    number_of_pfs: int = 1
    psid: str = "MT_0000000884"
    device_id: str = "a2dc"


@dataclass
class Machine:
    """A host whose every fact a test may set; `Machines.changed` announces it. `log` is what was done to it."""

    name: str
    address: str = "10.0.0.21"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Any] = ()
    up: bool = True
    boot: int = 0
    cards: Sequence[Card] = (Card("0000-2b-00"),)
    rshim_taken: bool = False
    oob_bridge: bool = True
    volume_mounted: bool = True
    log: list[str] = field(default_factory=list)

    @property
    def boot_id(self) -> str:
        return str(self.boot)

    def configure_vf(self) -> None:
        self.log.append("configure-vf")

    def start_dmsd(self) -> None:
        self.log.append("start dmsd")

    def stop_dmsd(self) -> None:
        self.log.append("stop dmsd")


class Machines:
    def __init__(self, *names: str) -> None:
        self.all = {n: Machine(n, address=f"10.0.{(20 + i) // 250}.{(20 + i) % 250}") for i, n in enumerate(names, 1)}
        self._told: list[Callable[[str], None]] = []

    def names(self) -> Sequence[str]:
        return list(self.all)

    def machine(self, name: str) -> Machine | None:
        return self.all.get(name)

    def subscribe(self, changed: Callable[[str], None]) -> None:
        self._told.append(changed)

    def changed(self, name: str) -> None:
        for tell in self._told:
            tell(name)


class Town:
    """`add` an actor, `run` for some seconds, look at objects or at the writes that were made."""

    def __init__(self, *hosts: str, collapse: bool = True, lag_s: float = 0.0, **seconds: float) -> None:
        self.env = TwinEnvironment()
        self.trace = Trace(keep=True)
        self.server = ApiServer(self.env, self.trace, lag_ns=ns(lag_s))
        self.clock = SimClock(self.env)
        self.seconds = {**SECONDS, **{k.replace("_", "-"): v for k, v in seconds.items()}}
        self.draws: list[tuple[str, ...]] = []
        self.machines = Machines(*hosts)
        self.cache = Cache(self.server)
        self.runners: list[Runner] = []
        self._collapse = collapse
        for name in ("default", "kube-system", SPACE):
            self.create(Namespace(metadata=ObjectMeta(name=name)))

    def durations(self, operation: str, *entity: str, **factors: str) -> float:
        self.draws.append((operation, *entity))
        return self.seconds[operation]

    def client(self, name: str, cache: Cache | None = None) -> tuple[KubeApi, Meter]:
        meter = Meter(name)
        return SimKube(cache or self.cache, meter), meter

    def verbs(self, kube: KubeApi) -> PlainPodVerbs:
        return PlainPodVerbs(kube, lambda key: self.server.kill(key, "kubelet"))

    def add(self, make: Callable[[KubeApi], A]) -> A:
        kube, meter = self.client("actor")
        actor = make(kube)
        meter.controller = actor.name
        runner = Runner(self.env, actor, meter, index=len(self.runners), collapse=self._collapse)  # type: ignore[arg-type]
        self.runners.append(runner)
        actor.wake = runner.wake
        for watch in actor.watches:
            self.cache.watch(runner, actor, watch)  # type: ignore[arg-type]
        actor.start()
        return actor

    # --- time

    @property
    def now_s(self) -> float:
        return self.env.now / SECOND

    def run(self, seconds: float) -> None:
        self.env.run(until=self.env.now + ns(seconds))

    def switch(self, name: str, **facts: Any) -> None:
        """Change facts of a machine and say so."""
        for fact, value in facts.items():
            setattr(self.machines.all[name], fact, value)
        self.machines.changed(name)

    def reboot(self, name: str, seconds: float) -> None:
        """Down now, up again (with a new boot id) after so long."""
        self.switch(name, up=False)
        self.run(seconds)
        self.switch(name, up=True, boot=self.machines.all[name].boot + 1)

    # --- objects

    def create(self, obj: T) -> T:
        return self.server.create(obj, "test", self.env.now)

    def get(self, kind: type[T], name: str, space: str = SPACE) -> T:
        return self.server.get(kind, Key(space if kind.NAMESPACED else "", name))

    def find(self, kind: type[T], name: str, space: str = SPACE) -> T | None:
        return self.server.find(kind, Key(space if kind.NAMESPACED else "", name))

    def all(self, kind: type[T]) -> list[T]:
        return list(self.server.table(kind).values())  # type: ignore[arg-type]

    def update(self, obj: Object, **changes: Any) -> None:
        self.server.update(replace(obj, **changes), "test", self.env.now)

    def delete(self, kind: type[Object], name: str, space: str = SPACE) -> None:
        self.server.delete(kind, Key(space if kind.NAMESPACED else "", name), "test", self.env.now)

    def writes(self, kind: str = "") -> list[tuple[float, str, str]]:
        """(seconds, verb, kind/name) of every write since the start, without those of tests."""
        return [(w.t_s, w.verb, f"{w.kind}/{w.name}") for w in self.trace.writes()
                if w.controller != "test" and (not kind or w.kind == kind)]

    def node(self, name: str, **changes: Any) -> Node:
        """A Ready Node without a machine."""
        return self.create(Node(metadata=ObjectMeta(name=name, labels=changes.pop("labels", {})), status=NodeStatus(
            conditions=(Condition(type="Ready", status="True", reason="KubeletReady"),)), **changes))

    def pod(self, name: str, node: str = "", *, ready: bool = False, labels: Mapping[str, str] | None = None,
            controller: str = "", owner_uid: str = "", **spec: Any) -> Pod:
        owners: tuple[OwnerReference, ...] = ()
        if controller:
            cls = KINDS[controller]
            owner = next((o for o in self.server.table(cls).values() if o.metadata.uid == owner_uid), None)
            meta = ObjectMeta(namespace=SPACE, name=f"owner-of-{name}")
            one = ReplicaSet(metadata=meta, spec=ReplicaSetSpec(replicas=1))
            owners = ((owner or self.create(one if cls is ReplicaSet else cls(metadata=meta))).owner_reference(),)
        status = PodStatus(phase="Running", conditions=(Condition(type="Ready", status="True"),)) if ready else (
            PodStatus(phase="Pending"))
        return self.create(Pod(
            metadata=ObjectMeta(namespace=SPACE, name=name, labels=labels or {}, owner_references=owners),
            spec=PodSpec(node_name=node, containers=({"name": "main", "image": "i"},), **spec), status=status))


def ready_of(obj: Node | Pod) -> str:
    found = condition(obj.status.conditions, "Ready")
    return found.status if found is not None else ""
