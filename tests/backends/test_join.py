"""kubeadm join against a real API server and controller manager."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from twin.backends.base import ApiError
from twin.backends.kube import LiveClusters, LiveKube
from twin.backends.lab.certificates import public_key_hash
from twin.backends.lab.control_plane import ControlPlane, join_objects
from twin.backends.lab.join import JoinCommand, JoinFailed, Joins, join, join_command
from twin.model.core import Node, Secret
from twin.model.meta import Key, ObjectMeta

pytestmark = pytest.mark.slow


@pytest.fixture
def admin(dpu_plane: ControlPlane) -> LiveKube:
    kube = LiveClusters().connect(dpu_plane.kubeconfig_text)
    for manifest in join_objects(dpu_plane):
        kube.apply(manifest, "test", force=True)
    return kube


def a_token(kube: LiveKube, id_: str, secret: str = "0123456789abcdef", **fields: str) -> str:
    kube.create(Secret(
        metadata=ObjectMeta(name=f"bootstrap-token-{id_}", namespace="kube-system"),
        type="bootstrap.kubernetes.io/token", string_data={
            "token-id": id_, "token-secret": secret, "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token", **fields}))
    return f"{id_}.{secret}"


def command(plane: ControlPlane, token: str, pin: str = "") -> JoinCommand:
    with open(plane.ca_file) as file:
        pin = pin or public_key_hash(file.read())
    return join_command(f"kubeadm join {plane.server.removeprefix('https://')} --v=5 --token {token} "
                        f"--discovery-token-ca-cert-hash {pin}")


def joined(name: str, wanted: JoinCommand) -> str:
    """As the DPU's loop does: the signature of a new token takes a moment."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return join(name, wanted)
        except JoinFailed as error:
            if "no JWS signature" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_good_token_gets_a_kubelet_certificate_that_may_register_its_node(
        admin: LiveKube, dpu_plane: ControlPlane) -> None:
    text = joined("dpu-1", command(dpu_plane, a_token(admin, "aaaaaa")))
    kubelet = LiveClusters().connect(text)
    kubelet.create(Node(metadata=ObjectMeta(name="dpu-1")))
    assert admin.read_live(Node, Key("", "dpu-1")).metadata.uid
    with pytest.raises(ApiError, match='User "system:node:dpu-1" cannot list resource "secrets"'):
        kubelet.list_live(Secret)


def test_a_ready_node_of_that_name_is_not_joined_twice(admin: LiveKube, dpu_plane: ControlPlane) -> None:
    admin.create(Node(metadata=ObjectMeta(name="dpu-2")))
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}  # a patch: node-lifecycle writes meanwhile
    admin.patch(Node, Key("", "dpu-2"), {"status": {"conditions": [ready]}}, status=True)
    with pytest.raises(JoinFailed, match='a Node with name "dpu-2" and status "Ready" already exists'):
        joined("dpu-2", command(dpu_plane, a_token(admin, "bbbbbb")))


def test_an_unknown_token_a_wrong_secret_and_a_wrong_pin_are_refused(admin: LiveKube, dpu_plane: ControlPlane) -> None:
    good = a_token(admin, "cccccc")
    joined("dpu-3", command(dpu_plane, good))
    for wanted, says in (
            (command(dpu_plane, "zzzzzz.0123456789abcdef"), 'no JWS signature for token ID "zzzzzz"'),
            (command(dpu_plane, "cccccc.fedcba9876543210"), "the JWS signature is not the token's"),
            (command(dpu_plane, good, "sha256:" + "0" * 64), "not pinned")):
        with pytest.raises(JoinFailed, match=says):
            join("dpu-3", wanted)


def test_an_expired_token_is_refused(admin: LiveKube, dpu_plane: ControlPlane) -> None:
    token = a_token(admin, "dddddd", expiration="2020-01-01T00:00:00Z")
    with pytest.raises(JoinFailed):
        join("dpu-4", command(dpu_plane, token))


def test_nobody_answers_at_a_wrong_address(dpu_plane: ControlPlane) -> None:
    with pytest.raises(JoinFailed, match="Connection refused"):
        join("dpu-5", JoinCommand("127.0.0.1:9", "aaaaaa.0123456789abcdef", ()))
    with pytest.raises(JoinFailed, match="no kubeadm join command"):
        join_command("#!/bin/sh")


def test_a_loop_is_told_no_until_the_join_came_about(admin: LiveKube, dpu_plane: ControlPlane) -> None:
    told: list[tuple[str, str]] = []
    joins = Joins(lambda name, server, text: told.append((name, server)))
    wanted = command(dpu_plane, a_token(admin, "eeeeee"))
    assert joins.ask("dpu-6", wanted) is False
    eventually(lambda: joins.ask("dpu-6", wanted))
    assert told == [("dpu-6", dpu_plane.server.removeprefix("https://"))]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
