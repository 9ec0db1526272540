"""Every way to prove who we are, to a real kube-apiserver that says whom it sees."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from twin.backends.base import AlreadyExists, ApiError
from twin.backends.kube import Cluster, LiveKube, open_cluster
from twin.backends.kube_http import in_cluster
from twin.backends.lab.certificates import Pair, issue
from twin.backends.lab.control_plane import ControlPlane

pytestmark = pytest.mark.slow

ROBOT = "system:serviceaccount:default:prover"
REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


def whoami(cluster: Cluster) -> str:
    """The user that the server takes us for. Raises: ApiError."""
    body = msgspec.json.encode({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    name: str = msgspec.json.decode(cluster.connection.request("POST", REVIEW, body=body))["status"]["userInfo"][
        "username"]
    return name


@pytest.fixture
def token(kube: LiveKube) -> Callable[[], str]:
    """Makes tokens of a service account."""
    ask = kube.cluster.connection.request
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    with contextlib.suppress(AlreadyExists):
        ask("POST", accounts, body=msgspec.json.encode({"metadata": {"name": "prover"}}))
    return lambda: str(msgspec.json.decode(ask("POST", f"{accounts}/prover/token", body=b'{"spec": {}}'))[
        "status"]["token"])


def config_with(host: ControlPlane, folder: Path, user: dict[str, Any]) -> Path:
    """A kubeconfig whose user proves itself like this."""
    config = yaml.safe_load(host.kubeconfig_text)
    config["users"][0]["user"] = user
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def certified(host: ControlPlane, name: str) -> Pair:
    folder = Path(host.ca_file).parent
    return issue(Pair((folder / "ca.crt").read_text(), (folder / "ca.key").read_text()), name)


def plugin(folder: Path, status: dict[str, Any]) -> dict[str, Any]:
    """A user with an exec plugin that answers this and counts its calls."""
    credential = folder / "credential.json"
    credential.write_text(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                                      "status": status}))
    program = folder / "plugin"
    program.write_text(f'#!/bin/sh\necho call >> "{folder}/calls"\ncat "{credential}"\n')
    program.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program),
                     "interactiveMode": "Never"}}


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_a_client_certificate_in_files_beside_the_kubeconfig(host: ControlPlane, tmp_path: Path) -> None:
    pair = certified(host, "alice")
    (tmp_path / "alice.crt").write_text(pair.certificate)
    (tmp_path / "alice.key").write_text(pair.key)
    path = config_with(host, tmp_path, {"client-certificate": "alice.crt", "client-key": "alice.key"})
    assert whoami(open_cluster(path)) == "alice"


def test_a_token(host: ControlPlane, tmp_path: Path, token: Callable[[], str]) -> None:
    assert whoami(open_cluster(config_with(host, tmp_path, {"token": token()}))) == ROBOT


def test_a_token_file_is_read_again_when_its_token_is_not_known_any_more(
        host: ControlPlane, tmp_path: Path, token: Callable[[], str]) -> None:
    file = tmp_path / "token"
    file.write_text("not.a.token")
    cluster = open_cluster(config_with(host, tmp_path, {"tokenFile": str(file)}))
    with pytest.raises(ApiError) as unknown:
        whoami(cluster)
    assert (unknown.value.code, str(unknown.value)) == (401, "Unauthorized")
    file.write_text(token())
    assert whoami(cluster) == ROBOT


def test_an_exec_plugin_with_a_token_is_asked_again_when_it_expires(
        host: ControlPlane, tmp_path: Path, token: Callable[[], str]) -> None:
    def until(minutes: int) -> str:
        return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)).strftime("%Y-%m-%dT%XZ")

    user = plugin(tmp_path, {"token": token(), "expirationTimestamp": until(60)})
    cluster = open_cluster(config_with(host, tmp_path, user))
    assert [whoami(cluster), whoami(cluster)] == [ROBOT, ROBOT]
    assert calls(tmp_path) == 1
    plugin(tmp_path, {"token": token(), "expirationTimestamp": until(-1)})
    cluster = open_cluster(config_with(host, tmp_path, user))
    before = calls(tmp_path)
    assert whoami(cluster) == ROBOT
    assert calls(tmp_path) > before


def test_an_exec_plugin_with_a_client_certificate(host: ControlPlane, tmp_path: Path) -> None:
    pair = certified(host, "bob")
    user = plugin(tmp_path, {"clientCertificateData": pair.certificate, "clientKeyData": pair.key})
    assert whoami(open_cluster(config_with(host, tmp_path, user))) == "bob"


@pytest.mark.parametrize("command", ["/bin/false", "/no/such/plugin"])
def test_an_exec_plugin_that_fails_is_named_instead_of_going_on_as_nobody(
        host: ControlPlane, tmp_path: Path, command: str) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "Never"}}
    with pytest.raises(ValueError, match=f"getting credentials: exec: executable {command} failed or answered with"):
        open_cluster(config_with(host, tmp_path, user))


def test_the_service_account_of_the_pod_we_run_in(host: ControlPlane, tmp_path: Path, token: Callable[[], str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "serviceaccount"
    mounted.mkdir()
    (mounted / "token").write_text("not.a.token")
    (mounted / "ca.crt").write_text(Path(host.ca_file).read_text())
    loader = "kubernetes.config.incluster_config"
    monkeypatch.setattr(f"{loader}.SERVICE_TOKEN_FILENAME", str(mounted / "token"))
    monkeypatch.setattr(f"{loader}.SERVICE_CERT_FILENAME", str(mounted / "ca.crt"))
    address, _, port = host.server.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    cluster = Cluster(in_cluster)
    with pytest.raises(ApiError, match="Unauthorized"):
        whoami(cluster)
    (mounted / "token").write_text(token())  # the kubelet rotates it
    assert whoami(cluster) == ROBOT


def test_outside_a_cluster_it_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ValueError, match=r"^not in a cluster: Service host/port is not set"):
        in_cluster()


def test_a_service_account_without_a_token_is_named(host: ControlPlane, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", socket.gethostname())
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ValueError, match=r"^not in a cluster: Service token file does not exist"):
        in_cluster()
