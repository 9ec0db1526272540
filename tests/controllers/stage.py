"""A small world for controller tests: the simulated API server and only the controllers a test asks for."""

from __future__ import annotations

from typing import Any, TypeVar

from controllers import CONTROLLERS
from controllers.provisioning.webhooks import WEBHOOKS
from twin.backends.base import Settings
from twin.model import fleet_file
from twin.model.core import Event
from twin.model.meta import Key, Object, ObjectMeta, replace
from twin.model.timing import Timing
from twin.model.timing_profile import default
from twin.sim.admission import Webhooks
from twin.sim.clock import ns
from twin.sim.neighbours import bring_up
from twin.sim.runner import Runner, touch
from twin.sim.trace import Trace, Write
from twin.sim.world import Options, World

T = TypeVar("T", bound=Object)

SPACE = "dpf-operator-system"
FIXED = default().fixed()
URL = "http://bfb.example.com/bf-bundle-3.0.0.bfb"


class Stage:
    """A started world. `run(seconds)` lets time pass."""

    def __init__(self, *controllers: str, hosts: int = 1, dpus: int = 1, policies: tuple[str, ...] = (), seed: int = 0,
                 host: dict[str, Any] | None = None, servers: list[dict[str, Any]] | None = None,
                 start: bool = True, collapse: bool = True) -> None:
        fleet = fleet_file.from_data({
            "apiVersion": "dpf-twin/v1",
            "generate": {"racks": 1, "hosts_per_rack": hosts, "dpus_per_host": dpus, "host": host or {}},
            "image_servers": servers or [
                {"name": "bfb", "url": "http://bfb.example.com/", "bandwidth_bytes_per_s": "100MB"}],
        })
        self.world = World(
            fleet, Timing(FIXED, seed), Trace(keep=True), [c for c in CONTROLLERS if c.name in controllers],
            webhooks=Webhooks(WEBHOOKS), policies=policies, settings=Settings(seed=seed),
            options=Options(collapse=collapse))
        if start:
            self.world.start(bring_up)
        else:
            for name in ("default", SPACE):
                self.world.ensure_namespace(name)

    # --- time

    @property
    def now_s(self) -> float:
        return self.world.env.now_s

    def run(self, seconds: float) -> None:
        self.world.env.run(until=self.world.env.now + ns(seconds))

    # --- objects

    def create(self, obj: T) -> T:
        return self.world.host_cluster.create(obj, "test", self.world.env.now)

    def get(self, kind: type[T], name: str, namespace: str = SPACE) -> T | None:
        return self.world.host_cluster.find(kind, Key(namespace if kind.NAMESPACED else "", name))

    def the(self, kind: type[T], name: str, namespace: str = SPACE) -> T:
        found = self.get(kind, name, namespace)
        assert found is not None, f"there is no {kind.KIND} {name}"
        return found

    def update(self, obj: Object) -> None:
        self.world.host_cluster.update(obj, "test", self.world.env.now)

    def respec(self, kind: type[T], name: str, **changes: Any) -> None:
        obj = self.the(kind, name)
        self.update(replace(obj, spec=replace(obj.spec, **changes)))  # type: ignore[attr-defined]

    def restatus(self, kind: type[T], name: str, status: Any) -> None:
        obj = self.the(kind, name)
        self.world.host_cluster.update(
            replace(obj, status=status), "test", self.world.env.now, status=True)  # type: ignore[call-arg]

    def relabel(self, kind: type[T], name: str, labels: dict[str, str]) -> None:
        obj = self.the(kind, name)
        self.update(replace(obj, metadata=replace(obj.metadata, labels=labels)))

    def delete(self, kind: type[T], name: str) -> None:
        key = Key(SPACE if kind.NAMESPACED else "", name)
        self.world.host_cluster.delete(kind, key, "test", self.world.env.now)

    def names(self, kind: type[T]) -> list[str]:
        return sorted(key.name for key in self.world.host_cluster.table(kind))

    def dpu_cluster_down(self, name: str, down: bool) -> None:
        """The API server of this DPUCluster stops answering, or answers again."""
        server = self.world.dpu_clusters[Key(SPACE, name)]
        server.down = down
        touch(server.readers, "up")

    # --- what happened

    def events(self, about: str = "") -> list[tuple[str, str, str, int]]:
        """(type, reason, message, count) of the Kubernetes Events about this object, in order."""
        found = [e for e in self.world.objects(Event) if not about or e.involved_object.name == about]
        return [(e.type, e.reason, e.message, e.count) for e in found]

    def runner(self, controller: str) -> Runner:
        for manager in self.world.managers.values():
            if controller in manager.runners:
                return manager.runners[controller]
        raise KeyError(controller)

    def writes(self, controller: str) -> list[str]:
        """What a controller has written, Kubernetes Events aside: `update DPU/name`, refused writes too."""
        return [f"{w.verb} {w.kind}/{w.name}" for w in self.world.trace.kept()
                if isinstance(w, Write) and w.controller == controller and w.kind != "Event"]

    def error_of(self, controller: str, key: str) -> str:
        return self.world.errors.get((controller, key), (0, ""))[1]


def meta(name: str, namespace: str = SPACE, **more: Any) -> ObjectMeta:
    return ObjectMeta(name=name, namespace=namespace, **more)
