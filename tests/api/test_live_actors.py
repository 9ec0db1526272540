"""`live --actors`: neighbours played on a real API server, with what a real one would leave there."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from lab_parts import host, planes, programs

from api.live import Config, Live
from api.live_actors import AUTHORITY
from api.live_check import others, plan_words
from api.live_log import Log
from twin.backends.base import Settings
from twin.backends.kube import LiveKube
from twin.backends.lab.control_plane import ControlPlane
from twin.backends.lab.pods import LivePodVerbs
from twin.model.core import (
    Certificate,
    DrainSpec,
    Lease,
    LeaseSpec,
    Namespace,
    Node,
    NodeMaintenance,
    NodeMaintenanceSpec,
    Pod,
    PodSpec,
    Secret,
)
from twin.model.meta import Key, ObjectMeta, condition
from twin.runtime.lease import micro_time

__all__ = ["host", "planes", "programs"]
pytestmark = pytest.mark.slow


def eventually(true: Callable[[], Any], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.02)


@contextmanager
def playing(host: ControlPlane, volume: Path, *actors: str, shadow: bool = False) -> Iterator[tuple[Live, StringIO]]:
    """A process that plays these neighbours and runs no controller."""
    log = StringIO()
    live = Live(Config(kubeconfig=Path(host.kubeconfig), controllers=(), actors=actors, volume=volume, lead=False,
                       shadow=shadow, settings=Settings(namespace="default"), record=frozenset()), Log(log))
    live.observe = lambda: None  # type: ignore[method-assign]
    live.prepare()
    thread = threading.Thread(target=live.run)
    thread.start()
    try:
        yield live, log
    finally:
        live.stop()
        thread.join(30)
        live.close()
    assert live.failure is None


@pytest.fixture
def kube(host: ControlPlane) -> Iterator[LiveKube]:
    from twin.backends.kube import open_cluster

    cluster = open_cluster(Path(host.kubeconfig), qps=0)
    yield LiveKube(cluster, "test", cached=False)
    cluster.close()


@pytest.fixture
def space(kube: LiveKube) -> str:
    return kube.create(Namespace(metadata=ObjectMeta(generate_name="t-"))).metadata.name


def test_a_certificate_gets_a_secret_that_its_authority_signed(host: ControlPlane, kube: LiveKube, space: str,
                                                                tmp_path: Path) -> None:
    asked = {"secretName": "server", "commonName": "dms", "ipAddresses": ["10.0.0.1"], "duration": "48h"}
    kube.create(Certificate(metadata=ObjectMeta(namespace=space, name="server"), spec=asked))
    with playing(host, tmp_path, "cert-manager") as (_, log):
        eventually(lambda: kube.get(Secret, Key(space, "server")))
        eventually(lambda: kube.read_live(Certificate, Key(space, "server")).status.revision == 1)
    data = {k: base64.b64decode(v) for k, v in kube.read_live(Secret, Key(space, "server")).data.items()}
    signed, ca = (x509.load_pem_x509_certificate(data[name]) for name in ("tls.crt", "ca.crt"))
    signed.verify_directly_issued_by(ca)
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    found = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in found.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert 0 < (signed.not_valid_after_utc - signed.not_valid_before_utc).days <= 5
    kept = kube.read_live(Secret, Key("default", AUTHORITY)).data
    assert base64.b64decode(kept["tls.crt"]) == data["ca.crt"], "the next process signs with the same authority"
    assert kept["tls.key"] not in log.getvalue()


def test_a_maintenance_is_cordoned_drained_and_given_back(host: ControlPlane, kube: LiveKube, space: str,
                                                          tmp_path: Path) -> None:
    node = kube.create(Node(metadata=ObjectMeta(generate_name="node-"))).metadata.name
    pod = kube.create(Pod(metadata=ObjectMeta(namespace=space, name="web"), spec=PodSpec(node_name=node, containers=(
        {"name": "web", "image": "web"},))))
    key = Key(space, "maintain")
    kube.create(NodeMaintenance(metadata=ObjectMeta(namespace=space, name="maintain"), spec=NodeMaintenanceSpec(
        requestor_id="test", node_name=node, drain_spec=DrainSpec(force=True, delete_empty_dir=True))))

    def state() -> str:
        status = kube.read_live(NodeMaintenance, key).status
        ready = condition(status.conditions, "Ready") if status is not None else None
        return ready.reason if ready is not None else ""

    with playing(host, tmp_path, "maintenance-operator"):
        eventually(lambda: kube.read_live(Pod, pod.key).deleting)
        assert state() == "Draining"
        assert kube.read_live(Node, Key("", node)).spec.unschedulable
        LivePodVerbs(kube.cluster).kill(pod)  # the kubelet's part
        eventually(lambda: state() == "Ready")
        kube.delete(NodeMaintenance, key)
        eventually(lambda: kube.get(NodeMaintenance, key) is None)
        assert not kube.read_live(Node, Key("", node)).spec.unschedulable


def test_in_shadow_nothing_is_played_but_said(host: ControlPlane, kube: LiveKube, space: str, tmp_path: Path) -> None:
    kube.create(Certificate(metadata=ObjectMeta(namespace=space, name="mine"), spec={"secretName": "mine"}))
    with playing(host, tmp_path, "cert-manager", shadow=True) as (_, log):
        eventually(lambda: f"Secret {space}/mine" in log.getvalue())
    assert kube.get(Secret, Key(space, "mine")) is None
    assert "BEGIN" not in log.getvalue()


def test_a_neighbour_that_is_there_is_not_played_beside(host: ControlPlane, kube: LiveKube, tmp_path: Path) -> None:
    lease = kube.create(Lease(metadata=ObjectMeta(namespace="default", name="a9620a8f.nvidia.com"), spec=LeaseSpec(
        holder_identity="maintenance-operator-0", lease_duration_seconds=15, renew_time=micro_time(time.time()))))
    try:
        with playing(host, tmp_path, "maintenance-operator") as (live, _):
            assert "maintenance-operator-0 holds the lease" in others(live)
            assert any(line.startswith("plays") and "evicts" in line for line in plan_words(live, False))
        with playing(host, tmp_path, "cert-manager") as (live, _):
            assert others(live) == ""
    finally:
        kube.delete(Lease, lease.key)
