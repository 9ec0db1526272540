"""A world of one or two hosts for tests of the DPU controller: the simulation's API servers, DMS and cards.

Only the DPU controller runs. What other controllers and neighbours would have made is there from the start, or a test
puts it there. Request costs are small and fixed; durations are the medians of the default timing profile.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from controllers.provisioning.dpu import DpuReconciler
from twin.backends.base import Settings
from twin.model.core import (
    DpfOperatorConfig,
    DpfOperatorConfigSpec,
    Namespace,
    Networking,
    Node,
    NodeStatus,
    ProvisioningController,
    Secret,
)
from twin.model.fleet import DMS_PORT, Fleet
from twin.model.fleet_file import from_data
from twin.model.meta import Condition, Key, Object, ObjectMeta, replace
from twin.model.names import Finalizer, Label
from twin.model.provisioning import (
    Bfb,
    BfbSpec,
    BfbStatus,
    DmsAddress,
    Dpu,
    DpuCluster,
    DpuClusterRef,
    DpuClusterSpec,
    DpuClusterStatus,
    DpuDevice,
    DpuDeviceSpec,
    DpuFlavor,
    DpuFlavorSpec,
    DpuNode,
    DpuNodeSpec,
    DpuNodeStatus,
    DpuSpec,
    DpuStatus,
    NodeAddress,
    NodeEffect,
    NodeRebootMethod,
    NvConfig,
    Phase,
)
from twin.model.timing import Timing
from twin.model.timing_profile import named
from twin.runtime.reconcile import Controller
from twin.sim.client import ApiCosts
from twin.sim.clock import SECOND, TwinEnvironment
from twin.sim.dms import SimDms
from twin.sim.host import Hosts, SimDpu
from twin.sim.kube import ApiServer
from twin.sim.links import Links
from twin.sim.manager import Manager, Surroundings
from twin.sim.runner import touch
from twin.sim.trace import Trace
from twin.sim.volume import File, SimVolume, file_of

NS = "dpf-operator-system"
BFB_URL = "http://bfb.example.com/bf-bundle-3.0.0-135.bfb"
BFB_FILE = f"{NS}-bundle.bfb"
PROFILE = cache(named)
T = TypeVar("T", bound=Object)


def meta(name: str, namespace: str = NS, **more: Any) -> ObjectMeta:
    return ObjectMeta(namespace=namespace, name=name, **more)


def true(type_: str, since: str = "2025-05-01T00:00:00Z") -> Condition:
    return Condition(type=type_, status="True", reason=type_, last_transition_time=since)


def false(type_: str, reason: str) -> Condition:
    return Condition(type=type_, status="False", reason=reason, last_transition_time="2025-05-01T00:00:00Z")


class Bench:
    """`at(phase)` puts a DPU into a phase; `run(seconds)` lets the controller work; `is_(...)` says where it stands."""

    def __init__(self, *, policies: Iterable[str] = (), host: Mapping[str, Any] | None = None,
                 card: Mapping[str, Any] | None = None, dpus_per_host: int = 1, hosts: int = 1,
                 clusters: Iterable[str] = ("c1",), collapse: bool = True) -> None:
        self.env = TwinEnvironment()
        self.timing = Timing(PROFILE("fixed"), 1)
        self.fleet: Fleet = from_data({"generate": {
            "hosts_per_rack": hosts, "dpus_per_host": dpus_per_host, "host": host or {}, "dpu": card or {}}})
        self.trace = Trace(keep=True)
        self.kube = ApiServer(self.env, self.trace, lag_ns=1_000_000)
        self.dpu_clusters: dict[str, ApiServer] = {}
        self.writes: list[str] = []
        self.told: list[tuple[str, str, str]] = []
        """Every (status, reason, message) that any condition of any DPU was given, in order."""
        links = Links(self.env)
        self.volume = SimVolume(self.env, links, self.fleet.image_servers, bandwidth_bytes_per_s=10**10)
        self.hosts = Hosts(self.env, self.timing, self.fleet.hosts, join=self._join)
        self.dms = SimDms(self.env, self.hosts, self.volume, links, self.timing, network=self.fleet.network,
                          racks=self.fleet.racks, credentials=lambda key: "")
        self.hosts.listeners.host_up.append(lambda host: self.dms.start(host.name))
        self.hosts.listeners.dpu_ready.append(lambda dpu: self.node_ready(dpu.name))
        by_kubeconfig: dict[str, ApiServer] = {}
        self.effect_hook: Any = None
        costs = ApiCosts(read_ns=2_000_000, write_ns=4_000_000)
        self.manager = Manager(Surroundings(
            env=self.env, host_cluster=self.kube, clusters=by_kubeconfig, dms=self.dms.client, agent=self.dms.client,
            volume=self.volume, host_costs=costs, dpu_costs=costs, qps=0, burst=0, pass_ns=200_000, resync_ns=0,
            settings=Settings(), policies=frozenset(policies), collapse=collapse,
            on_pass=lambda *_: None, on_error=lambda *_: None,
            on_effect=lambda process, what, over: self._effect(what, over)),
            "provisioning", [Controller("dpu", "provisioning", DpuReconciler.make)], 0)
        self.kube.observers.setdefault(Dpu, []).append(self._tell)
        for name in (NS, "default", "kube-system"):
            self.create(Namespace(metadata=meta(name, "")))
        self._installation()
        for name in clusters:
            by_kubeconfig.update(self.cluster(name))
        for host_ in self.fleet.hosts:
            self._host(host_.name)

    # --- what is there from the start

    def _installation(self) -> None:
        self.create(Secret(metadata=meta("dpf-provisioning-client-secret")))
        self.create(DpfOperatorConfig(metadata=meta("dpfoperatorconfig"), spec=DpfOperatorConfigSpec(
            networking=Networking(control_plane_mtu=1500),
            provisioning_controller=ProvisioningController(bfb_pvc_name="bfb-pvc"))))
        self.create(DpuFlavor(metadata=meta("flavor"), spec=DpuFlavorSpec(
            nvconfig=(NvConfig(device="*", parameters=("PF_TOTAL_SF=20", "NUM_OF_VFS=46")),),
            bfcfg_parameters=("WITH_NIC_FW_UPDATE=yes",))))
        self.create(Bfb(metadata=meta("bundle"), spec=BfbSpec(url=BFB_URL)), BfbStatus(
            phase="Ready", file_name=BFB_FILE))
        image = self.fleet.image_servers[0].file(BFB_URL)
        assert image is not None
        self.volume.put(f"/bfb/{BFB_FILE}", file_of(image))

    def cluster(self, name: str, phase: str = "Ready", max_nodes: int | None = None) -> dict[str, ApiServer]:
        """A DPUCluster with its API server and admin kubeconfig. Returns the server by kubeconfig."""
        server = ApiServer(self.env, self.trace, name, url=f"https://{name}.example:6443")
        for space in ("default", "kube-system"):
            server.create(Namespace(metadata=meta(space, "")), "test", self.env.now)
        server.observers.setdefault(Secret, []).append(lambda *_: self.hosts.join_may_succeed())
        ca = base64.b64encode(name.encode()).decode()
        text = (f"clusters:\n- cluster: {{server: '{server.url}', certificate-authority-data: {ca}}}\n"
                "users:\n- user: {}\n")
        self.create(Secret(metadata=meta(f"{name}-admin-kubeconfig"),
                           data={"admin.conf": base64.b64encode(text.encode()).decode()}))
        self.create(DpuCluster(metadata=meta(name), spec=DpuClusterSpec(
            type="static", version="v1.30.2", max_nodes=max_nodes, kubeconfig=f"{name}-admin-kubeconfig")),
            DpuClusterStatus(phase=phase))
        self.dpu_clusters[name] = server
        return {text: server}

    def _host(self, name: str) -> None:
        host = self.fleet.host[name]
        self.dms.start(name)
        if host.kubernetes:
            self.create(Node(metadata=meta(name, "")))
        self.create(DpuNode(
            metadata=meta(name, labels={Label.OOB_BRIDGE: ""}),
            spec=DpuNodeSpec(node_reboot_method=NodeRebootMethod(gnoi={}),
                             node_dms_address=DmsAddress(ip=host.ip, port=DMS_PORT))),
            DpuNodeStatus(dpu_install_interface="gNOI", kube_node_ref=name if host.kubernetes else None))
        for card in host.cards:
            self.create(DpuDevice(metadata=meta(card.name, labels={Label.DPUNODE_NAME: name}),
                                  spec=DpuDeviceSpec(pci_address=card.pci, number_of_pfs=card.pfs)))

    # --- the store, from outside

    def create(self, obj: T, status: Any = None) -> T:
        made = self.kube.create(obj, "test", self.env.now)
        return made if status is None else self.kube.update(
            replace(made, status=status), "test", self.env.now, status=True)

    def get(self, kind: type[T], name: str, namespace: str = NS) -> T:
        return self.kube.get(kind, Key(namespace, name))

    def gone(self, kind: type[Object], name: str, namespace: str = NS) -> bool:
        return self.kube.find(kind, Key(namespace, name)) is None

    def patch(self, kind: type[Object], name: str, merge: dict[str, Any], namespace: str = NS, *,
              status: bool = False) -> None:
        self.kube.patch(kind, Key(namespace, name), merge, "test", self.env.now, status=status)

    def delete(self, kind: type[Object], name: str, namespace: str = NS) -> None:
        self.kube.delete(kind, Key(namespace, name), "test", self.env.now)

    def stored(self, name: str, status: Any, kind: type[Object] = Dpu) -> None:
        """Overwrite an object's status."""
        old: Any = self.kube.get(kind, Key(NS, name))
        self.kube.update(replace(old, status=status), "test", self.env.now, status=True)

    # --- the DPU

    @property
    def name(self) -> str:
        return self.fleet.cards[0].name

    @property
    def host(self) -> str:
        return self.fleet.hosts[0].name

    @property
    def card(self) -> SimDpu:
        return self.hosts.dpus[self.name]

    @property
    def server(self) -> ApiServer:
        """The API server of the first DPU cluster."""
        return next(iter(self.dpu_clusters.values()))

    def dpu(self, name: str = "", **spec: Any) -> Dpu:
        """Create a DPU as a DPUSet would."""
        card = self.fleet.card[name or self.name]
        annotations = spec.pop("annotations", {})
        fields = {"dpu_node_name": card.host, "dpu_device_name": card.name, "bfb": "bundle", "dpu_flavor": "flavor",
                  "pci_address": card.pci, "node_effect": NodeEffect(no_effect=True), **spec}
        return self.create(Dpu(metadata=meta(card.name, annotations=annotations, labels={
            Label.DPUNODE_NAME: card.host, Label.DEVICE_PCI_ADDRESS: card.pci}), spec=DpuSpec(**fields)))

    def at(self, phase: str, *conditions: Condition, name: str = "", **spec: Any) -> Dpu:
        """Create a DPU that has come to this phase, in cluster c1."""
        if "cluster" not in spec:
            spec["cluster"] = DpuClusterRef(name="c1", namespace=NS)
        made = self.dpu(name, **spec)
        made = self.kube.update(replace(made, metadata=replace(made.metadata, finalizers=(Finalizer.DPU,))), "test",
                                self.env.now)
        status = DpuStatus(phase=phase, conditions=conditions, bfb_file=f"/bfb/{BFB_FILE}",
                           dpu_install_interface="gNOI")
        return self.kube.update(replace(made, status=status), "test", self.env.now, status=True)

    def node(self, name: str = "", *, ready: bool = True, labels: Mapping[str, str] | None = None) -> Node:
        """The DPU's Node joins its DPU cluster."""
        made = self.server.create(Node(metadata=meta(name or self.name, "", labels=labels or {})), "kubelet",
                                  self.env.now)
        return self.node_ready(made.metadata.name, ready=ready)

    def node_ready(self, name: str, *, ready: bool = True) -> Node:
        old = self.server.get(Node, Key("", name))
        condition = Condition(type="Ready", status="True" if ready else "False", reason="Kubelet")
        status = NodeStatus(addresses=(NodeAddress(type="InternalIP", address="10.0.9.1"),), conditions=(condition,))
        return self.server.update(replace(old, status=status), "kubelet", self.env.now, status=True)

    def _join(self, dpu: str, token: str, server: str) -> bool:
        secret = self.server.find(Secret, Key("kube-system", f"bootstrap-token-{token.partition('.')[0]}"))
        if secret is None or server not in self.server.url:
            return False
        self.server.create(Node(metadata=meta(dpu, "")), "kubelet", self.env.now)
        return True

    # --- time

    def run(self, seconds: float = 0.5) -> Bench:
        if not self.manager.running:
            self.manager.start()
        self.env.run(self.env.now + round(seconds * SECOND))
        return self

    def restart(self) -> None:
        self.manager.stop()
        self.manager.start()

    def until(self, phase: str, limit_s: float = 7200.0) -> Bench:
        """Run until the DPU comes to this phase."""

        def look(old: Object | None, new: Object | None, at: int) -> None:
            if (isinstance(new, Dpu) and new.metadata.name == self.name and new.status is not None
                    and new.status.phase == phase):
                self.env.stop()

        observers = self.kube.observers.setdefault(Dpu, [])
        observers.append(look)
        self.run(limit_s)
        observers.remove(look)
        assert self.phase() == phase, f"still in {self.phase()}: {self.status().conditions[-1:]}"
        return self

    # --- looking

    def status(self, name: str = "") -> DpuStatus:
        status = self.get(Dpu, name or self.name).status
        assert status is not None
        return status

    def phase(self, name: str = "") -> str:
        return self.status(name).phase

    def is_(self, type_: str, name: str = "") -> tuple[str, str, str]:
        """(status, reason, message) of a condition; three empty strings without it."""
        for c in self.status(name).conditions:
            if c.type == type_:
                return c.status, c.reason, c.message
        return "", "", ""

    def conditions(self) -> list[tuple[str, str, str]]:
        return [(c.type, c.status, c.reason) for c in self.status().conditions]

    @property
    def passes(self) -> int:
        """How many passes really ran."""
        self.runner.settle()
        return self.runner.stats.run

    @property
    def runner(self) -> Any:
        return self.manager.runners["dpu"]

    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.told]

    def _tell(self, old: Object | None, new: Object | None, at: int) -> None:
        def said(dpu: Object | None) -> tuple[Condition, ...]:
            return dpu.status.conditions if isinstance(dpu, Dpu) and dpu.status is not None else ()

        self.told += [(c.status, c.reason, c.message) for c in said(new) if c not in said(old)]

    def refuse(self, *verbs: str) -> None:
        """The API server is away for requests of these verbs (`update`, `patch`, ...), but takes status writes."""
        def hook(what: str, over: bool) -> None:
            self.kube.down = what in verbs and not over

        self.effect_hook = hook

    def cluster_down(self, down: bool = True) -> None:
        """The first DPU cluster's API server goes away, or is back."""
        self.server.down = down
        touch(self.server.readers, "up")

    def heal(self) -> None:
        self.effect_hook, self.kube.down = None, False

    def _effect(self, what: str, over: bool) -> None:
        if over:
            self.writes.append(what)
        if self.effect_hook is not None:
            self.effect_hook(what, over)

    def mistake(self, path: str) -> None:
        """Somebody puts a file of no use on the volume."""
        self.volume.put(path, File("junk", 10, content=b"junk"))


ALL_PHASES = [
    Phase.PENDING, Phase.NODE_EFFECT, Phase.INITIALIZE_INTERFACE, Phase.CONFIG_FW_PARAMETERS, Phase.OS_INSTALLING,
    Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.REBOOTING, Phase.HOST_NETWORK_CONFIGURATION, Phase.DPU_CLUSTER_CONFIG,
    Phase.READY,
]
