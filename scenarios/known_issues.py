"""How a finished run shows that it met a known issue of `known_issues_table`. `SHOWS` is the table of detections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, TypeVar

from scenarios.known_issues_table import ISSUES
from scenarios.measure import unavailability
from scenarios.result import Run
from twin.model.core import DpfOperatorConfig, Event, Node, Pod, Service
from twin.model.faults import fitting
from twin.model.meta import Object, condition, condition_status, parse_time
from twin.model.names import Annotation, Finalizer, Label
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuSet, Phase
from twin.model.services import DpuDeployment
from twin.runtime.events import COMBINED
from twin.sim.trace import BUDGET, FOREIGN_TAINT, WANTED, PhaseRow

T = TypeVar("T", bound=Object)


def met(run: Run) -> list[str]:
    """The known issues that this run met, in words: `REFERENCE: symptom`."""
    evidence = Evidence(run)
    return [f"{i.ref}: {i.symptom}" for i in ISSUES if i.ref in SHOWS and SHOWS[i.ref](evidence)]


class Evidence:
    """A finished run as detections ask it; each list is made once, and only if somebody asks."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.reasons = run.reasons
        self.changes = run.trace.device_changes
        self.policies = run.policies
        self._kinds: dict[type[Object], list[Any]] = {}
        for obj in run.objects.get("", ()):
            self._kinds.setdefault(type(obj), []).append(obj)

    def all(self, kind: type[T]) -> list[T]:
        return self._kinds.get(kind, [])

    def said(self, *reasons: str) -> bool:
        return any(r in self.reasons for r in reasons)

    def fault(self, kind: str) -> bool:
        return any(f.kind == kind for f in self.run.trace.faults)

    def marks(self, what: str) -> dict[str, float]:
        """What has this mark -> since when."""
        return {about: t_s for (kind, about), t_s in self.run.trace.marks.items() if kind == what}

    def event(self, reason: str, text: str = "", count: int = 1) -> bool:
        return any(e.reason == reason and e.count >= count and text in e.message for e in self.all(Event))

    def stays(self, phase: str, at_least_s: float = 0.0, outcome: str = "") -> list[PhaseRow]:
        return [p for p in self.phases.get(phase, ())
                if p.end_s - p.start_s >= at_least_s and outcome in ("", p.outcome)]

    @cached_property
    def phases(self) -> dict[str, list[PhaseRow]]:
        found: dict[str, list[PhaseRow]] = {}
        for row in self.run.phases():
            found.setdefault(row.phase, []).append(row)
        return found

    def at_s(self, timestamp: str) -> float:
        return parse_time(timestamp) - self.run.epoch_s

    @cached_property
    def gone(self) -> list[PhaseRow]:
        """The last stay of every DPU that went."""
        return [p for p in self.run.phases() if p.outcome == "gone"]

    def waited(self, constraint: str, at_least_s: float) -> bool:
        return any(w.label.startswith(constraint) and w.end_s - w.start_s >= at_least_s for w in self.waits)

    @cached_property
    def waits(self) -> list[Any]:
        return self.run.waits()

    @cached_property
    def ready(self) -> dict[str, bool]:
        """DPUs in phase Ready -> is their condition True?"""
        return {d.metadata.name: condition_status(d.status.conditions, "Ready") == "True" for d in self.all(Dpu)
                if d.status is not None and d.status.phase == Phase.READY}

    def cards(self, ready: bool | None = None) -> list[Any]:
        """The hardware of DPUs in phase Ready, with this Ready condition."""
        return [c for c in self.run.cards if c["dpu"] in self.ready and ready in (None, self.ready[c["dpu"]])]


# --- detections that do not fit a line


def _shared_file(e: Evidence) -> bool:
    urls: dict[str, set[str]] = {}
    for bfb in e.all(Bfb):
        if bfb.status is not None and bfb.status.phase == "Ready" and bfb.status.file_name and bfb.spec is not None:
            urls.setdefault(bfb.status.file_name, set()).add(bfb.spec.url)
    return any(len(of) > 1 for of in urls.values())


def _mtu(e: Evidence) -> bool:
    config = next(iter(e.all(DpfOperatorConfig)), None)
    networking = config.spec.networking if config is not None else None
    wanted = networking.control_plane_mtu if networking is not None else None
    return wanted is not None and any(c["bridged"] and c["mtu"] != wanted for c in e.cards())


def _effect_edit(e: Evidence) -> bool:
    for deployment in e.all(DpuDeployment):
        effect = deployment.spec.dpus.node_effect if deployment.spec is not None else None
        for dpuset in e.all(DpuSet):
            owned = any(r.uid == deployment.metadata.uid for r in dpuset.metadata.owner_references)
            if owned and effect is not None and effect != dpuset.spec.dpu_template.spec.node_effect:
                return True
    return False


def _edit_taken_back(e: Evidence) -> bool:
    """More changes of a DPUSet's template deleted DPUs than its DPUDeployment had changes to pass on."""
    deployments = {d.metadata.uid: d for d in e.all(DpuDeployment)}
    starts = e.stays(Phase.DELETING)
    for dpuset in e.all(DpuSet):
        owner = next((deployments[r.uid] for r in dpuset.metadata.owner_references if r.uid in deployments), None)
        if owner is None:
            continue
        born_s = e.at_s(dpuset.metadata.creation_timestamp)
        acted = [a for a in e.run.trace.asks if a.t_s >= born_s and a.why == f"DPUSet {dpuset.key} changed"
                 and any(0 <= p.start_s - a.t_s < 60.0 and p.dpu in a.dpus for p in starts)]
        if len(acted) > owner.metadata.generation - 1:
            return True
    return False


def _duplicate_suffix(e: Evidence) -> bool:
    for deployment in e.all(DpuDeployment):
        suffixes = [s.name_suffix for s in deployment.spec.dpus.dpu_sets] if deployment.spec is not None else []
        if len(set(suffixes)) < len(suffixes):
            return "dpudeployment-first-suffix-wins" not in e.policies
    return False


def _elsewhere(e: Evidence) -> bool:
    spaces = {n.metadata.namespace for n in e.all(DpuNode)}
    return bool(spaces) and any(s.metadata.namespace not in spaces for s in e.all(DpuSet))


def _siblings(e: Evidence) -> bool:
    hosts = [d.spec.dpu_node_name for d in e.all(Dpu)]
    return len(set(hosts)) < len(hosts)


def _sibling_rebooted(e: Evidence) -> bool:
    """An OS install failed for good on a host with several DPUs that was rebooted."""
    return _siblings(e) and e.said("Error/InstallationFailed") and "host-reboot" in e.changes


def _given_back_early(e: Evidence) -> bool:
    """A host's drain ended while another of its DPUs was installing."""
    if not _siblings(e):
        return False
    drains = [o for o in e.run.outages() if o.label == "drain"]
    return any(row.start_s < d.end_s < row.end_s and d.end_s < e.run.virtual_s and d.dpu == row.dpu
               for d in drains for row in e.stays(Phase.OS_INSTALLING))


def _pod_lost(e: Evidence) -> bool:
    nodes = {n.metadata.name for n in e.all(Node)}
    pods = {p.metadata.name for p in e.all(Pod)}
    return any(n.metadata.name in nodes and f"{n.metadata.name}-dms" not in pods and n.status is not None
               and n.status.kube_node_ref is not None and n.status.conditions for n in e.all(DpuNode))


def _installed_twice(e: Evidence) -> bool:
    started = e.changes.get("installing", 0) - e.changes.get("install-failed", 0)
    return started > len(e.stays(Phase.OS_INSTALLING))


def _second_cluster_unused(e: Evidence) -> bool:
    ready = [c for c in e.all(DpuCluster) if c.status is not None and c.status.phase == "Ready"]
    return len(ready) > 0 and (e.waited("cluster-capacity", 60.0) or (
        len(e.all(DpuCluster)) > 1 and e.waited("dpu-cluster", 600.0)))


def _rotated(e: Evidence) -> bool:
    return e.fault("kubeconfig-rotated") and e.said(
        "NewConfigError", "DPUClusterClientGetError", "Ready/GetNodeError", "DPU Cluster Config/GetNodeError",
        "DeleteNodeError")


def _swept(e: Evidence) -> bool:
    """More DPUs were deleted within a second of an ask than its budget allows."""
    asks = [a.t_s for a in e.run.trace.asks if a.dpus]
    budget = [n for _, n in e.run.trace.counters.get(BUDGET, ())]
    starts = [p.start_s for p in e.stays(Phase.DELETING)]
    return bool(budget) and any(sum(0 <= s - t < 1.0 for s in starts) > max(budget) for t in asks)


def _old(card: Mapping[str, Any]) -> bool:
    return bool(card["firmware_running"] != card["firmware_on_flash"])


def _skips(e: Evidence, card: Mapping[str, Any]) -> bool:
    """Does an annotation of the card's host say that reboots are skipped?"""
    return any("skip" in (n.metadata.annotations.get(Annotation.REBOOT_COMMAND),
                          n.metadata.annotations.get(Annotation.POWERCYCLE_COMMAND))
               for n in e.all(DpuNode) if n.metadata.name == card["host"])


def _foreign_reboot(e: Evidence) -> bool:
    """Somebody's reboot, or that for another DPU of the host, passed for a DPU's own: none takes less than a minute."""
    passed = {p.dpu for p in e.stays(Phase.REBOOTING, outcome="passed") if p.end_s - p.start_s < 60.0}
    return bool(passed) and (e.fault("host-rebooted") or any(
        _old(c) and c["dpu"] in passed and not _skips(e, c) for c in e.cards(ready=True)))


def _outlived(e: Evidence) -> bool:
    """The OS install of a DPU whose forerunner was deleted in Rebooting failed for good."""
    next_ones = {(p.dpu, p.attempt + 1) for p in e.stays(Phase.REBOOTING, outcome="deleting")}
    return "host-reboot" in e.changes and any(
        (p.dpu, p.attempt) in next_ones for p in e.stays(Phase.OS_INSTALLING, outcome="failed"))


def _stale_labels(e: Evidence) -> bool:
    sets = {s.metadata.uid: s for s in e.all(DpuSet)}
    for dpu in e.all(Dpu):
        owner = next((sets[r.uid] for r in dpu.metadata.owner_references if r.uid in sets), None)
        cluster = owner.spec.dpu_template.spec.cluster if owner is not None else None
        wanted = cluster.node_labels if cluster is not None else {}
        theirs = [k for k in dpu.spec.cluster.node_labels if "dpu.nvidia.com" not in k]
        if owner is not None and any(k not in wanted for k in theirs):
            return True
    return False


def _replaced(e: Evidence) -> bool:
    return any(b.status is not None and b.status.phase == "Downloading" and b.status.versions is not None
               and b.status.versions.bsp for b in e.all(Bfb)) and e.event("SuccessfulDownload", count=3)


def _stale_node(e: Evidence) -> bool:
    """A DPU is Ready by a Node that is older than the DPU."""
    made = {d.metadata.name: d.metadata.creation_timestamp for d in e.all(Dpu) if d.metadata.name in e.ready}
    return any(isinstance(o, Node) and o.metadata.creation_timestamp < made.get(o.metadata.name, "")
               for name, objects in e.run.objects.items() if name for o in objects)


def _freed(e: Evidence) -> bool:
    """A DPU that went took the finalizer of its DPUNode along, and another one was there and is Ready."""
    bare = {n.metadata.name for n in e.all(DpuNode) if Finalizer.DPUNODE not in n.metadata.finalizers}
    went = {e.run.place(p.dpu).host: p.end_s for p in e.gone}
    made = {p.dpu: p for p in e.stays(Phase.INITIALIZING) if p.dpu in e.ready}
    return any(p.start_s < went.get(host, 0.0) for p in made.values() if (host := e.run.place(p.dpu).host) in bare)


def _deleted_again(e: Evidence) -> bool:
    """More deletions of a DPU were announced than there were. Combined Events name only the last one's DPU."""
    made = Counter([*(p.dpu for p in e.gone), *(d.metadata.name for d in e.all(Dpu) if d.deleting)])
    said: Counter[str] = Counter()
    for event in e.all(Event):
        if event.reason == "SuccessfulDelete":
            combined = event.message.startswith(COMBINED)
            said["" if combined else event.message.partition("/")[2].partition(")")[0]] += event.count
    return said.pop("", 0) > made.total() or any(n > made[dpu] for dpu, n in said.items())


def _noticed_late(e: Evidence) -> bool:
    """A DPU was made a minute and more after a label put on its worker asked for it, and nothing else held it up."""
    wanted, made = e.marks(WANTED), dict[str, float]()
    for p in e.stays(Phase.INITIALIZING):
        if p.dpu in wanted and p.start_s >= wanted[p.dpu]:
            made.setdefault(p.dpu, p.start_s)
    return (any(start_s - wanted[dpu] >= 60.0 for dpu, start_s in made.items())
            and "throttle-initial-create" not in e.policies and not e.event("FailedCreate"))


def _checked_once(e: Evidence) -> bool:
    """A DPUNode said Ready for a minute and more after its DMS was lost; the target of such a fault is `HOSTS,HOW`."""
    faults = [f for f in e.run.trace.faults if f.kind == "dms-unreachable"]
    for i, fault in enumerate(faults):
        if not fault.began:
            continue
        end_s = next((f.t_s for f in faults[i + 1:] if f.target == fault.target and not f.began), e.run.virtual_s)
        hosts = fault.target.partition(",")[0].split()
        if any(_ready_until(e, n, fault.t_s, end_s) - fault.t_s >= 60.0 for n in e.all(DpuNode)
               if fitting(hosts, [n.metadata.name])):
            return "dpunode-rechecks-dms" not in e.policies
    return False


def _ready_until(e: Evidence, node: DpuNode, start_s: float, end_s: float) -> float:
    """Until when in this span the DPUNode was Ready without a break; its start where the last transition hides it."""
    ready = condition(node.status.conditions, "Ready") if node.status is not None else None
    if ready is None or e.at_s(node.metadata.creation_timestamp) > start_s:
        return start_s
    since_s = e.at_s(ready.last_transition_time)
    if ready.status == "True":
        return end_s if since_s <= start_s else start_s
    return since_s if start_s < since_s <= end_s else start_s


def _unthrottled(e: Evidence) -> bool:
    """More hosts were drained for first installs than maxUnavailable allows."""
    budget = [n for _, n in e.run.trace.counters.get(BUDGET, ())]
    first = {p.dpu: p.start_s for p in e.stays(Phase.OS_INSTALLING) if p.attempt == 1}
    drains = [o for o in e.run.outages() if o.label == "drain" and o.start_s <= first.get(o.dpu, -1.0)]
    return bool(budget) and len(drains) > max(budget) and unavailability(drains, e.run.trace.places).max > max(budget)


def _ownerless_service(e: Evidence) -> bool:
    """A control plane's Service whose DPUCluster is gone."""
    clusters = {c.key for c in e.all(DpuCluster)}
    return any("kamaji.clastix.io/name" in s.spec.selector and s.key not in clusters for s in e.all(Service))


def _kept_labels(e: Evidence) -> bool:
    """A DPUNode has a feature label that its Node has not."""
    nodes = {n.metadata.name: n.metadata.labels for n in e.all(Node)}
    return any(label.startswith("feature.node.kubernetes.io/") and label not in nodes[d.metadata.name]
               for d in e.all(DpuNode) if d.metadata.name in nodes for label in d.metadata.labels)


def _leaked_labels(e: Evidence) -> bool:
    """A DPUDevice has a label for a field that it lacks."""
    return any((label in d.metadata.labels and value is None) for d in e.all(DpuDevice) for label, value in (
        (Label.DEVICE_PCI_ADDRESS, d.spec.pci_address), (Label.DEVICE_PSID, d.spec.psid),
        (Label.DEVICE_OPN, d.spec.opn), (Label.DEVICE_BMC_IP, d.spec.bmc_ip),
        (Label.DEVICE_PF0_NAME, d.spec.pf0_name)))


def _never_rebooted(e: Evidence) -> bool:
    """A host outside Kubernetes was to be rebooted by gNOI, for an hour and more."""
    outside = {n.metadata.name for n in e.all(DpuNode) if n.status is not None and n.status.kube_node_ref is None
               and (n.spec.node_reboot_method is None or n.spec.node_reboot_method.gnoi is not None)}
    stuck = {p.dpu for p in e.stays(Phase.REBOOTING, 3600.0, "open")}
    return any(d.metadata.name in stuck and d.spec.dpu_node_name in outside for d in e.all(Dpu))


def _flavor_asks_for_cycle(e: Evidence) -> bool:
    return any(n.host_power_cycle_required for f in e.all(DpuFlavor) for n in f.spec.nvconfig)


SHOWS: Final[dict[str, Callable[[Evidence], bool]]] = {
    "4241297": lambda e: any("failed calling webhook" in w for w in e.run.warnings),
    "4200717": lambda e: "hung" in e.changes,
    "4143309": _shared_file,
    "3751863": lambda e: e.fault("dpu-link-down") and e.said("NodeNotReady"),
    "3917006": _mtu,
    "4424305": lambda e: any(c["host_up"] and c["joined"] and c["arm"] == "up" and not c["bridged"]
                             for c in e.cards(ready=False)),
    "4410218": _effect_edit,
    "4403130": lambda e: e.said("CreateGRPCConnectionError", "ExecuteDMSDebugCmdError")
    and bool(e.stays(Phase.DELETING, 600.0)),
    "4426349": lambda e: e.said("OS Installing/BFBNotFound"),
    "4413138": _duplicate_suffix,
    "4427091": _elsewhere,
    "4123204": lambda e: e.said("DeleteBFBCFGFileError") or (
        e.fault("nfs-down") and bool(e.stays(Phase.OS_INSTALLING, 2000.0))),
    "4445649": lambda e: e.said("InvalidNodeEffect"),
    "one-dpu-per-host": _sibling_rebooted,
    "token-expiry": lambda e: bool(e.stays(Phase.REBOOTING, 7200.0)) and bool(e.stays(Phase.DPU_CLUSTER_CONFIG, 600.0)),
    "4583693": _flavor_asks_for_cycle,
    "doca-platform 26": _edit_taken_back,
    "bfb-error-parks-dpus": lambda e: e.said("Pending/BFBIsNotReady") and (e.event("FailedDownload") or any(
        b.status is not None and b.status.phase == "Error" for b in e.all(Bfb))),
    "bfb-unreadable-version-loop": lambda e: e.event("FailedGetBFBVersion", count=2),
    "dms-pod-not-recreated": _pod_lost,
    "tasks-lost-on-restart": _installed_twice,
    "one-worker-black-hole": lambda e: e.waited("worker dpu", 15.0) and e.said(
        "FailedToGetDPUCapacity", "FailedToSetDPUMode", "FailedToGetHostUptime", "ExecuteDMSDebugCmdError"),
    "one-worker-saturated": lambda e: any(
        r.controller == "dpu" and r.busy_s > 0.8 * e.run.virtual_s for r in e.run.reconciles),
    "pdb-blocked-drain": lambda e: e.waited("pdb ", 300.0),
    "two-sets-one-device": lambda e: e.event("FailedCreate", "already exists")
    and "dpuset-skips-taken-devices" not in e.policies,
    "allocator-first-cluster-only": _second_cluster_unused,
    "dpu-cluster-client-cached": _rotated,
    "skipped-reboot-is-ready": lambda e: any(_skips(e, c) for c in e.cards(ready=True) if _old(c)),
    "sweep-of-unavailable": _swept,
    "any-reboot-counts": _foreign_reboot,
    "node-labels-never-removed": _stale_labels,
    "bfb-versions-immutable": _replaced,
    "joined-by-stale-node": _stale_node,
    "foreign-taint-removed": lambda e: bool(e.marks(FOREIGN_TAINT)),
    "no-join-timeout": lambda e: bool(e.stays(Phase.DPU_CLUSTER_CONFIG, 3600.0)),
    "no-throttle-on-create": _unthrottled,
    "node-effect-not-counted": _given_back_early,
    "dpunode-finalizer-not-counted": _freed,
    "deletes-again": _deleted_again,
    "dpuset-blind-to-dpunodes": _noticed_late,
    "dpunode-checked-once": _checked_once,
    "warm-reboot-starts-over": lambda e: e.said("Rebooting/RebootFailed"),
    "reboot-outlives-its-dpu": _outlived,
    "no-warm-reboot-outside-kubernetes": _never_rebooted,
    "dpunode-keeps-node-labels": _kept_labels,
    "dpudevice-labels-leak": _leaked_labels,
    "kamaji-service-has-no-owner": _ownerless_service,
    "dpucluster-no-periodic-health-check": lambda e: e.fault("dpu-api-down") and e.said("Ready/GetNodeError")
    and "dpucluster-health-poll" not in e.policies and any(
        c.status is not None and c.status.phase == "Ready" for c in e.all(DpuCluster)),
    "unknown-part-passes": lambda e: any(
        c.reason == "UnableToCheckCapacity" for d in e.all(Dpu) if d.status for c in d.status.conditions),
    "custom-label-on-dpunode": lambda e: any(
        d.spec.node_effect is not None and d.spec.node_effect.custom_label for d in e.all(Dpu)),
    "ready-needs-core-node": lambda e: e.said("Error/NodeEffectError") and not e.fault("api-errors"),
    "hold-annotation-set-again": lambda e: e.reasons.get("Node Effect/ExternalNodeEffect", 0) > 0
    and bool(e.stays(Phase.NODE_EFFECT, 2 * 3600.0)),
    "invalid-dpu-details-stays": lambda e: any(
        condition_status(n.status.conditions, "InvalidDPUDetails") == "True" for n in e.all(DpuNode) if n.status),
}
"""Reference -> did this run meet it? An issue without an entry leaves no mark that a run could be told by."""
