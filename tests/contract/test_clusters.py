"""KubeClusters and Clock: the same tests on the simulated and on the live ones."""

from __future__ import annotations

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from twin.backends.base import ApiError, Clock, KubeApi, KubeClusters, Operation, Unavailable
from twin.backends.kube import LiveClusters
from twin.backends.lab.control_plane import ControlPlane
from twin.model.core import ConfigMap, Namespace
from twin.model.meta import Key, ObjectMeta
from twin.runtime.backstage import Backstage
from twin.sim.client import ApiCosts
from twin.sim.clock import SimClock as VirtualClock
from twin.sim.clock import TwinEnvironment
from twin.sim.kube import ApiServer
from twin.sim.manager import SimClusters
from twin.sim.runner import Meter
from twin.sim.trace import Trace

PLACE = Key("default", "contract")


class Rig:
    """Kubeconfigs: of a cluster that answers, of one that is down, and with a credential that is not known any more."""

    clusters: KubeClusters
    good: str
    stale: str
    down: str
    down_url: str

    def close(self) -> None: ...


class SimRig(Rig):
    good, stale, down, down_url = "good", "stale", "down", "https://10.0.0.9:6443"

    def __init__(self) -> None:
        env = TwinEnvironment()
        alive = ApiServer(env, Trace(), "dpu-1")
        dead = ApiServer(env, Trace(), "dpu-2", url=self.down_url)
        for server in (alive, dead):
            server.create(Namespace(metadata=ObjectMeta(name="default")), "test", 0)
        alive.revoked[self.stale] = None
        dead.down = True
        around = SimpleNamespace(clusters={"good": alive, "stale": alive, "down": dead}, dpu_costs=ApiCosts())
        self.clusters = SimClusters(cast(Any, around), {}, Meter("test"))


class LiveRig(Rig):
    def __init__(self, plane: ControlPlane) -> None:
        self.good = plane.kubeconfig_text
        self.taken = socket.socket()  # bound and not listening: it refuses
        self.taken.bind(("127.0.0.1", 0))
        self.down_url = f"https://127.0.0.1:{self.taken.getsockname()[1]}"
        config = yaml.safe_load(plane.kubeconfig_text)
        config["clusters"][0]["cluster"]["server"] = self.down_url
        self.down = yaml.safe_dump(config)
        config = yaml.safe_load(plane.kubeconfig_text)
        config["users"][0]["user"] = {"token": "not.known.anymore"}
        self.stale = yaml.safe_dump(config)
        self.clusters = self.live = LiveClusters()

    def close(self) -> None:
        self.live.close()
        self.taken.close()


@pytest.fixture(params=["sim", pytest.param("live", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = SimRig() if request.param == "sim" else LiveRig(request.getfixturevalue("dpu_plane"))
    yield rig
    rig.close()


def config_map() -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(namespace=PLACE.namespace, name=PLACE.name))


REQUESTS: dict[str, Callable[[KubeApi], object]] = {
    "Get /version": lambda kube: kube.version(),
    "Get /api/v1/namespaces/default/configmaps/contract": lambda kube: kube.read_live(ConfigMap, PLACE),
    "Post /api/v1/namespaces/default/configmaps": lambda kube: kube.create(config_map()),
    "Patch /api/v1/namespaces/default/configmaps/contract": lambda kube: kube.patch(
        ConfigMap, PLACE, {"data": {"a": "b"}}),
    "Delete /api/v1/namespaces/default/configmaps/contract": lambda kube: kube.delete(ConfigMap, PLACE),
}


def test_a_kubeconfig_leads_to_its_cluster(rig: Rig) -> None:
    kube = rig.clusters.connect(rig.good)
    assert kube.version()["gitVersion"].startswith("v1.")
    made = kube.create(config_map())
    assert rig.clusters.connect(rig.good).read_live(ConfigMap, PLACE).metadata.uid == made.metadata.uid
    kube.delete(ConfigMap, PLACE)


def test_what_is_no_kubeconfig_is_said_at_once(rig: Rig) -> None:
    with pytest.raises(ValueError) as unusable:
        rig.clusters.connect("")
    assert str(unusable.value) == ("invalid configuration: no configuration has been provided, "
                                   "try setting KUBERNETES_MASTER environment variable")


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_cluster_that_is_down_shows_at_the_first_verb_and_names_the_request(rig: Rig, request_: str) -> None:
    kube = rig.clusters.connect(rig.down)
    with pytest.raises(Unavailable) as lost:
        REQUESTS[request_](kube)
    method, path = request_.split()
    where = rig.down_url.removeprefix("https://")
    assert str(lost.value) == f'{method} "{rig.down_url}{path}": dial tcp {where}: connect: connection refused'
    assert not lost.value.maybe_landed


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_credential_that_is_not_known_any_more_is_told_from_a_server_that_is_down(rig: Rig, request_: str) -> None:
    kube = rig.clusters.connect(rig.stale)
    with pytest.raises(ApiError) as unknown:
        REQUESTS[request_](kube)
    assert (unknown.value.code, unknown.value.reason) == (401, "Unauthorized")
    # client-go reads the answer's Status, except where it asks for raw text.
    assert str(unknown.value) == ("the server has asked for the client to provide credentials"
                                  if request_ == "Get /version" else "Unauthorized")


# --- Clock


class Time(ABC):
    """A clock, and a way to let it run."""

    clock: Clock

    @abstractmethod
    def wait(self, op: Operation) -> None: ...

    def close(self) -> None:  # noqa: B027  most have nothing to close
        ...


class Virtual(Time):
    def __init__(self) -> None:
        self.env = TwinEnvironment()
        self.clock = VirtualClock(self.env)

    def wait(self, op: Operation) -> None:
        while not op.finished:
            self.env.step()


class Real(Time):
    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.clock = self.stage = Backstage(self.failures.append)

    def wait(self, op: Operation) -> None:
        deadline = time.monotonic() + 90
        while not op.finished:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def close(self) -> None:
        self.stage.stop()
        assert self.failures == []


@pytest.fixture(name="now", params=[Virtual, Real], ids=["sim", "live"])
def _now(request: pytest.FixtureRequest) -> Iterator[Time]:
    now: Time = request.param()
    yield now
    now.close()


def test_a_sleep_ends_after_its_time_and_tells_once(now: Time) -> None:
    told: list[Operation] = []
    began = now.clock.now()
    op = now.clock.sleep(0.02)
    op.callbacks.append(told.append)
    assert not op.finished
    now.wait(op)
    assert now.clock.now() - began >= 0.0199
    assert (op.error, op.value, told) == (None, None, [op])


def test_sleeps_end_in_the_order_of_their_times(now: Time) -> None:
    ended: list[str] = []
    late, early = now.clock.sleep(0.06), now.clock.sleep(0.0)
    late.callbacks.append(lambda op: ended.append("late"))
    early.callbacks.append(lambda op: ended.append("early"))
    now.wait(late)
    assert early.finished
    assert ended[-1] == "late"


def test_a_clock_tells_seconds_since_the_epoch(now: Time) -> None:
    assert now.clock.now() > 1.7e9
