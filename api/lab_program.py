"""The program of a lab: emulated hosts, and the neighbours of DPF as reconcilers over the real API server.

What kube-controller-manager does for real (Jobs, budgets, node life, garbage) is not played here.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from api.hardware import Hardware
from api.lab import PLAN, Plan, open_lab, reserved_address
from api.live_log import Log
from twin.actors.actor import hold
from twin.actors.certmanager import CertManager
from twin.actors.dmsinit import DmsPod, is_dms
from twin.actors.jobs import JOB_NAME, REBOOT_SCRIPT_SUFFIX, JobPod, dpf_work, is_job_pod
from twin.actors.joining import NO_CNI, Joining, dpu_node
from twin.actors.kamaji import Kamaji
from twin.actors.kubelet import NodeRegistration
from twin.actors.maintenance import Maintenance
from twin.actors.nfd import NodeFeatures
from twin.actors.person import Reboots, Releases
from twin.actors.pods import PodLife, Program
from twin.actors.scheduler import Scheduler
from twin.actors.slots import Limits
from twin.actors.workloads import ReplicaSets, budget_object, controller_of, running_pod
from twin.backends.base import AlreadyExists, ApiError, KubeApi, NotFound, Operation, Settings
from twin.backends.kube import Cluster, LiveKube, open_cluster
from twin.backends.kube_http import from_kubeconfig
from twin.backends.lab.certificates import Pair, authority, issue, write_private
from twin.backends.lab.control_plane import DPU_CLUSTER_CONTROLLERS, ControlPlane, join_objects
from twin.backends.lab.image_server import ImageProxy
from twin.backends.lab.join import Joins
from twin.backends.lab.lab import Lab
from twin.backends.lab.pods import LivePodVerbs
from twin.model.core import Lease, Namespace, Node, NodeStatus, Pod, Secret, TenantControlPlane
from twin.model.faults import fitting
from twin.model.fleet import DMS_PORT, Host
from twin.model.meta import Key, Object, ObjectMeta, replace, set_condition
from twin.model.names import dms_secret
from twin.model.timing import Timing
from twin.runtime.backstage import Backstage, LiveOperation
from twin.runtime.live import LiveRunner
from twin.sim.world import registration

HEARTBEAT_S: Final = 10.0
LEASES: Final = "kube-node-lease"
VOLUME: Final = "bfb"
PROXY: Final = "http_proxy"


class LabProgram:
    """Everything of a lab that is neither an API server nor a controller under test."""

    def __init__(self, lab: Lab, plan: Plan, log: Log,
                 observe: Callable[[str, str, str, str], None] | None = None) -> None:
        self.lab = lab
        self.plan = plan
        self.log = log
        self.settings = Settings()
        self.failure: BaseException | None = None
        self._reserved = socket.create_server((reserved_address(plan.fleet), DMS_PORT))
        self.stopping = threading.Event()
        self.backstage = Backstage(self._bug)
        self.volume = lab.folder / VOLUME
        self.volume.mkdir(exist_ok=True)
        self.cluster = open_cluster(Path(lab.status()["kubeconfig"]), qps=0,
                                    say=lambda line: log("informer", said=line))
        self.kube = LiveKube(self.cluster, "lab")
        timing = Timing(plan.profile, plan.seed)
        self.timing = timing
        self._ca = self._authority()
        self._planes: dict[str, tuple[ControlPlane, Cluster]] = {}
        self._runners: list[LiveRunner] = []
        self._actors: dict[str, LiveRunner] = {}
        self.failing_jobs: Sequence[Sequence[str]] = ()
        """Patterns of Jobs whose pods fail."""
        self._cycles: dict[str, None] = {}
        """Hosts that a reboot script waits for."""
        self._nodes: dict[str, tuple[str, str]] = {}
        """DPU -> (API server, kubeconfig) of its kubelet."""
        self._lock = threading.Lock()
        self.joins = Joins(self._joined, say=lambda line: log("kubeadm join", said=line))
        self.hardware = Hardware(
            plan.fleet, timing, identity=self._identity, join=self.joins.ask, folder=lab.folder, volume=self.volume,
            speed=plan.speed, namespaces=lab.namespaces if plan.netns else None,
            say=lambda line: log("hardware", said=line), observe=observe)
        self.proxy = ImageProxy(plan.fleet, speed=plan.speed)

    # --- life

    def start(self) -> None:
        """Namespaces and secrets of the installation, then neighbours, then wait for the hosts' Nodes."""
        for name in ("default", self.settings.namespace):
            self.ensure_namespace(name)
        self._client_secret()
        self._workloads()
        self._control_plane_nodes()
        self._hosts_without_kubernetes()
        for plane in self.lab.planes():
            if plane.name != "host":
                self._connect_plane(plane)
        self._neighbours()
        threading.Thread(target=self._heartbeats, name="heartbeats", daemon=True).start()
        wanted = [h.name for h in self.plan.fleet.hosts if h.kubernetes]
        self.cluster.informer(Node)
        while any(self.cluster.cache.get(Node, Key("", name)) is None for name in wanted):
            if self.stopping.wait(0.05):
                return
        (self.lab.folder / PROXY).write_text(self.proxy.url)
        (self.lab.folder / "ready").touch()
        self.log("ready", hosts=len(self.plan.fleet.hosts))

    def stop(self) -> None:
        self.stopping.set()

    def close(self) -> None:
        for runner in self._runners:
            runner.stop()
        self._reserved.close()
        self.proxy.close()
        self.hardware.close()
        self.backstage.stop()
        self.cluster.close()

    def _bug(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            self.log("bug", error=str(error), trace="".join(traceback.format_exception(error)))
        self.stopping.set()

    # --- neighbours

    def durations(self, operation: str, *entity: str) -> float:
        """Emulated things take their time `speed` times as fast."""
        return self.timing.sample(operation, *entity) / self.plan.speed

    def add(self, name: str, make: Callable[[KubeApi], Any]) -> Any:
        actor = make(cast(KubeApi, LiveKube(self.cluster, name)))
        runner = LiveRunner(actor, on_bug=self._bug, on_pass=lambda key, wait, took, outcome: (
            self.log("neighbour failed", neighbour=name, object=str(key), error=str(outcome))
            if isinstance(outcome, Exception) and getattr(outcome, "code", 0) not in (404, 409) else None))
        actor.wake = runner.wake
        runner.listen(self.cluster)
        runner.start()
        self._runners.append(runner)
        self._actors[name] = runner
        actor.start()
        return actor

    def hold(self, name: str, held: bool) -> None:
        """The neighbour stops working, or goes on with all it missed."""
        hold(self._actors[name], held)

    def _neighbours(self) -> None:
        clock, durations, machines = self.backstage, self.durations, self.hardware.machines
        verbs = LivePodVerbs(self.cluster)
        add, person = self.add, self.plan.fleet.person
        add("kubelet-registration", lambda k: NodeRegistration(k, clock, durations, machines))
        add("scheduler", lambda k: Scheduler(k, clock, durations, verbs))
        add("kubelet", lambda k: PodLife(k, clock, durations, machines, verbs, self._programs(k)))
        add("replicaset", lambda k: ReplicaSets(k, clock, durations))
        share = self.timing.limit("maintenance_max_parallel_share")
        add("maintenance-operator", lambda k: Maintenance(
            k, clock, durations, verbs, Limits(max_parallel=f"{round(share * 100)}%")))
        add("nfd", lambda k: NodeFeatures(k, clock, durations, machines))
        add("cert-manager", lambda k: CertManager(k, clock, durations, self._issue))
        add("kamaji", lambda k: Kamaji(k, clock, durations, self._control_plane, self._remove_plane))
        add("person-reboots", lambda k: Reboots(k, clock, durations, self.power_cycle, person))
        add("person-releases", lambda k: Releases(k, clock, durations, person))
        add("dpu-kubelet", lambda k: Joining(clock, durations, self.hardware.arms, self._admin, k))

    def _programs(self, kube: KubeApi) -> Callable[[Pod], Program | None]:
        hardware = self.hardware
        dms = DmsPod(kube, hardware.machines, self.durations)

        def fails(operation: str, namespace: str, pod: str, uid: str) -> bool:
            return self.timing.fails(operation, namespace, pod, uid) or any(
                fitting([*patterns, *(f"{p}-*" for p in patterns)], [pod]) for patterns in self.failing_jobs)

        job = JobPod(self.durations, dpf_work(
            lambda host: self._script_reboots(kube, host), fails, lambda host: host in self._cycles))
        return lambda pod: dms if is_dms(pod) else job if is_job_pod(pod) else None

    def _script_reboots(self, kube: KubeApi, host: str) -> None:
        """A script reboots a host, and goes on when it is up again."""
        self._cycles[host] = None

        def up(_: Operation) -> None:
            self._cycles.pop(host, None)
            for pod in kube.list(Pod, None, {JOB_NAME: f"{host}{REBOOT_SCRIPT_SUFFIX}"}):
                self._actors["kubelet"].wake(pod.key)

        self._reboot(host, "host-reboot").callbacks.append(up)

    def power_cycle(self, host: str) -> Operation:
        """A person at the host; the operation ends when it is up again."""
        return self._reboot(host, "host-power-cycle")

    def _reboot(self, host: str, operation: str) -> Operation:
        made = LiveOperation(f"{operation} {host}")
        hosts = self.hardware.hosts
        sim = hosts.hosts[host]

        def begin() -> None:
            boots = sim.boots

            def up(which: Any) -> None:
                if which is sim and sim.boots > boots:
                    hosts.listeners.host_up.remove(up)
                    made.end(None)
            hosts.listeners.host_up.append(up)
            hosts.reboot(sim, operation, commanded=True)

        self.hardware.world.call(begin)
        return made.op

    # --- certificates

    def _authority(self) -> Pair:
        path = self.lab.folder / "dms-ca.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Pair)
        pair = authority("dms-ca")
        write_private(path, msgspec.json.encode(pair).decode())
        return pair

    def _data(self, pair: Pair) -> dict[str, str]:
        texts = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": self._ca.certificate}
        return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}

    def _issue(self, certificate: Any, revision: int) -> dict[str, str]:
        """cert-manager, with the lab's authority."""
        spec = certificate.spec
        return self._data(issue(
            self._ca, str(spec.get("commonName") or certificate.metadata.name),
            addresses=tuple(spec.get("ipAddresses") or ()), names=tuple(spec.get("dnsNames") or ())))

    def _client_secret(self) -> None:
        """The client certificate that the operator's manifests have cert-manager issue (provisioning.md 3.2)."""
        with contextlib.suppress(AlreadyExists):
            self.kube.create(Secret(
                metadata=ObjectMeta(namespace=self.settings.namespace, name=self.settings.client_secret),
                type="kubernetes.io/tls", data=self._data(issue(self._ca, "dpf-provisioning-client"))))

    def _identity(self, host: Host) -> Callable[[], tuple[Pair, str]]:
        """What the DMS pod mounts: its server Secret; hosts outside Kubernetes have files of their own."""
        def of() -> tuple[Pair, str]:
            secret = self._find(Secret, Key(self.settings.namespace, dms_secret(host.name)))
            if secret is None or not host.kubernetes:
                return issue(self._ca, host.name, addresses=(host.ip,)), self._ca.certificate
            texts = {n: base64.b64decode(secret.data[n]).decode() for n in ("tls.crt", "tls.key", "ca.crt")}
            return Pair(texts["tls.crt"], texts["tls.key"]), texts["ca.crt"]
        return of

    # --- DPU clusters

    def _control_plane(self, plane: TenantControlPlane) -> str:
        """Kamaji starts a real API server; its address is on loopback, whatever the keepalived VIP is."""
        name = f"{plane.metadata.namespace}-{plane.metadata.name}"
        self.log("starting the control plane of a DPUCluster", name=name)
        return self.own_cluster(name)

    def own_cluster(self, name: str) -> str:
        """A cluster that DPF did not make: its admin's kubeconfig."""
        made = self.lab.control_planes().start(name, controllers=DPU_CLUSTER_CONTROLLERS)
        self._connect_plane(made)
        return made.kubeconfig_text

    def _connect_plane(self, plane: ControlPlane) -> None:
        with self._lock:
            if plane.name in self._planes:
                return
            cluster = open_cluster(Path(plane.kubeconfig), qps=0)
            self._planes[plane.name] = (plane, cluster)
        kube = LiveKube(cluster, "kubeadm")
        for manifest in join_objects(plane):
            kube.apply(manifest, "kubeadm", force=True)

    def _remove_plane(self, key: Key) -> None:
        name = f"{key.namespace}-{key.name}"
        with self._lock:
            found = self._planes.pop(name, None)
        self.lab.control_planes().remove(name)
        if found is not None:
            found[1].close()

    def clusters(self) -> dict[str, Cluster]:
        """The DPU clusters' connections by the name of their control plane."""
        with self._lock:
            return {name: cluster for name, (_, cluster) in self._planes.items()}

    def _admin(self, server: str) -> KubeApi | None:
        """A client of the DPU cluster at this address."""
        wanted = server.removeprefix("https://")
        with self._lock:
            found = next((c for p, c in self._planes.values() if p.server.removeprefix("https://") == wanted), None)
        # Not cached: nobody wakes this actor when a cache catches up after an outage of that server.
        return None if found is None else cast(KubeApi, LiveKube(found, "kubelet", cached=False))

    def _joined(self, dpu: str, server: str, kubeconfig: str) -> None:
        """kubeadm is done: the kubelet registers its Node with the certificate it got."""
        credentials = from_kubeconfig(kubeconfig)
        cluster = Cluster(lambda: credentials)
        kube = LiveKube(cluster, "kubelet", cached=False)
        try:
            status = NodeStatus(conditions=set_condition((), "Ready", "False", *NO_CNI, time.time()))
            try:
                kube.create(dpu_node(dpu, status))
            except AlreadyExists:
                node = kube.read_live(Node, Key("", dpu))
                kube.update_status(replace(node, status=replace(node.status, conditions=status.conditions)))
        finally:
            cluster.close()
        with self._lock:
            self._nodes[dpu] = (server, kubeconfig)
        self.log("joined", dpu=dpu, server=server)

    # --- heartbeats

    def _heartbeats(self) -> None:
        """Every kubelet that is up renews its lease, as the node-lifecycle controller expects."""
        while not self.stopping.is_set():
            began = time.monotonic()
            for cluster, names in self._beating():
                for name in names:
                    try:
                        beat(cluster, name)
                    except ApiError as error:
                        self.log("heartbeat failed", node=name, error=str(error))
            self.stopping.wait(max(0.5, HEARTBEAT_S - (time.monotonic() - began)))

    def _beating(self) -> Iterator[tuple[Cluster, list[str]]]:
        machines = self.hardware.machines
        up = [n for n in machines.names() if (m := machines.machine(n)) is not None and m.up]
        yield self.cluster, list(dict.fromkeys([*up, *(n.name for n in self.plan.fleet.control_plane)]))
        with self._lock:
            planes = list(self._planes.values())
        for plane, cluster in planes:
            address = plane.server.removeprefix("https://")
            yield cluster, [n for n, (server, _) in list(self._nodes.items())
                            if server == address and (arm := self.hardware.arms.arm(n)) is not None
                            and arm.kubelet_ready]

    # --- what the fleet starts with

    def ensure_namespace(self, name: str) -> None:
        with contextlib.suppress(AlreadyExists):
            self.kube.create(Namespace(metadata=ObjectMeta(name=name)))

    def _find(self, kind: type[Any], key: Key) -> Any:
        try:
            return self.kube.read_live(kind, key)
        except NotFound:
            return None

    def _create(self, obj: Object) -> Any:
        try:
            return self.kube.create(obj)
        except AlreadyExists:
            return self.kube.read_live(type(obj), obj.key)

    def _workloads(self) -> None:
        """Pods and budgets of the fleet file. DaemonSets make their own pods here."""
        owners: dict[tuple[str, str], Object | None] = {}
        for host in self.plan.fleet.hosts:
            for record in host.pods if host.kubernetes else ():
                self.ensure_namespace(record.namespace)
                name = (record.namespace, record.name)
                if name not in owners:
                    owner = controller_of(record)
                    owners[name] = self._create(owner) if owner is not None else None
                self._create(running_pod(record, host, owners[name], time.time()))
        for budget in self.plan.fleet.budgets:
            self.ensure_namespace(budget.namespace)
            self._create(budget_object(budget))

    def _control_plane_nodes(self) -> None:
        for node in self.plan.fleet.control_plane:
            from twin.model.core import NodeSpec
            from twin.model.meta import Condition, format_time
            from twin.model.provisioning import NodeAddress, Taint
            self._create(Node(
                metadata=ObjectMeta(name=node.name, labels={
                    "kubernetes.io/hostname": node.name, "node-role.kubernetes.io/control-plane": ""}),
                spec=NodeSpec(taints=(Taint(key="node-role.kubernetes.io/control-plane", effect="NoSchedule"),)),
                status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address=node.ip),), conditions=(
                    Condition(type="Ready", status="True", reason="KubeletReady",
                              last_transition_time=format_time(time.time())),))))


    def _hosts_without_kubernetes(self) -> None:
        """An admin registers them, and they start DMS themselves, at every boot."""
        hardware = self.hardware
        outside = [h for h in self.plan.fleet.hosts if not h.kubernetes]
        names = [h.name for h in outside]
        for host in outside:
            for obj in registration(host, self.settings.namespace):
                self._create(obj)

        def begin() -> None:
            hardware.hosts.listeners.host_up.append(
                lambda host: hardware.dms.start(host.name) if host.name in names else None)
            for name in names:
                hardware.dms.start(name)
        hardware.world.call(begin)


def beat(cluster: Cluster, node: str) -> None:
    """Renew a node's lease. Raises: ApiError."""
    from twin.runtime.lease import micro_time
    kube = LiveKube(cluster, "kubelet", cached=False)
    spec = {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": micro_time(time.time())}
    try:
        kube.patch(Lease, Key(LEASES, node), {"spec": spec})
    except NotFound:
        lease = Lease(metadata=ObjectMeta(namespace=LEASES, name=node))
        with contextlib.suppress(AlreadyExists):
            kube.create(msgspec.structs.replace(lease, spec=msgspec.convert(spec, type(lease.spec))))


def main(folder: Path) -> int:
    """Run until SIGTERM. Started by `lab up`."""
    log = Log(sys.stderr, as_json=True)
    lab = open_lab(str(folder))
    plan: Plan = pickle.loads((lab.folder / PLAN).read_bytes())  # our own, mode 0600
    program = LabProgram(lab, plan, log, lambda change, host, dpu, detail: (
        log(change, host=host, dpu=dpu, detail=detail)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: program.stop())
    try:
        program.start()
        program.stopping.wait()
    except (ApiError, OSError) as error:
        log("the lab's program failed", error=str(error))
        return 1
    finally:
        program.close()
    return 1 if program.failure is not None else 0


def arguments(words: Sequence[str]) -> Path:
    return Path(words[1])


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv)))
