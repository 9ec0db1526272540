"""Joining a DPU cluster, and what its Nodes show afterwards."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from neighbours import Town, ready_of

from twin.actors.joining import Joining
from twin.model.core import Node, Secret
from twin.model.meta import ObjectMeta, condition, format_time

SERVER = "10.0.0.1:6443"
TOKEN = "abcdef.0123456789abcdef"


@dataclass
class Arm:
    name: str
    kubelet_ready: bool = False
    boot_id: str = "1"
    address: str = "10.0.2.1"
    server: str = ""


class Arms:
    def __init__(self, *names: str) -> None:
        self.all = {n: Arm(n) for n in names}
        self._told: list[Callable[[str], None]] = []

    def arm(self, name: str) -> Arm | None:
        return self.all.get(name)

    def subscribe(self, changed: Callable[[str], None]) -> None:
        self._told.append(changed)

    def switch(self, name: str, **facts: object) -> None:
        for fact, value in facts.items():
            setattr(self.all[name], fact, value)
        for tell in self._told:
            tell(name)


def town() -> tuple[Town, Arms, Joining]:
    """The town's API server is the DPU cluster's."""
    t, arms = Town(), Arms("d1")
    joining = t.add(lambda k: Joining(t.clock, t.durations, arms, lambda s: k if s == SERVER else None, k))
    return t, arms, joining


def token(t: Town, **fields: str) -> None:
    values = {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
              "expiration": format_time(t.clock.now() + 7200), **fields}
    t.create(Secret(metadata=ObjectMeta(namespace="kube-system", name="bootstrap-token-abcdef"),
                    type="bootstrap.kubernetes.io/token",
                    data={k: base64.b64encode(v.encode()).decode() for k, v in values.items()}))


def test_a_join_with_a_good_token_registers_a_node_that_is_not_ready_yet() -> None:
    t, _, joining = town()
    token(t)

    assert joining.join("d1", TOKEN, SERVER)

    node = t.get(Node, "d1")
    ready = condition(node.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", "KubeletNotReady")
    assert dict(node.metadata.labels) == {"kubernetes.io/arch": "arm64", "kubernetes.io/hostname": "d1"}
    assert [(a.type, a.address) for a in node.status.addresses] == [("InternalIP", "10.0.2.1"), ("Hostname", "d1")]


@pytest.mark.parametrize("fields", [
    {"token-secret": "fedcba9876543210"}, {"usage-bootstrap-authentication": "false"}])
def test_a_join_with_a_wrong_token_is_refused(fields: dict[str, str]) -> None:
    t, _, joining = town()
    token(t, **fields)

    assert not joining.join("d1", TOKEN, SERVER)
    assert t.find(Node, "d1") is None


def test_a_token_is_good_for_two_hours_and_no_longer() -> None:
    t, _, joining = town()
    token(t)
    t.run(7199)
    assert joining.join("d1", TOKEN, SERVER)

    t.delete(Node, "d1")
    t.run(2)

    assert not joining.join("d1", TOKEN, SERVER)


def test_nothing_joins_without_a_token_or_a_server_that_answers() -> None:
    t, _, joining = town()
    assert not joining.join("d1", TOKEN, SERVER)
    token(t)
    assert not joining.join("d1", TOKEN, "10.9.9.9:6443")

    t.server.down = True

    assert not joining.join("d1", TOKEN, SERVER)


def test_a_ready_node_of_the_same_name_blocks_the_join_and_a_silent_one_is_taken_over() -> None:
    t, arms, joining = town()
    token(t)
    joining.join("d1", TOKEN, SERVER)
    arms.switch("d1", kubelet_ready=True, server=SERVER)
    t.run(1)
    assert not joining.join("d1", TOKEN, SERVER)

    arms.switch("d1", kubelet_ready=False, server="")  # a fresh disk: it has joined nothing
    t.run(41)
    assert ready_of(t.get(Node, "d1")) == "Unknown"

    assert joining.join("d1", TOKEN, SERVER)
    assert ready_of(t.get(Node, "d1")) == "False"


def test_a_node_is_ready_while_its_kubelet_is_heard() -> None:
    t, arms, joining = town()
    token(t)
    joining.join("d1", TOKEN, SERVER)

    arms.switch("d1", kubelet_ready=True, server=SERVER)
    t.run(0.1)
    assert ready_of(t.get(Node, "d1")) == "True"
    arms.switch("d1", kubelet_ready=False)
    t.run(39)
    assert ready_of(t.get(Node, "d1")) == "True"
    t.run(2)
    assert ready_of(t.get(Node, "d1")) == "Unknown"
    arms.switch("d1", kubelet_ready=True, boot_id="2")
    t.run(0.1)

    assert ready_of(t.get(Node, "d1")) == "True"


def test_a_dpus_silence_begins_with_its_last_heartbeat() -> None:
    t, arms, joining = town()
    token(t)
    joining.join("d1", TOKEN, SERVER)
    arms.switch("d1", kubelet_ready=True, server=SERVER)
    t.run(26)

    arms.switch("d1", kubelet_ready=False)
    t.run(33.9)
    assert ready_of(t.get(Node, "d1")) == "True"
    t.run(0.2)
    assert ready_of(t.get(Node, "d1")) == "Unknown"


def test_a_deleted_node_stays_away_until_the_dpu_boots_again() -> None:
    t, arms, joining = town()
    token(t)
    joining.join("d1", TOKEN, SERVER)
    arms.switch("d1", kubelet_ready=True, server=SERVER)
    t.run(1)

    t.delete(Node, "d1")
    arms.switch("d1", kubelet_ready=False)
    t.run(10)
    arms.switch("d1", kubelet_ready=True)
    t.run(1000)
    assert t.find(Node, "d1") is None
    arms.switch("d1", boot_id="2")
    t.run(0.1)

    assert ready_of(t.get(Node, "d1")) == "True"
