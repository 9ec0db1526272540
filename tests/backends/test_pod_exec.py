"""Pod exec through a real API server to an emulated kubelet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from twin.backends.base import Operation, RpcError
from twin.backends.kube import Cluster, LiveKube
from twin.backends.lab.certificates import authority, issue
from twin.backends.lab.kubelet import Kubelet, NoContainer
from twin.backends.lab.pods import LivePodVerbs
from twin.backends.pod_exec import LiveHostAgent
from twin.model.core import Node, Pod, PodSpec
from twin.model.meta import Key, ObjectMeta

pytestmark = pytest.mark.slow

ADDRESS = "127.1.79.1"


def answer(pod: Key, container: str, command: Sequence[str]) -> tuple[int, str]:
    if container != "dms":
        raise NoContainer
    if command[0] == "false":
        return 3, ""
    return 0, f"{pod.name}: {' '.join(command)}\n" * (5000 if command[0] == "long" else 1)


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    kubelet = Kubelet(ADDRESS, issue(authority("k"), "kubelet", addresses=(ADDRESS,)), answer)
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture
def pod(kube: LiveKube, space: str, kubelet: Kubelet) -> Key:
    name = f"host-{space}"
    kube.create(Node(metadata=ObjectMeta(name=name)))
    kube.patch(Node, Key("", name), {"status": {
        "addresses": [{"type": "InternalIP", "address": ADDRESS}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}}, status=True)
    made = kube.create(Pod(metadata=ObjectMeta(name="w1-dms", namespace=space),
                           spec=PodSpec(containers=({"name": "dms", "image": "x"},))))
    LivePodVerbs(kube.cluster).bind(made, name)
    assert kube.read_live(Pod, made.key).spec.node_name == name
    return made.key


@pytest.fixture
def agent(cluster: Cluster) -> Iterator[LiveHostAgent]:
    agent = LiveHostAgent(cluster)
    yield agent
    agent.close()


def ended(op: Operation) -> Operation:
    deadline = time.monotonic() + 90
    while not op.finished:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return op


def test_a_command_runs_in_the_pods_container_and_its_output_comes_back(agent: LiveHostAgent, pod: Key) -> None:
    assert ended(agent.execute(pod, ("md5sum", "/bfb/a b.bfb"))).value == "w1-dms: md5sum /bfb/a b.bfb\n"
    assert len(ended(agent.execute(pod, ("long",))).value) == 5000 * len("w1-dms: long\n")


def test_an_exit_code_is_an_error_as_kubectl_words_it(agent: LiveHostAgent, pod: Key) -> None:
    error = ended(agent.execute(pod, ("false",))).error
    assert isinstance(error, RpcError)
    assert (error.code, str(error)) == ("UNKNOWN", "command terminated with exit code 3")


def test_a_missing_pod_a_missing_container_and_a_host_that_is_down_are_told_apart(
        cluster: Cluster, agent: LiveHostAgent, pod: Key, kubelet: Kubelet) -> None:
    absent = ended(agent.execute(Key(pod.namespace, "none"), ("x",))).error
    assert isinstance(absent, RpcError)
    assert (absent.code, str(absent)) == ("NOT_FOUND", 'pods "none" not found')
    kubelet._server.execute = lambda *_: (_ for _ in ()).throw(NoContainer())
    gone = ended(agent.execute(pod, ("x",))).error
    assert isinstance(gone, RpcError)
    assert (gone.code, str(gone)) == ("NOT_FOUND", 'unable to upgrade connection: container not found ("dms")')
    kubelet.stop()
    down = ended(agent.execute(pod, ("x",))).error
    assert isinstance(down, RpcError)
    assert (down.code, str(down)) == (
        "UNAVAILABLE", f"error dialing backend: dial tcp {ADDRESS}:10250: connect: connection refused")


def test_a_pod_is_killed_at_once_and_only_itself(cluster: Cluster, kube: LiveKube, pod: Key) -> None:
    verbs = LivePodVerbs(cluster)
    first = kube.read_live(Pod, pod)
    verbs.kill(first)
    assert kube.list_live(Pod, pod.namespace) == []
    kube.create(Pod(metadata=ObjectMeta(name=pod.name, namespace=pod.namespace),
                    spec=PodSpec(containers=({"name": "dms", "image": "x"},))))
    verbs.kill(first)
    assert len(kube.list_live(Pod, pod.namespace)) == 1
