"""Node registration and node lifecycle."""

from __future__ import annotations

from neighbours import SPACE, Town, ready_of

from twin.actors.kubelet import NodeLifecycle, NodeRegistration
from twin.model.core import Node, Pod
from twin.model.meta import condition, replace
from twin.model.provisioning import Taint


def town(*hosts: str, collapse: bool = True, **seconds: float) -> Town:
    t = Town(*hosts, collapse=collapse, **seconds)
    t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))
    t.add(lambda k: NodeLifecycle(k, t.clock, t.durations, t.machines, t.verbs(k)))
    return t


def taints(node: Node) -> list[tuple[str, str]]:
    return [(x.key.rpartition("/")[2], x.effect) for x in node.spec.taints]


def test_a_host_that_is_up_has_a_ready_node_with_its_address_and_labels() -> None:
    t = Town("h1")
    t.machines.all["h1"].labels = {"rack": "r1"}
    t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))

    t.run(1)

    node = t.get(Node, "h1")
    assert ready_of(node) == "True"
    assert dict(node.metadata.labels) == {"kubernetes.io/hostname": "h1", "rack": "r1"}
    assert [(a.type, a.address) for a in node.status.addresses] == [("InternalIP", "10.0.0.21"), ("Hostname", "h1")]


def test_silence_shows_after_the_grace_with_taints_and_ends_with_the_boot() -> None:
    t = town("h1")
    t.run(10)

    t.switch("h1", up=False)
    t.run(39.9)
    assert ready_of(t.get(Node, "h1")) == "True"
    t.run(0.2)
    node = t.get(Node, "h1")
    ready = condition(node.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason) == ("Unknown", "NodeStatusUnknown")
    assert taints(node) == [("unreachable", "NoSchedule"), ("unreachable", "NoExecute")]

    t.switch("h1", up=True, boot=1)
    t.run(0.1)
    node = t.get(Node, "h1")
    assert ready_of(node) == "True"
    assert taints(node) == []
    assert node.status.node_info["bootID"] == "1"


def test_silence_begins_with_the_last_heartbeat_not_with_the_power() -> None:
    t = town("h1", heartbeat=10)
    t.run(17)

    t.switch("h1", up=False)
    t.run(32.9)
    assert ready_of(t.get(Node, "h1")) == "True"
    t.run(0.2)
    assert ready_of(t.get(Node, "h1")) == "Unknown"


def test_the_first_heartbeat_comes_with_the_boot() -> None:
    t = town("h1", heartbeat=10)
    t.run(13)
    t.reboot("h1", 20)
    t.run(14)

    t.switch("h1", up=False)
    t.run(35.9)
    assert ready_of(t.get(Node, "h1")) == "True"
    t.run(0.2)
    assert ready_of(t.get(Node, "h1")) == "Unknown"


def test_pods_without_a_toleration_leave_after_the_profiles_grace() -> None:
    t = town("h1", pod_eviction_grace=120)
    t.pod("web", "h1", ready=True)
    t.run(10)

    t.switch("h1", up=False)
    t.run(40 + 119)
    assert not t.get(Pod, "web").deleting
    t.run(2)
    assert t.get(Pod, "web").deleting


def test_a_reboot_within_the_grace_never_shows_as_not_ready() -> None:
    t = town("h1")
    t.run(10)

    t.reboot("h1", 39)
    t.run(100)

    assert [(verb, what) for _, verb, what in t.writes("Node")] == [("create", "Node/h1"), ("status", "Node/h1")]


def test_a_quiet_fleet_is_not_written_to() -> None:
    t = town("h1", "h2")
    t.run(1)
    before = len(t.writes())

    t.run(86_400)

    assert len(t.writes()) == before == 2


def test_pods_leave_an_unreachable_node_after_their_toleration_and_tolerant_ones_stay() -> None:
    t = town("h1")
    t.run(1)
    forever = ({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},)
    brief = ({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
              "tolerationSeconds": 60},)
    t.pod("plain", "h1", ready=True)
    t.pod("tolerant", "h1", ready=True, tolerations=forever)
    t.pod("brief", "h1", ready=True, tolerations=brief)

    t.switch("h1", up=False)
    t.run(41)
    assert [ready_of(p) for p in t.all(Pod)] == ["False"] * 3
    t.run(60)
    assert [p.metadata.name for p in t.all(Pod) if p.deleting] == ["brief"]
    t.run(240)
    assert [p.metadata.name for p in t.all(Pod) if p.deleting] == ["plain", "brief"]


def test_a_no_execute_taint_of_a_node_effect_drives_away_what_does_not_tolerate_it() -> None:
    t = town("h1")
    t.run(1)
    t.pod("dms", "h1", ready=True)

    node = t.get(Node, "h1")
    t.update(node, spec=replace(node.spec, taints=(Taint(key="dpu", value="provisioning", effect="NoExecute"),)))
    t.run(1)

    assert t.get(Pod, "dms").deleting


def test_the_pods_of_a_deleted_node_are_collected_and_a_boot_brings_the_node_back() -> None:
    t = town("h1")
    t.run(1)
    t.pod("p", "h1", ready=True)

    t.delete(Node, "h1")
    t.run(39)
    assert t.find(Pod, "p") is not None
    t.run(2)
    assert t.find(Pod, "p", SPACE) is None
    t.run(600)
    assert t.find(Node, "h1") is None

    t.reboot("h1", 100)
    t.run(1)
    assert ready_of(t.get(Node, "h1")) == "True"


def test_a_host_taken_out_of_service_becomes_unknown_and_its_pods_are_evicted() -> None:
    t = town("h1")
    t.run(1)
    t.pod("p", "h1", ready=True)
    t.run(1)

    machine = t.machines.all.pop("h1")
    t.machines.changed(machine.name)
    t.run(400)

    assert ready_of(t.get(Node, "h1")) == "Unknown"
    assert t.get(Pod, "p").deleting


def test_nodes_that_no_machine_stands_behind_are_left_alone() -> None:
    t = town("h1")
    t.node("cp1")

    t.run(1000)

    assert [w for w in t.writes() if w[2] == "Node/cp1"] == []
