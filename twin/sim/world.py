"""One run's world: a fleet, its API servers, its hardware, its neighbours, wired to the controllers it is given.

Floor 2 never imports controllers: whoever joins the two (scenarios) passes the table of controllers and the webhooks.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twin.actors.actor import hold
from twin.actors.joining import Joining
from twin.backends.base import KubeApi, Operation, Settings
from twin.model.core import Namespace, Node, NodeSpec, NodeStatus, PodDisruptionBudget, Secret
from twin.model.faults import fitting
from twin.model.fleet import DMS_PORT, Fleet, Host
from twin.model.meta import Condition, Key, Object, ObjectMeta, format_time, replace
from twin.model.provisioning import (
    DmsAddress,
    Dpu,
    DpuDevice,
    DpuDeviceSpec,
    DpuNode,
    DpuNodeSpec,
    DpuRef,
    NodeAddress,
    NodeRebootMethod,
    ScriptReboot,
    Taint,
)
from twin.model.timing import Timing
from twin.runtime.reconcile import Controller
from twin.sim.actor_runner import ActorRunner
from twin.sim.admission import Webhooks
from twin.sim.chronicle import Chronicle
from twin.sim.client import ApiCosts, Cache, SimKube
from twin.sim.clock import EPOCH, SECOND, SimClock, TwinEnvironment, ns
from twin.sim.dms import SimDms
from twin.sim.host import Hosts, SimDpu, SimHost
from twin.sim.kube import ApiServer
from twin.sim.leadership import Leadership
from twin.sim.links import Link, Links
from twin.sim.machines import SimArms, SimMachines
from twin.sim.manager import Manager, Surroundings
from twin.sim.runner import Meter, Runner, touch
from twin.sim.trace import Trace
from twin.sim.troubles import Troubles
from twin.sim.volume import SimVolume

KUBE_SYSTEM = "kube-system"
_TLS = {"tls.crt", "tls.key", "ca.crt"}
WORTH_NOTING = 5 * SECOND
"""A DPU that queued longer than a poll for its controller's worker has waited for it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is computed; none of these changes what happens."""

    collapse: bool = True
    """False: every poll is an event of its own (the check on collapsed polling)."""
    tie_seed: int | None = None
    """Shuffles same-time events (the check on hidden assumptions about their order)."""


class World:
    """Everything there is in one run. `start(bring_up)` brings it up; then `env.run(until)`."""

    def __init__(self, fleet: Fleet, timing: Timing, trace: Trace, controllers: Sequence[Controller], *,
                 webhooks: Webhooks | None = None, policies: Iterable[str] = (), settings: Settings = Settings(),
                 options: Options = Options()) -> None:
        self.fleet = fleet
        self.timing = timing
        self.trace = trace
        self.settings = settings
        self.policies = frozenset(policies)
        self.options = options
        self.env = env = TwinEnvironment(tie_seed=options.tie_seed)
        self.clock = SimClock(env)
        self.webhooks = webhooks
        self.host_cluster = self._server("", "https://10.0.0.10:6443")
        self.host_cluster.observers.setdefault(Secret, []).append(self._adopt)
        self.dpu_clusters: dict[Key, ApiServer] = {}
        self._clusters_made = 0
        self._dpu_apis_down: Sequence[Sequence[str]] = ()
        self._by_kubeconfig: dict[str, ApiServer] = {}
        self._by_address: dict[str, ApiServer] = {}
        self.errors: dict[tuple[str, str], tuple[int, str]] = {}
        """(controller, key) -> how often its passes failed and the last error: words for `pending`."""
        self._effect_hook: Callable[[str, str, bool], None] | None = None

        self.links = Links(env, lambda name, link, _, beyond: self.chronicle.transferred(name, link, beyond, env.now))
        controller_link = Link("controller uplink", fleet.network.controller_bytes_per_s)
        self.volume = SimVolume(
            env, self.links, fleet.image_servers, bandwidth_bytes_per_s=fleet.volume.bandwidth_bytes_per_s,
            reader_link=controller_link, parse_ns=ns(timing.sample("bfb-parse")), size_bytes=fleet.volume.size_bytes)
        self.hosts = Hosts(env, timing, fleet.hosts, join=self._join, observe=self._device, collapse=options.collapse)
        self.dms = SimDms(env, self.hosts, self.volume, self.links, timing, network=fleet.network, racks=fleet.racks,
                          credentials=self._credentials, controller_link=controller_link)
        self.machines = SimMachines(self.hosts, self.dms, self.volume, fleet.control_plane)
        self.arms = SimArms(self.hosts)

        self._runners: list[Runner] = []
        self._neighbour_cache = Cache(self.host_cluster)
        self._neighbour_caches: dict[int, Cache] = {}
        self.actors: dict[str, tuple[Any, ActorRunner]] = {}
        self.managers: dict[str, Manager] = {}
        self.troubles = Troubles()
        self.failing_jobs: Sequence[Sequence[str]] = ()
        """Patterns of Jobs whose pods fail."""
        self._around = around = self._surroundings()
        names = list(dict.fromkeys(c.manager for c in controllers))
        index = 0
        for name in names:
            mine = [self._staffed(c) for c in controllers if c.manager == name]
            self.managers[name] = Manager(around, name, mine, index)
            index += len(mine)
        self._actor_index = index
        self._second_leaders: list[Manager] = []
        self.leadership = Leadership(env, timing, lambda: not self.host_cluster.down)
        for card in fleet.cards:
            trace.place(card.name, card.rack, card.host)
        self.chronicle = Chronicle(fleet, self.host_cluster, trace)
        self.boot_waits: dict[str, list[Operation]] = {}
        """Who waits for a host to be up again."""
        self.hosts.listeners.host_up.append(self._boot_ended)
        self.hosts.listeners.host_up.append(self._dms_without_pod)
        self.hosts.listeners.host_up.append(lambda host: self.chronicle.host_up(host, env.now))
        self.hosts.listeners.host_down.append(lambda host: self.chronicle.host_down(host, env.now))

    # --- bringing it up

    def start(self, bring_up: Callable[[World], Joining]) -> None:
        """Namespaces and secrets of the installation, hosts, neighbours (`twin.sim.neighbours`), controllers.

        `bring_up` starts the neighbours and returns the one that DPUs' join loops ask.
        """
        for name in ("default", KUBE_SYSTEM, self.settings.namespace):
            self.ensure_namespace(name)
        self._installed_secret()
        self._control_plane_nodes()
        self._joining = bring_up(self)
        self._hosts_without_kubernetes()
        for manager in self.managers.values():
            manager.start()

    def _boot_ended(self, host: SimHost) -> None:
        for op in self.boot_waits.pop(host.name, ()):
            op.succeed()

    def ensure_namespace(self, name: str, cluster: ApiServer | None = None) -> None:
        server = cluster or self.host_cluster
        if server.find(Namespace, Key("", name)) is None:
            server.create(Namespace(metadata=ObjectMeta(name=name)), "admin", self.env.now)

    def _installed_secret(self) -> None:
        """The client certificate that the operator's manifests have cert-manager issue (provisioning.md 3.2)."""
        empty = base64.b64encode(b"-").decode()
        self.host_cluster.create(Secret(
            metadata=ObjectMeta(namespace=self.settings.namespace, name=self.settings.client_secret),
            type="kubernetes.io/tls", data=dict.fromkeys(("ca.crt", "tls.crt", "tls.key"), empty)), "cert-manager", 0)

    def _control_plane_nodes(self) -> None:
        for node in self.fleet.control_plane:
            self.host_cluster.create(Node(
                metadata=ObjectMeta(name=node.name, labels={
                    "kubernetes.io/hostname": node.name, "node-role.kubernetes.io/control-plane": ""}),
                spec=NodeSpec(taints=(Taint(key="node-role.kubernetes.io/control-plane", effect="NoSchedule"),)),
                status=NodeStatus(
                    addresses=(NodeAddress(type="InternalIP", address=node.ip),),
                    conditions=(Condition(type="Ready", status="True", reason="KubeletReady",
                                          last_transition_time=format_time(EPOCH)),))), "kubelet", 0)

    def _hosts_without_kubernetes(self) -> None:
        """What an admin's run of the DMS set-up script registers (provisioning.md 3.1, Non-K8s hosts)."""
        for host in self.fleet.hosts:
            if not host.kubernetes:
                for obj in registration(host, self.settings.namespace):
                    self.host_cluster.create(obj, "admin", 0)
                self.dms.start(host.name)

    def add_actor(self, name: str, make: Callable[[KubeApi], Any]) -> Any:
        """A neighbour: a reconciler whose requests cost it nothing, with one cache for all neighbours."""
        actor = make(SimKube(self._neighbour_cache, Meter(name, billed=False)))
        runner = ActorRunner(self.env, actor, index=self._actor_index)
        self._actor_index += 1
        actor.wake = runner.wake
        for watch in actor.watches:
            self._neighbour_cache.watch(runner, actor, watch)
        self.actors[name] = (actor, runner)
        actor.start()
        return actor

    # --- what faults and timelines do

    @property
    def effect_hook(self) -> Callable[[str, str, bool], None] | None:
        """Hears of (process, effect, is it over) of every controller; may raise Crash. None: nobody listens."""
        return self._effect_hook

    @effect_hook.setter
    def effect_hook(self, hook: Callable[[str, str, bool], None] | None) -> None:
        self._effect_hook = hook
        for manager in self.managers.values():
            manager.listen(hook)

    def retire(self, host: str) -> None:
        """The host is taken away for good: it goes dark and its Node object is deleted."""
        self.machines.retired[host] = None
        self.chronicle.fault_began(self.hosts.hosts[host], self.env.now)
        self.hosts.power_off(self.hosts.hosts[host])
        if self.host_cluster.find(Node, Key("", host)) is not None:
            self.host_cluster.delete(Node, Key("", host), "admin", self.env.now)

    def return_to_service(self, host: str) -> None:
        """The host is back: it boots, and its kubelet registers it anew."""
        self.machines.retired.pop(host, None)
        self.hosts.power_on(self.hosts.hosts[host])

    def processes(self, pattern: str) -> list[Manager]:
        """Those whose name, or whose controller's name, fits."""
        return [m for m in self.managers.values() if fitting((pattern,), [m.name, *(c.name for c in m.controllers)])]

    def restart(self, name: str) -> None:
        """The processes of this name, or of this controller, end and start again (`twin.sim.leadership`)."""
        for manager in self.processes(name):
            if manager in self._second_leaders:
                manager.stop()  # it does not get the lease again
            else:
                self.leadership.restart(manager)

    def want(self, name: str, wanted: bool) -> None:
        """The process of this name is part of the installation from now on, or is not."""
        manager = self.managers[name]
        if wanted == manager.wanted:
            return
        manager.wanted = wanted
        if wanted:
            manager.start()
        else:
            manager.stop()

    def host_api_down(self, down: bool) -> None:
        """The host cluster's API server stops, or is back: processes that cannot renew their leases meanwhile end."""
        self.host_cluster.down = down
        touch(self.host_cluster.readers, "up")
        if down:
            self.leadership.cut_off([m for m in self.managers.values() if m not in self._second_leaders])
        else:
            self.hosts.join_may_succeed()

    def second_leader(self, name: str) -> Manager:
        """Another process of this name acts beside the first one: both believe they lead."""
        first = self.managers[name]
        second = Manager(self._around, f"{name}-2", first.controllers, self._actor_index)
        second.listen(self._effect_hook)
        self._second_leaders.append(second)
        self._actor_index += len(first.controllers)
        self.managers[f"{name}-{len(self.managers)}"] = second
        second.start()
        return second

    def caches(self, controllers: Sequence[str]) -> list[Cache]:
        """The informer caches of the processes that run any of these controllers (patterns)."""
        return [cache for m in self.managers.values()
                if fitting(controllers, [m.name, *(c.name for c in m.controllers)]) for cache in m.caches.values()]

    def hold_budget(self, budget: Key, held: bool) -> None:
        """This PodDisruptionBudget allows nothing, or again what its pods let it."""
        runner = self.actors["disruption"][1]
        hold(runner, held, budget)
        found = self.host_cluster.find(PodDisruptionBudget, budget)
        if not held:
            runner.wake(budget)
        elif found is not None:
            status = replace(found.status, disruptions_allowed=0)
            self.host_cluster.update(replace(found, status=status), "disruption", self.env.now, status=True)

    def dpu_apis_down(self, patterns: Sequence[Sequence[str]]) -> None:
        """API servers of DPU clusters that fit one of these refuse connections, also of clusters made later."""
        self._dpu_apis_down = patterns
        back = False
        for key, server in self.dpu_clusters.items():
            down = self._is_down(key)
            back |= server.down and not down
            if server.down != down:
                server.down = down
                touch(server.readers, "up")
        if back:
            self.hosts.join_may_succeed()

    def _is_down(self, cluster: Key) -> bool:
        return any(fitting(p, [str(cluster)]) for p in self._dpu_apis_down)

    def rotate(self, cluster: Key) -> str:
        """New credentials for a DPU cluster; clients with the old ones are refused. Returns the new kubeconfig."""
        server = self.dpu_clusters[cluster]
        for text in [t for t, s in self._by_kubeconfig.items() if s is server]:
            server.revoked[text] = None
        touch(server.readers, "up")
        text = kubeconfig(server.name, server.url, rotation=len(server.revoked))
        self._by_kubeconfig[text] = server
        return text

    @staticmethod
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    # --- DPU clusters

    def create_dpu_cluster(self, key: Key, address: str = "") -> str:
        """A DPU cluster's API server comes up; returns its admin kubeconfig."""
        server = self.dpu_clusters.get(key)
        if server is None:
            self._clusters_made += 1
            address = address or f"10.0.1.{self._clusters_made}:6443"
            server = self.dpu_clusters[key] = self._server(str(key), f"https://{address}")
            server.down = self._is_down(key)
            self._by_address[address] = server
            for name in ("default", KUBE_SYSTEM):
                self.ensure_namespace(name, server)
            server.observers.setdefault(Secret, []).append(lambda *_: self.hosts.join_may_succeed())
        text = kubeconfig(server.name, server.url, rotation=0)
        self._by_kubeconfig[text] = server
        return text

    def _adopt(self, old: Object | None, new: Object | None, at: int) -> None:
        """A Secret `<dpucluster>-admin-kubeconfig` that names a server nobody here made: the user's own cluster."""
        content = new.data.get("admin.conf", "") if isinstance(new, Secret) else ""
        text = _decoded(content)
        if new is None or not text or text in self._by_kubeconfig:
            return
        found = re.search(r"server:\s*[\"']?https://([^\s\"',}]+)", text)
        if found is not None and found[1] not in self._by_address:
            key = Key(new.metadata.namespace, new.metadata.name.removesuffix("-admin-kubeconfig"))
            self.create_dpu_cluster(key, found[1])
            self._by_kubeconfig[text] = self.dpu_clusters[key]

    def _dms_without_pod(self, host: SimHost) -> None:
        """Where Kubernetes does not start DMS, the host does so itself at boot."""
        if not host.record.kubernetes:
            self.dms.start(host.name)

    def remove_dpu_cluster(self, key: Key) -> None:
        """The control plane is stopped: nobody answers at its address any more."""
        server = self.dpu_clusters.pop(key, None)
        if server is not None:
            server.down = True
            touch(server.readers, "up")

    def dpu_client(self, address: str, meter: Meter) -> KubeApi | None:
        server = self._by_address.get(address.removeprefix("https://"))
        if server is None or server.down:
            return None
        cache = self._neighbour_caches.get(id(server))
        if cache is None:
            cache = self._neighbour_caches[id(server)] = Cache(server)
        return SimKube(cache, meter)

    def _join(self, dpu: str, token: str, server: str) -> bool:
        joined: bool = self._joining.join(dpu, token, server)
        return joined

    # --- pieces

    def _staffed(self, controller: Controller) -> Controller:
        """With as many workers as the timing profile's limits give it."""
        own = f"workers_{controller.name}"
        workers = self.timing.limit(own if own in self.timing.profile.limits else "workers_default")
        return dataclasses.replace(controller, workers=int(workers))

    def _server(self, name: str, url: str) -> ApiServer:
        rate = self.timing.limit("api_server_writes_per_s")
        return ApiServer(self.env, self.trace, name, lag_ns=ns(self.timing.sample("watch-lag")), url=url,
                         gc_ns=ns(self.timing.sample("gc-delay")), write_ns=round(SECOND / rate) if rate else 0,
                         webhooks=self.webhooks if not name else None)

    def _surroundings(self) -> Surroundings:
        t = self.timing
        refused = ns(t.sample("dms-dial"))

        def costs(read: str, write: str) -> ApiCosts:
            return ApiCosts(read_ns=ns(t.sample(read)), write_ns=ns(t.sample(write)), refused_ns=refused,
                            list_object_ns=ns(t.sample("api-list-object")))

        return Surroundings(
            env=self.env, host_cluster=self.host_cluster, clusters=self._by_kubeconfig, dms=self.dms.client,
            agent=self.dms.client, volume=self.volume, host_costs=costs("api-read", "api-write"),
            dpu_costs=costs("dpu-api-read", "dpu-api-write"), qps=t.limit("client_qps"),
            burst=int(t.limit("client_burst")), pass_ns=ns(t.sample("api-cache-pass")),
            resync_ns=ns(t.sample("resync")),
            settings=self.settings, policies=self.policies, collapse=self.options.collapse, on_pass=self._passed,
            on_error=self._failed, on_effect=None)

    def _credentials(self, secret: Key) -> str:
        found = self.host_cluster.find(Secret, secret)
        if found is None:
            return f'secrets "{secret.name}" not found'
        return "" if found.data.keys() >= _TLS else "tls: failed to find any PEM data"

    # --- what is noted

    def _device(self, change: str, host: str, dpu: str, detail: str) -> None:
        self.trace.device(self.env.now, change, host, dpu, detail)

    def _passed(self, controller: str, key: Key, entered: int, start: int, end: int) -> None:
        if controller == "dpu" and start - entered > WORTH_NOTING:
            name = key.name
            self.trace.wait_begin(entered, name, "worker dpu")
            self.trace.wait_end(start, name, "worker dpu")

    def _failed(self, controller: str, key: Key, message: str) -> None:
        count, _ = self.errors.get((controller, str(key)), (0, ""))
        self.errors[controller, str(key)] = (count + 1, message)

    def objects(self, kind: type[Object]) -> list[Any]:
        return list(self.host_cluster.table(kind).values())

    def dpus(self) -> list[Dpu]:
        return self.objects(Dpu)

    def sim_dpu(self, name: str) -> SimDpu | None:
        return self.hosts.dpus.get(name)


def registration(host: Host, namespace: str) -> list[Object]:
    """What an admin's run of the DMS set-up script registers for a host outside Kubernetes: devices, then host."""
    methods = {"gNOI": NodeRebootMethod(gnoi={}), "external": NodeRebootMethod(external={})}
    method = methods.get(host.reboot) or NodeRebootMethod(script=ScriptReboot(name=host.reboot_script))
    labels = {**host.labels, "feature.node.kubernetes.io/dpu-enabled": "true"}
    if host.oob_bridge:
        labels["feature.node.kubernetes.io/dpu-oob-bridge-configured"] = ""
    devices = [DpuDevice(metadata=ObjectMeta(namespace=namespace, name=card.name),
                         spec=DpuDeviceSpec(pci_address=card.pci, pf0_name=card.pf0, number_of_pfs=card.pfs))
               for card in host.cards]
    return [*devices, DpuNode(
        metadata=ObjectMeta(namespace=namespace, name=host.name, labels=labels, annotations=host.annotations),
        spec=DpuNodeSpec(node_reboot_method=method, node_dms_address=DmsAddress(ip=host.ip, port=DMS_PORT),
                         dpus=tuple(DpuRef(name=c.name) for c in host.cards)))]


def _decoded(content: str) -> str:
    """Text of a Secret's value; '' for what is none."""
    try:
        return base64.b64decode(content, validate=True).decode()
    except ValueError:
        return ""


def kubeconfig(name: str, url: str, *, rotation: int) -> str:
    """An admin kubeconfig with one cluster and one user, inline data (provisioning.md 7.2)."""
    data = base64.b64encode(f"{name} {rotation}".encode()).decode()
    return (
        "apiVersion: v1\nkind: Config\ncurrent-context: admin\n"
        f"clusters:\n- name: {name}\n  cluster:\n    server: {url}\n    certificate-authority-data: {data}\n"
        f"users:\n- name: admin\n  user:\n    client-certificate-data: {data}\n    client-key-data: {data}\n"
        f"contexts:\n- name: admin\n  context:\n    cluster: {name}\n    user: admin\n")
