"""Real control planes on this machine: one etcd, an API server per cluster on it by prefix, a controller manager each.

The host cluster is one control plane; every DPUCluster gets another, which is what Kamaji does. API servers listen on
127.0.0.1 with certificates of their own authority; the admin's kubeconfig carries a client certificate.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from twin.backends.lab.certificates import Pair, authority, issue, kubeconfig, signing_key, write_private
from twin.backends.lab.processes import Processes, ProcessFailed

READY_S: Final = 90.0  # a loaded machine; 2.5 s on an idle one
ADDRESS: Final = "127.0.0.1"

HOST_CONTROLLERS: Final = (
    "garbage-collector-controller", "namespace-controller", "serviceaccount-controller", "daemonset-controller",
    "job-controller", "disruption-controller", "node-lifecycle-controller", "taint-eviction-controller",
    "pod-garbage-collector-controller", "bootstrap-signer-controller", "token-cleaner-controller",
    "certificatesigningrequest-approving-controller", "certificatesigningrequest-signing-controller",
)
"""What kube-controller-manager really does for the lab; nodes and pods themselves are the actors' part."""

DPU_CLUSTER_CONTROLLERS: Final = tuple(c for c in HOST_CONTROLLERS if c not in {
    "disruption-controller", "job-controller", "serviceaccount-controller"})

LESS_COLLECTION: Final = {"GOGC": "200"}
"""Go programs that collect garbage half as often as they would: a lab's processor is scarcer than its memory."""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """One cluster: where it answers and how its admin gets in."""

    name: str
    server: str
    kubeconfig: str  # path
    ca_file: str
    service_cidr: str

    @property
    def kubeconfig_text(self) -> str:
        return Path(self.kubeconfig).read_text()


class ControlPlanes:
    """etcd and the control planes of one lab folder. Every verb may be repeated."""

    def __init__(self, folder: Path, processes: Processes, binaries: Mapping[str, Path]) -> None:
        self.folder = folder.resolve()
        self.processes = processes
        self.binaries = binaries

    # --- etcd

    def start_etcd(self, *, durable: bool = False) -> str:
        """Start etcd unless it runs; returns its URL. `durable` keeps fsync (a lab for a day does not need it)."""
        told = self.folder / "etcd.json"
        if told.exists() and self.processes.pid("etcd"):
            return str(json.loads(told.read_text())["url"])
        client, peer = free_ports(2)
        url = f"http://{ADDRESS}:{client}"
        argv = [str(self.binaries["etcd"]), "--name=lab", f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                f"--listen-peer-urls=http://{ADDRESS}:{peer}",
                f"--initial-advertise-peer-urls=http://{ADDRESS}:{peer}",
                f"--initial-cluster=lab=http://{ADDRESS}:{peer}", "--log-level=warn",
                *([] if durable else ["--unsafe-no-fsync"])]
        self.processes.start("etcd", argv, env=LESS_COLLECTION)
        told.write_text(json.dumps({"url": url}))
        self.await_etcd(url)
        return url

    def await_etcd(self, url: str) -> None:
        self.processes.await_ready("etcd", lambda: _answers(f"{url}/health", None), deadline_s=READY_S)

    # --- control planes

    def start(self, name: str, *, controllers: Sequence[str] = HOST_CONTROLLERS, port: int | None = None,
              extra: Sequence[str] = ()) -> ControlPlane:
        """Start an API server and a controller manager under this name; waits until `/readyz` says ok.

        Raises: ProcessFailed, OSError (the port is taken, the disk is full).
        """
        known = self.get(name)
        if known is not None and self.processes.pid(f"{name}-apiserver"):
            return known
        etcd = self.start_etcd()
        plane = known or self._prepare(name, port)
        folder = self.folder / "clusters" / name
        if known is None:
            ensure_free(int(plane.server.rpartition(":")[2]))
        self.processes.start(f"{name}-apiserver", self._apiserver(plane, folder, etcd, extra),
                             env=LESS_COLLECTION)
        self.processes.await_ready(f"{name}-apiserver", lambda: is_ready(plane), deadline_s=READY_S)
        if controllers:
            self.processes.start(f"{name}-controller-manager", self._controller_manager(plane, folder, controllers))
        return plane

    def get(self, name: str) -> ControlPlane | None:
        """A control plane that was started here, or None."""
        path = self.folder / "clusters" / name / "plane.json"
        return ControlPlane(**json.loads(path.read_text())) if path.exists() else None

    def names(self) -> list[str]:
        return sorted(p.parent.name for p in (self.folder / "clusters").glob("*/plane.json"))

    def restart(self, name: str) -> ControlPlane:
        """Start the API server (and its controller manager) again after it was stopped or died."""
        plane = self.get(name)
        if plane is None:
            raise ValueError(f"{name}: no such control plane here")
        for part in ("apiserver", "controller-manager"):
            program = f"{name}-{part}"
            if program in self.processes.names() and not self.processes.pid(program):
                self.processes.again(program)
            if part == "apiserver":
                self.processes.await_ready(program, lambda: is_ready(plane), deadline_s=READY_S)
        return plane

    def stop(self, name: str) -> None:
        """Stop the programs of a control plane; its data stays in etcd."""
        self.processes.stop(f"{name}-controller-manager", grace_s=2.0)
        self.processes.stop(f"{name}-apiserver", grace_s=2.0)

    def remove(self, name: str) -> None:
        """Stop a control plane and forget it. Its keys stay in etcd under a prefix that nobody reads."""
        self.stop(name)
        for part in ("controller-manager", "apiserver"):
            self.processes.forget(f"{name}-{part}")
        shutil.rmtree(self.folder / "clusters" / name, ignore_errors=True)

    # --- the pieces

    def _prepare(self, name: str, port: int | None) -> ControlPlane:
        """Certificates, keys and kubeconfigs of a new control plane."""
        folder = self.folder / "clusters" / name
        folder.mkdir(parents=True, exist_ok=True)
        port = port or free_ports(1)[0]
        index = len(self.names())
        cidr = f"10.{96 + index}.0.0/16"
        ca = authority(f"{name}-ca")
        server = issue(ca, "kube-apiserver", addresses=(ADDRESS, f"10.{96 + index}.0.1"),
                       names=("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"))
        for stem, pair in {"ca": ca, "server": server}.items():
            (folder / f"{stem}.crt").write_text(pair.certificate)
            write_private(folder / f"{stem}.key", pair.key)
        write_private(folder / "service-account.key", signing_key())
        url = f"https://{ADDRESS}:{port}"
        self._kubeconfig(name, url, ca, "admin", "kubernetes-admin", ("system:masters",))
        self._kubeconfig(name, url, ca, "controller-manager", "system:kube-controller-manager", ())
        plane = ControlPlane(name=name, server=url, kubeconfig=str(folder / "admin.kubeconfig"),
                             ca_file=str(folder / "ca.crt"), service_cidr=cidr)
        write_private(folder / "plane.json", json.dumps(asdict(plane)))
        return plane

    def _kubeconfig(self, cluster: str, url: str, ca: Pair, file: str, user: str, groups: Sequence[str]) -> None:
        text = kubeconfig(cluster, url, ca.certificate, user, issue(ca, user, organizations=groups))
        write_private(self.folder / "clusters" / cluster / f"{file}.kubeconfig", text)

    def _apiserver(self, plane: ControlPlane, folder: Path, etcd: str, extra: Sequence[str]) -> list[str]:
        return [
            str(self.binaries["kube-apiserver"]),
            f"--etcd-servers={etcd}", f"--etcd-prefix=/{plane.name}",
            f"--bind-address={ADDRESS}", f"--secure-port={plane.server.rpartition(':')[2]}",
            # Nobody routes to the `kubernetes` Service here; without this the server wants a non-loopback address.
            f"--advertise-address={ADDRESS}", "--endpoint-reconciler-type=none",
            f"--tls-cert-file={folder / 'server.crt'}", f"--tls-private-key-file={folder / 'server.key'}",
            f"--client-ca-file={folder / 'ca.crt'}",
            f"--service-account-issuer={plane.server}",
            f"--service-account-key-file={folder / 'service-account.key'}",
            f"--service-account-signing-key-file={folder / 'service-account.key'}",
            f"--service-cluster-ip-range={plane.service_cidr}",
            "--authorization-mode=Node,RBAC", "--enable-bootstrap-token-auth=true", "--allow-privileged=true",
            "--disable-admission-plugins=ServiceAccount",  # pods here run on emulated hosts and mount no tokens
            "--kubelet-preferred-address-types=InternalIP",  # as kubeadm: names of hosts are in no DNS
            "--profiling=false", *extra,
        ]

    def _controller_manager(self, plane: ControlPlane, folder: Path, controllers: Sequence[str]) -> list[str]:
        config = str(folder / "controller-manager.kubeconfig")
        return [
            str(self.binaries["kube-controller-manager"]),
            f"--kubeconfig={config}", f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
            f"--controllers={','.join(controllers)}", f"--bind-address={ADDRESS}", f"--secure-port={free_ports(1)[0]}",
            f"--cluster-signing-cert-file={folder / 'ca.crt'}", f"--cluster-signing-key-file={folder / 'ca.key'}",
            f"--root-ca-file={folder / 'ca.crt'}",
            f"--service-account-private-key-file={folder / 'service-account.key'}",
            "--authentication-skip-lookup=true",  # no aggregated API servers here
            "--use-service-account-credentials=true", "--leader-elect=false", "--profiling=false",
        ]


def is_ready(plane: ControlPlane) -> bool:
    """Does `/readyz` answer ok? (Anonymous users may ask.)"""
    return _answers(f"{plane.server}/readyz", ssl.create_default_context(cafile=plane.ca_file))


def _answers(url: str, context: ssl.SSLContext | None) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on at this moment."""
    holders = [socket.socket() for _ in range(count)]
    try:
        for holder in holders:
            holder.bind((ADDRESS, 0))
        return [int(holder.getsockname()[1]) for holder in holders]
    finally:
        for holder in holders:
            holder.close()


def ensure_free(port: int, address: str = ADDRESS) -> None:
    """Raises ProcessFailed when somebody else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ProcessFailed(f"{address}:{port} is taken: {error.strerror}") from error


def join_objects(plane: ControlPlane) -> list[dict[str, Any]]:
    """What kubeadm leaves in a cluster so that nodes can join: RBAC for bootstrap tokens, and `cluster-info`.

    The bootstrap signer adds the signatures; discovery compares the authority's hash.
    """
    ca = Path(plane.ca_file).read_text()
    group = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group",
             "name": "system:bootstrappers:kubeadm:default-node-token"}
    nodes = {**group, "name": "system:nodes"}

    def binding(name: str, role: str, subject: Mapping[str, str]) -> dict[str, Any]:
        return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [dict(subject)]}

    info = json.dumps({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": {
        "server": plane.server, "certificate-authority-data": _b64(ca)}}]})
    return [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "kubeadm:get-nodes"},
         "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]},
        binding("kubeadm:get-nodes", "kubeadm:get-nodes", group),
        binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", group),
        binding("kubeadm:node-autoapprove-bootstrap",
                "system:certificates.k8s.io:certificatesigningrequests:nodeclient", group),
        binding("kubeadm:node-autoapprove-certificate-rotation",
                "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", nodes),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"},
         "data": {"kubeconfig": info}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
         "metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public"},
         "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"],
                    "verbs": ["get"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
         "metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role",
                     "name": "kubeadm:bootstrap-signer-clusterinfo"},
         "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"}]},
    ]


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
