"""HostAgent: the same tests on the simulated pod exec and on one through a real API server to a host's kubelet."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dms_world import World

from twin.backends.base import HostAgent, Operation, RpcError
from twin.backends.kube import LiveKube
from twin.backends.lab.certificates import authority, issue
from twin.backends.lab.kubelet import Kubelet, NoContainer
from twin.backends.lab.pods import LivePodVerbs
from twin.backends.pod_exec import LiveHostAgent
from twin.model import dms_commands as commands
from twin.model.core import Node, Pod, PodSpec
from twin.model.meta import Key, ObjectMeta
from twin.sim.paced import PacedWorld
from twin.sim.personality import HostPersonality
from twin.sim.runner import Meter
from twin.sim.volume import File

CONTENT = b"what the controller wrote"


class Rig(ABC):
    """Two hosts; the DMS pod of the first is `pod`. The volume holds `/bfb/a.cfg` with `CONTENT`."""

    agent: HostAgent
    pod: Key

    def __init__(self) -> None:
        self.world = World()
        self.host = self.world.hosts.hosts[self.world.names[0]]
        self.dpu = self.host.dpus[0]

    @abstractmethod
    def do(self, change: Callable[[], Any]) -> None: ...

    @abstractmethod
    def run(self, *command: str, pod: Key | None = None) -> str: ...

    def close(self) -> None:  # noqa: B027  most have nothing to close
        ...


class SimRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.agent = self.world.dms.client(Meter("test"))
        self.pod = Key("dpf-operator-system", f"{self.host.name}-dms")
        self.world.volume.put("/bfb/a.cfg", File("/bfb/a.cfg", len(CONTENT), content=CONTENT))

    def do(self, change: Callable[[], Any]) -> None:
        change()

    def run(self, *command: str, pod: Key | None = None) -> str:
        op = self.agent.execute(pod or self.pod, command)
        while not op.finished:
            self.world.env.step()
        return answer(op)


class LiveRig(Rig):
    """LiveHostAgent -> API server -> an emulated kubelet on the host's address -> the same world, at its own pace."""

    def __init__(self, kube: LiveKube, space: str, folder: Path) -> None:
        super().__init__()
        (folder / "a.cfg").write_bytes(CONTENT)
        self.pod = Key(space, f"{self.host.name}-dms")
        self.paced = PacedWorld(self.world.env, time.monotonic, speed=1000.0)
        self.person = HostPersonality(self.paced, self.world.dms, self.host.name, lambda file: None, folder)
        address = "127.1.76.1"
        self.kubelet = Kubelet(address, issue(authority("k"), "kubelet", addresses=(address,)), self.execute)
        self.kubelet.start()
        self.agent = self.live = LiveHostAgent(kube.cluster)
        node = f"{self.host.name}-{space}"
        kube.create(Node(metadata=ObjectMeta(name=node)))
        kube.patch(Node, Key("", node), {"status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}}, status=True)
        pod = kube.create(Pod(metadata=ObjectMeta(name=self.pod.name, namespace=space),
                              spec=PodSpec(containers=({"name": "dms", "image": "x"},))))
        LivePodVerbs(kube.cluster).bind(pod, node)

    def execute(self, pod: Key, container: str, command: Sequence[str]) -> tuple[int, str]:
        found = self.person.execute(pod, command) if container == "dms" else None
        if found is None:
            raise NoContainer
        return found

    def do(self, change: Callable[[], Any]) -> None:
        self.paced.call(change)

    def run(self, *command: str, pod: Key | None = None) -> str:
        op = self.agent.execute(pod or self.pod, command)
        deadline = time.monotonic() + 90
        while not op.finished:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return answer(op)

    def close(self) -> None:
        self.live.close()
        self.kubelet.stop()
        self.paced.stop()


def answer(op: Operation) -> str:
    if op.error is not None:
        raise op.error
    return str(op.value)


@pytest.fixture(params=["sim", pytest.param("live", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "sim":
        yield SimRig()
        return
    rig = LiveRig(request.getfixturevalue("kube"), request.getfixturevalue("space"), tmp_path)
    yield rig
    rig.close()


def refusal(rig: Rig, *command: str, pod: Key | None = None) -> tuple[str, str]:
    with pytest.raises(RpcError) as refused:
        rig.run(*command, pod=pod)
    return refused.value.code, str(refused.value)


def test_a_command_answers_what_it_prints(rig: Rig) -> None:
    rig.do(lambda: rig.world.dms.start(rig.host.name))
    assert rig.run("md5sum", "/bfb/a.cfg") == f"{hashlib.md5(CONTENT).hexdigest()}  /bfb/a.cfg\n"
    assert rig.dpu.card.opn in rig.run(*commands.query_card(rig.dpu.card.pci).split())


def test_a_command_that_fails_says_its_exit_code_alone(rig: Rig) -> None:
    rig.do(lambda: rig.world.dms.start(rig.host.name))
    assert refusal(rig, "md5sum", "/bfb/none") == ("UNKNOWN", "command terminated with exit code 1")
    assert refusal(rig, "rm", "-rf", "/") == ("UNKNOWN", "command terminated with exit code 127")


def test_a_pod_that_is_not_there_is_not_found(rig: Rig) -> None:
    assert refusal(rig, "md5sum", "/bfb/a.cfg", pod=Key(rig.pod.namespace, "none-dms")) == (
        "NOT_FOUND", 'pods "none-dms" not found')


def test_a_container_that_does_not_run_is_told_from_a_pod_that_is_not_there(rig: Rig) -> None:
    gone = ("NOT_FOUND", 'unable to upgrade connection: container not found ("dms")')
    assert refusal(rig, "md5sum", "/bfb/a.cfg") == gone
    rig.do(lambda: rig.world.dms.start(rig.host.name))
    rig.run("md5sum", "/bfb/a.cfg")
    rig.do(lambda: rig.world.dms.stop(rig.host.name))
    assert refusal(rig, "md5sum", "/bfb/a.cfg") == gone


def test_a_host_that_does_not_answer_is_unavailable(rig: Rig) -> None:
    rig.do(lambda: rig.world.dms.start(rig.host.name))
    if isinstance(rig, LiveRig):
        rig.kubelet.stop()  # loopback refuses at once what a dark host leaves unanswered
    rig.do(lambda: rig.world.hosts.power_off(rig.host))
    code, text = refusal(rig, "md5sum", "/bfb/a.cfg")
    assert code == "UNAVAILABLE"
    assert text.startswith("error dialing backend: dial tcp ")
    assert ":10250: " in text
