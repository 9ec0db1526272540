"""Kamaji: control planes of DPU clusters."""

from __future__ import annotations

import base64

import pytest
from neighbours import SPACE, Town

from twin.actors.kamaji import Kamaji
from twin.model.core import Secret, TenantControlPlane
from twin.model.meta import Key, ObjectMeta, replace


class Story:
    def __init__(self, address: str = "", **seconds: float) -> None:
        self.t = t = Town(**seconds)
        self.made: list[str] = []
        self.removed: list[str] = []
        t.add(lambda k: Kamaji(k, t.clock, t.durations, self.make, lambda key: self.removed.append(key.name)))
        t.create(TenantControlPlane(metadata=ObjectMeta(namespace=SPACE, name="kam-1"),
                                    spec={"kubernetes": {"version": "v1.30.2"},
                                          "networkProfile": {"address": address} if address else {}}))

    def make(self, plane: TenantControlPlane) -> str:
        self.made.append(plane.metadata.name)
        return f"kubeconfig of {plane.metadata.name}"

    def version(self) -> dict[str, str]:
        found: dict[str, str] = self.t.get(TenantControlPlane, "kam-1").status["kubernetesResources"]["version"]
        return found


def test_a_control_plane_is_provisioned_then_ready_with_its_kubeconfig() -> None:
    s = Story()
    s.t.run(74)
    assert s.version() == {"status": "Provisioning"}
    assert (s.made, s.t.all(Secret)) == ([], [])
    s.t.run(2)

    assert s.version() == {"status": "Ready", "version": "v1.30.2"}
    secret = s.t.get(Secret, "kam-1-admin-kubeconfig")
    assert sorted(secret.data) == ["admin.conf", "super-admin.conf"]
    assert base64.b64decode(secret.data["admin.conf"]) == b"kubeconfig of kam-1"
    assert secret.metadata.owner_references[0].kind == "TenantControlPlane"
    # Golden case k1: the Secret is there before the status says Ready.
    assert [w[1:] for w in s.t.writes()] == [
        ("status", "TenantControlPlane/kam-1"), ("create", "Secret/kam-1-admin-kubeconfig"),
        ("status", "TenantControlPlane/kam-1")]


@pytest.mark.parametrize(("address", "ready_s"), [("", 75.0), ("10.0.10.10", 90.0)])
def test_a_control_plane_behind_a_virtual_address_is_not_ready_before_keepalived(address: str, ready_s: float) -> None:
    s = Story(address, keepalived_start=90)
    s.t.run(ready_s - 1)
    assert s.version() == {"status": "Provisioning"}
    s.t.run(2)
    assert s.version() == {"status": "Ready", "version": "v1.30.2"}


def test_a_new_version_is_an_upgrade_that_takes_as_long() -> None:
    s = Story()
    s.t.run(100)

    plane = s.t.get(TenantControlPlane, "kam-1")
    s.t.update(plane, spec={"kubernetes": {"version": "v1.31.0"}})
    s.t.run(70)
    assert s.version() == {"status": "Upgrading", "version": "v1.30.2"}
    s.t.run(6)

    assert s.version() == {"status": "Ready", "version": "v1.31.0"}


def test_a_lost_kubeconfig_is_written_again() -> None:
    s = Story()
    s.t.run(100)

    s.t.delete(Secret, "kam-1-admin-kubeconfig")
    s.t.run(1)

    assert s.t.find(Secret, "kam-1-admin-kubeconfig") is not None


def test_a_deleted_control_plane_is_stopped_once_and_its_secret_goes() -> None:
    s = Story()
    s.t.run(100)

    s.t.delete(TenantControlPlane, "kam-1")
    s.t.run(10)

    assert s.removed == ["kam-1"]
    assert s.t.server.find(Secret, Key(SPACE, "kam-1-admin-kubeconfig")) is None


def test_a_running_control_plane_is_left_alone() -> None:
    s = Story()
    s.t.run(100)
    before = len(s.t.writes())

    plane = s.t.get(TenantControlPlane, "kam-1")
    s.t.update(plane, metadata=replace(plane.metadata, labels={"a": "b"}))
    s.t.run(10_000)

    assert len(s.t.writes()) == before
