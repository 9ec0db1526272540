"""The neighbour systems of a simulated world: the actors, wired to its hardware and API servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twin.actors.certmanager import CertManager
from twin.actors.disruption import Disruption, Evictions
from twin.actors.dmsinit import DmsPod, is_dms
from twin.actors.hosts import PlainPodVerbs
from twin.actors.jobs import JOB_NAME, REBOOT_SCRIPT_SUFFIX, JobPod, Jobs, dpf_work, is_job_pod
from twin.actors.joining import Joining
from twin.actors.kamaji import Kamaji
from twin.actors.kubelet import NodeLifecycle, NodeRegistration
from twin.actors.maintenance import Maintenance
from twin.actors.nfd import NodeFeatures
from twin.actors.person import Reboots, Releases
from twin.actors.pods import PodLife, Program
from twin.actors.scheduler import Scheduler
from twin.actors.slots import Limits
from twin.actors.workloads import ReplicaSets, budget_object, controller_of, running_pod
from twin.backends.base import ApiError, KubeApi, Operation
from twin.model.core import Pod, TenantControlPlane
from twin.model.faults import fitting
from twin.model.meta import Key
from twin.sim.clock import EPOCH
from twin.sim.runner import Meter
from twin.sim.world import World


class NotedEvictions(Evictions):
    """Evictions that tell the chronicle which budget forbade one."""

    def __init__(self, kube: KubeApi, world: World) -> None:
        super().__init__(kube)
        self._world = world

    def _charge(self, pod: Pod, key: Key, now: float) -> None:
        try:
            super()._charge(pod, key, now)
        except ApiError as error:
            if error.code == 429:
                self._world.chronicle.forbidden(pod.spec.node_name, key, self._world.env.now)
            raise


def bring_up(world: World) -> Joining:
    """Start all neighbours; returns the one that DPUs' join loops ask."""
    clock, durations, machines = world.clock, world.timing.sample, world.machines
    add = world.add_actor

    def verbs(kube: KubeApi) -> PlainPodVerbs:
        return PlainPodVerbs(kube, lambda key: world.host_cluster.kill(key, "kubelet"))

    add("kubelet-registration", lambda k: NodeRegistration(k, clock, durations, machines))
    _workloads(world)
    add("node-lifecycle", lambda k: NodeLifecycle(k, clock, durations, machines, verbs(k)))
    add("scheduler", lambda k: Scheduler(k, clock, durations, verbs(k)))
    add("kubelet", lambda k: PodLife(k, clock, durations, machines, verbs(k), _programs(world, k)))
    add("job", lambda k: Jobs(k, clock, durations))
    add("replicaset", lambda k: ReplicaSets(k, clock, durations))
    add("disruption", lambda k: Disruption(k, clock, durations))
    share = world.timing.limit("maintenance_max_parallel_share")
    add("maintenance-operator", lambda k: Maintenance(
        k, clock, durations, NotedEvictions(k, world), Limits(max_parallel=f"{round(share * 100)}%")))
    add("nfd", lambda k: NodeFeatures(k, clock, durations, machines))
    add("cert-manager", lambda k: CertManager(k, clock, durations))
    add("kamaji", lambda k: Kamaji(k, clock, durations, lambda plane: _control_plane(world, plane),
                                   world.remove_dpu_cluster))
    person = world.fleet.person
    add("person-reboots", lambda k: Reboots(k, clock, durations, lambda host: power_cycle(world, host), person))
    add("person-releases", lambda k: Releases(k, clock, durations, person))
    meter = Meter("dpu-kubelet", billed=False)
    joining: Joining = add("dpu-kubelet", lambda k: Joining(
        clock, durations, world.arms, lambda address: world.dpu_client(address, meter), k))
    return joining


def power_cycle(world: World, host: str) -> Operation:
    """A person power-cycles a host; the operation ends when it is up again."""
    op = Operation(f"power-cycle {host}")
    world.hosts.reboot(world.hosts.hosts[host], "host-power-cycle", commanded=True)
    world.boot_waits.setdefault(host, []).append(op)
    return op


def _reboot(world: World, host: str) -> None:
    """A script reboots a host, and goes on when it is up again."""
    op = Operation(f"reboot {host}")
    world.hosts.reboot(world.hosts.hosts[host], commanded=True)
    world.boot_waits.setdefault(host, []).append(op)
    kubelet, _ = world.actors["kubelet"]
    job = f"{host}{REBOOT_SCRIPT_SUFFIX}"

    def go_on(_: Operation) -> None:
        for key, pod in world.host_cluster.table(Pod).items():
            if pod.metadata.labels.get(JOB_NAME) == job:
                kubelet.wake(key)

    op.callbacks.append(go_on)


def _programs(world: World, kube: KubeApi) -> Callable[[Pod], Program | None]:
    dms = DmsPod(kube, world.machines, world.timing.sample)

    def fails(operation: str, namespace: str, pod: str, uid: str) -> bool:
        return (world.timing.fails(operation, namespace, pod, uid)
                or any(fitting(patterns, [pod]) or fitting([f"{p}-*" for p in patterns], [pod])
                       for patterns in world.failing_jobs))

    job = JobPod(world.timing.sample, dpf_work(
        lambda host: _reboot(world, host), fails, lambda host: host in world.boot_waits))

    def find(pod: Pod) -> Program | None:
        return dms if is_dms(pod) else job if is_job_pod(pod) else None

    return find


def _workloads(world: World) -> None:
    """The pods and budgets that the fleet starts with."""
    server = world.host_cluster
    for host in world.fleet.hosts:
        for record in host.pods if host.kubernetes else ():
            world.ensure_namespace(record.namespace)
            owner = controller_of(record)
            stored = server.create(owner, "user", 0) if owner is not None else None
            server.create(running_pod(record, host, stored, EPOCH), "user", 0)
    for budget in world.fleet.budgets:
        world.ensure_namespace(budget.namespace)
        server.create(budget_object(budget), "user", 0)


def _control_plane(world: World, plane: TenantControlPlane) -> str:
    """Kamaji starts the API server of a DPU cluster: at the keepalived address if there is one."""
    profile: Any = plane.spec.get("networkProfile") or {}
    address = f"{profile['address']}:{profile.get('port', 6443)}" if profile.get("address") else ""
    return world.create_dpu_cluster(Key(plane.metadata.namespace, plane.metadata.name), address)
