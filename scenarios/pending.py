"""What has not reached what was asked, in words. Empty means converged (ESR: it reached what was asked, and stays)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from controllers.provisioning.dpunode import device_labels
from controllers.provisioning.selector import matches
from twin.actors.hosts import Machine
from twin.actors.nfd import features
from twin.model.core import Event, Node, NodeMaintenance, Pod, Secret
from twin.model.meta import Key, Object, condition, condition_status, parse_time
from twin.model.names import Label, dms_pod, dms_secret
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuDeviceSpec, DpuNode, DpuSet, Phase
from twin.sim.host import BOOTING
from twin.sim.world import World

SHOWN = 20


def pending(world: World) -> list[str]:
    """One line per object that is not as asked, at most 20 and then a count."""
    words = [*_bfbs(world), *_clusters(world), *_dpus(world), *_sets(world), *_hosts(world), *_unregistered(world)]
    if len(words) > SHOWN:
        return [*words[:SHOWN], f"and {len(words) - SHOWN} more"]
    return words


def _bfbs(world: World) -> Iterator[str]:
    for bfb in world.objects(Bfb):
        phase = bfb.status.phase if bfb.status else ""
        if bfb.deleting:
            yield f"BFB {bfb.key} is still being deleted"
        elif phase != "Ready":
            # All that ends in Error has a Warning, but for a volume that could not be read.
            silent = ": its volume could not be read (no Event tells of it)" if phase == "Error" else ""
            yield f"BFB {bfb.key} is in {phase or 'no phase'}{_complaint(world, bfb) or silent}"


def _complaint(world: World, about: Object) -> str:
    """The last warning about this object."""
    uid = about.metadata.uid
    said = [e for e in world.objects(Event) if e.type == "Warning" and e.involved_object.uid == uid]
    last = max(said, key=lambda e: e.last_timestamp, default=None)
    return f": {last.reason} ({last.message})" if last is not None else ""


def _clusters(world: World) -> Iterator[str]:
    for cluster in world.objects(DpuCluster):
        phase = cluster.status.phase if cluster.status else ""
        if cluster.deleting:
            yield f"DPUCluster {cluster.key} is still being deleted"
        elif phase != "Ready":
            no = next((c for c in cluster.status.conditions if c.status != "True"), None) if cluster.status else None
            _, error = world.errors.get(("dpucluster", str(cluster.key)), (0, ""))
            why = f": {no.reason} ({no.message})" if no is not None else f": {error}" if error else ""
            yield f"DPUCluster {cluster.key} is in {phase or 'no phase'}{why}"


def _dpus(world: World) -> Iterator[str]:
    sets = {s.metadata.uid: s for s in world.objects(DpuSet)}
    hosts: dict[str, list[Dpu]] = {}
    for dpu in world.dpus():
        hosts.setdefault(dpu.spec.dpu_node_name, []).append(dpu)
    for dpu in world.dpus():
        status = dpu.status
        phase = status.phase if status else ""
        conditions = status.conditions if status else ()
        if dpu.deleting:
            yield f"DPU {dpu.key} is still being deleted, in phase {phase}{_why(dpu)}"
        elif phase != Phase.READY or condition_status(conditions, "Ready") != "True":
            why = _why(dpu) or _unsaid(world, dpu, phase)
            yield f"DPU {dpu.key} is in phase {phase or 'none'}{why}{_cut(dpu, hosts[dpu.spec.dpu_node_name])}"
        else:
            owner = next((sets[r.uid] for r in dpu.metadata.owner_references if r.uid in sets), None)
            if owner is not None:
                yield from _outdated(dpu, owner)


def _outdated(dpu: Dpu, owner: DpuSet) -> Iterator[str]:
    """OnDelete asks nothing of a DPU that is there."""
    wanted, strategy = owner.spec.dpu_template.spec, owner.spec.strategy
    if strategy is None or strategy.type != "RollingUpdate":
        return
    if dpu.spec.bfb != wanted.bfb.name or dpu.spec.dpu_flavor != wanted.dpu_flavor:
        yield f"DPU {dpu.key} still has BFB {dpu.spec.bfb} and flavor {dpu.spec.dpu_flavor}"


def _why(dpu: Dpu) -> str:
    """The last condition that says no."""
    for c in reversed(dpu.status.conditions if dpu.status else ()):
        if c.status != "True":
            return f": {c.reason}" + (f" ({c.message})" if c.message else "")
    return ""


def _unsaid(world: World, dpu: Dpu, phase: str) -> str:
    """Where no condition says no."""
    node = world.host_cluster.find(DpuNode, Key(dpu.metadata.namespace, dpu.spec.dpu_node_name))
    if phase == Phase.REBOOTING and node is not None and node.status is not None and node.status.kube_node_ref is None:
        return ": a warm reboot of a host outside Kubernetes does nothing, and no condition tells of it"
    return ": no condition says what it waits for"


def _cut(dpu: Dpu, of_host: list[Dpu]) -> str:
    """A DPU in Error whose last attempt to install failed during the reboot of its host for another DPU.

    The reboot lasts from the other's CheckedHostRebootNeed to its Rebooted condition.
    """
    failed = _since(dpu, "OSInstalled", "False")
    if failed is None or dpu.status is None or dpu.status.phase != Phase.ERROR:
        return ""
    for other in of_host:
        begun, ended = _since(other, "CheckedHostRebootNeed", "True"), _since(other, "Rebooted", "True")
        if other is not dpu and begun is not None and begun <= failed and (ended is None or failed <= ended):
            return (f"; its host was being rebooted for DPU {other.metadata.name} while it installed, and its eleven "
                    "attempts were over before the host was back: delete it, and its DPUSet makes it anew")
    return ""


def _since(dpu: Dpu, type_: str, status: str) -> float | None:
    found = condition(dpu.status.conditions if dpu.status else (), type_)
    return parse_time(found.last_transition_time) if found is not None and found.status == status else None


def _sets(world: World) -> Iterator[str]:
    devices: dict[tuple[str, str], list[DpuDevice]] = {}
    for device in world.objects(DpuDevice):
        meta = device.metadata
        devices.setdefault((meta.namespace, meta.labels.get(Label.DPUNODE_NAME, "")), []).append(device)
    nodes: list[DpuNode] = world.objects(DpuNode)
    for dpuset in world.objects(DpuSet):
        if dpuset.deleting:
            yield f"DPUSet {dpuset.key} is still being deleted"
            continue
        selected = [d for n in nodes if n.metadata.namespace == dpuset.metadata.namespace
                    and matches(dpuset.spec.dpu_node_selector, n.metadata.labels)
                    for d in devices.get((n.metadata.namespace, n.metadata.name), ())
                    if _has(d.metadata.labels, dpuset.spec.dpu_selector)]
        if not selected and nodes:
            yield f"DPUSet {dpuset.key} selects no DPU: no DPUNode of its namespace fits"
        for device in selected:
            yield from _missing(world, dpuset, device)


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


def _missing(world: World, dpuset: DpuSet, device: DpuDevice) -> Iterator[str]:
    dpu = world.host_cluster.find(Dpu, Key(dpuset.metadata.namespace, device.metadata.name))
    if dpu is None:
        yield f"DPUSet {dpuset.key} has no DPU for DPUDevice {device.metadata.name}{_complaint(world, dpuset)}"
        return
    owner = dpu.metadata.labels.get(Label.DPUSET_NAME, "")
    if owner and (owner, dpu.metadata.labels.get(Label.DPUSET_NAMESPACE)) != (
            dpuset.metadata.name, dpuset.metadata.namespace):
        yield f"DPUSet {dpuset.key} selects DPUDevice {device.metadata.name}, whose DPU belongs to DPUSet {owner}"


def _hosts(world: World) -> Iterator[str]:
    """Hosts on their way up, and workers that are not given back."""
    for host in world.hosts.hosts.values():
        if host.state == BOOTING:
            yield f"host {host.name} is booting"
    for m in world.objects(NodeMaintenance):
        node = world.host_cluster.find(Node, Key("", m.spec.node_name))
        if node is not None and node.spec.unschedulable and m.deleting:
            yield f"Node {m.spec.node_name} is still cordoned: NodeMaintenance {m.key} is still being deleted"


def _unregistered(world: World) -> Iterator[str]:
    """Hosts in service that never came to a DPUNode, with DPUs that a DPUSet is going to select.

    Hosts outside Kubernetes are registered from the start.
    """
    space = world.settings.namespace
    sets = [s for s in world.objects(DpuSet) if s.metadata.namespace == space and not s.deleting]
    for name in world.machines.names() if sets else ():
        machine = world.machines.machine(name)
        if machine is None or world.host_cluster.find(DpuNode, Key(space, name)) is not None:
            continue
        node: Node | None = world.host_cluster.find(Node, Key("", name))
        labels = {**machine.labels, "kubernetes.io/hostname": name, **features(machine),
                  **(node.metadata.labels if node is not None else {})}
        devices = [device_labels(name, DpuDeviceSpec(pci_address=c.pci_address, pf0_name=c.pf0_name,
                                                     number_of_pfs=c.number_of_pfs)) for c in machine.cards]
        if any(matches(s.spec.dpu_node_selector, labels) and any(_has(d, s.spec.dpu_selector) for d in devices)
               for s in sets):
            why = _not_registered(world, machine, node)
            if why:
                yield f"host {name} has no DPUNode: {why}"


def _not_registered(world: World, machine: Machine, node: Node | None) -> str:
    """'' when it is booting, or was registered and its DPUNode deleted later."""
    name, space = machine.name, world.settings.namespace
    if not machine.up:
        return "" if world.hosts.hosts[name].state == BOOTING else "it is down"
    if node is None:
        return "it has no Node"
    if Label.DPU_ENABLED not in node.metadata.labels:
        return f"its Node has no label {Label.DPU_ENABLED}"
    pod: Pod | None = world.host_cluster.find(Pod, Key(space, dms_pod(name)))
    if pod is None:
        _, error = world.errors.get(("node", str(node.key)), (0, ""))
        return f"it has no DMS pod{f': {error}' if error else ''}"
    if world.host_cluster.find(Secret, Key(space, dms_secret(name))) is None:
        return f"its DMS pod waits for its certificate (Secret {dms_secret(name)})"
    left = [c for c in pod.status.init_container_statuses if c.state.get("terminated", {}).get("exitCode") != 0]
    if not left and pod.status.init_container_statuses:
        return ""
    said = [str(s["terminated"].get("message", "")) for c in left[:1] for s in (c.state, c.last_state)
            if "terminated" in s]
    return f"its DMS pod is {pod.status.phase}{f': {said[0]}' if said and said[0] else ''}"
